"""Reader of Clotho-AQA (Lipping et al. 2022, https://zenodo.org/records/6473207): questions about sounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commit_tuning.data.files import FaultError, csv_rows, file_name, western, words
from commit_tuning.data.readers.base import Place, Reader, Record, check_option, find

YES_NO, SINGLE_WORD = "yes_no", "single_word"
_COLUMNS = ("file_name", "QuestionText", "answer")


@dataclass(frozen=True)
class _Question:
    file: str
    text: str
    id: str
    answers: list[str] = field(default_factory=list)


class ClothoAQA(Reader[_Question]):
    """The questions of one split, in the order in which they first stand in the file; see :class:`Reader`.

    A question has one row for each of its three answers; the rows become one sample, whose answers are in lower case
    (the official ``split_dataset.py`` ignores case, too). Its kind is yes_no or single_word, by its most frequent
    answer. Text that is not UTF-8 is Latin-1, as the official script reads it. Ids are `<file>:<question, from 0>`.

    Args:
        root: Folder of the CSV files and of ``audio_files/``.
        split: train, val or test.
        limit: Read at most this many questions.
        strict: Raise on the first broken row or question instead of skipping it.
        rate: Sampling rate of the sounds, in Hz.
        max_seconds: Cut sounds to their first so many seconds; None for all (they last 15 to 30 s).
    """

    layout = "clotho_aqa_<split>.csv (file_name,QuestionText,answer,confidence), audio_files/<file_name>"

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        limit: int | None = None,
        strict: bool = False,
        rate: int = 16_000,
        max_seconds: float | None = None,
    ) -> None:
        check_option(split, "split of Clotho-AQA")
        path = find(root, (f"clotho_aqa_{split}.csv",), self.layout)
        self._sounds = find(root, ("audio_files",), self.layout).resolve()
        super().__init__(path, _questions(path), limit=limit, strict=strict, rate=rate, max_seconds=max_seconds)

    def _read(self, place: Place, entry: _Question) -> Iterator[Record]:
        sound, answers = self._sound(self._sounds, entry.file), tuple(entry.answers)
        yield Record(place, entry.id, answer_kind(answers), entry.text, None, answers, sound=sound)


def answer_kind(answers: Sequence[str]) -> str:
    """Return the kind of a question: yes_no if its most frequent answer is yes or no, else single_word."""
    return YES_NO if max(answers, key=answers.count).lower() in {"yes", "no"} else SINGLE_WORD


def _questions(path: Path) -> Iterator[tuple[Place, _Question | FaultError]]:
    """Yield the broken rows, then the questions."""
    questions: dict[tuple[str, str], tuple[Place, _Question]] = {}
    counts: dict[str, int] = {}
    for line, row in csv_rows(path, _COLUMNS):
        try:
            if isinstance(row, FaultError):
                raise row
            file = file_name(western(row["file_name"]), "file_name")
            text, answer = (words(western(row[name]), name) for name in _COLUMNS[1:])
        except FaultError as fault:
            yield Place(path, line), fault
            continue
        if (file, text) not in questions:
            counts[file] = counts.get(file, -1) + 1
            questions[file, text] = Place(path, line), _Question(file, text, f"{file}:{counts[file]}")
        questions[file, text][1].answers.append(answer.lower())
    yield from questions.values()
