"""Reader of datasets of the Hugging Face hub, or of any `datasets.Dataset` with a picture or a sound in each row."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from commit_tuning.data.files import FaultError, Source, file_name, said
from commit_tuning.data.pictures import check_picture, load_picture
from commit_tuning.data.prompts import DESCRIBE_MUSIC
from commit_tuning.data.readers.aokvqa import choice_of
from commit_tuning.data.readers.base import Place, Reader, Record, fields
from commit_tuning.data.readers.clothoaqa import answer_kind
from commit_tuning.data.sample import CAPTION, DIRECT, Sample
from commit_tuning.data.sounds import check_sound, load_sound
from commit_tuning.errors import UserError


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset make a sample.

    Attributes:
        question: Column of the question.
        answers: Column of the answers: a list of texts, one text, or a list written as Python text; with `choices`, the
            index of the right one.
        choices: Column of the choices, or None.
        image: Column of the picture (feature Image), or None.
        audio: Column of the sound (feature Audio), or None; there is one of the two.
        id: Column of the id, or None for the row's number from 1.
        kind: The samples' kind, or a function of the answers.
        instruction: What is asked instead of a question.
        leave_out: Column whose true rows are not read.
    """

    question: str | None = "question"
    answers: str = "answers"
    choices: str | None = None
    image: str | None = None
    audio: str | None = None
    id: str | None = None
    kind: str | Callable[[Sequence[str]], str] = DIRECT
    instruction: str = ""
    leave_out: str | None = None

    @property
    def names(self) -> list[str]:
        """Every column that is read."""
        wanted = (self.question, self.answers, self.choices, self.image, self.audio, self.id, self.leave_out)
        return [name for name in wanted if name is not None]


_TEXTVQA = Columns(image="image", id="question_id")
_AOKVQA = Columns(
    image="image", id="question_id", choices="choices", answers="correct_choice_idx", kind="multiple_choice"
)
HUB = {
    "facebook/textvqa": _TEXTVQA,
    "lmms-lab/textvqa": _TEXTVQA,
    "HuggingFaceM4/A-OKVQA": _AOKVQA,
    "lmms-lab/ClothoAQA": Columns(audio="audio", answers="answer", kind=answer_kind),
    "AudioLLMs/clotho_aqa_test": Columns("instruction", "answer", audio="context", kind=answer_kind),
    "renumics/song-describer-dataset": Columns(
        None, "caption", audio="path", id="caption_id", kind=CAPTION, instruction=DESCRIBE_MUSIC
    ),
}
"""Known datasets of the hub."""

AOKVQA_DIRECT = Columns(image="image", id="question_id", answers="direct_answers", leave_out="difficult_direct_answer")
"""The direct-answer setting of A-OKVQA, as it is evaluated."""

_MOST_WRITTEN = 100_000  # letters of a list written as text


class HubReader(Reader[int]):
    """The rows of a dataset, in its order; see :class:`Reader`. `datasets` itself decodes no picture and no sound.

    Args:
        rows: A `datasets.Dataset`: one split, not streamed. A number is read as its text, a class as its name.
        columns: Which columns make a sample, or a name of :data:`HUB`.
        name: What messages call it.
        limit: Read at most this many samples.
        strict: Raise on the first broken row instead of skipping it.
        rate: Sampling rate of the sounds, in Hz.
        max_seconds: Cut sounds to their first so many seconds; None for all.

    Raises:
        UserError: As :class:`Reader`; or the dataset lacks the columns.
    """

    layout = "a split with the columns that data.hub.Columns names"

    def __init__(
        self,
        rows: Any,
        columns: Columns | str,
        name: str = "the dataset",
        *,
        limit: int | None = None,
        strict: bool = False,
        rate: int = 16_000,
        max_seconds: float | None = None,
    ) -> None:
        self._columns = _find_columns(columns)
        self._rows = _undecoded(rows, self._columns, name)
        entries = ((Place(Path(name), row + 1), row) for row in range(len(self._rows)))
        super().__init__(name, entries, limit=limit, strict=strict, rate=rate, max_seconds=max_seconds)

    def _read(self, place: Place, entry: int) -> Iterator[Record]:
        row, use = self._rows[entry], self._columns
        if use.leave_out is not None and _flag(row[use.leave_out], use.leave_out):
            return
        choices, answers = None, row[use.answers]
        if use.choices is None:
            answers = self._texts(place, _list_of(self._named(use.answers, answers)), f"column {use.answers}")
        else:
            choices, answers = choice_of(self._named(use.choices, row[use.choices]), answers)
        question = use.instruction
        if use.question is not None:
            question = said(self._named(use.question, row[use.question]), f"column {use.question}")
        source = self._media(row)
        if use.image is not None:
            check_picture(source)
        else:
            check_sound(source, self._max_seconds)
        kind = use.kind if isinstance(use.kind, str) else use.kind(answers)
        name = str(place.line) if use.id is None else said(row[use.id], f"column {use.id}")
        yield Record(place, name, kind, question, choices, answers)

    def _sample(self, record: Record) -> Sample:
        source = self._media(self._rows[(record.place.line or 1) - 1])
        image = audio = None
        if self._columns.image is not None:
            image = load_picture(source)
        else:
            audio = load_sound(source, self._rate, self._max_seconds)
        return Sample(record.id, record.kind, record.question, record.choices, record.answers, image, audio)

    def _named(self, column: str, value: object) -> object:
        """Return a value, or in a column of classes the name of each number."""
        names = _class_names(self._rows.features[column])
        if names is None:
            return value
        given = value if isinstance(value, list) else [value]
        return [names[number] if isinstance(number, int) and 0 <= number < len(names) else "" for number in given]

    def _media(self, row: dict[str, Any]) -> Source:
        name = self._columns.image or self._columns.audio or ""
        value = fields(row[name] or {})
        content = value.get("bytes")
        if isinstance(content, bytes):
            return content
        return Path(file_name(value.get("path"), name))


def open_hub(
    name: str, split: str, config: str | None = None, columns: Columns | None = None, **options: Any
) -> HubReader:
    """Load a split of a dataset of the hub (or of the hub's cache) and read it.

    Args:
        name: Name on the hub, such as ``facebook/textvqa``.
        split: Split, as the hub has it, such as ``validation``.
        config: Configuration, where a dataset has several.
        columns: Which columns make a sample; None for what :data:`HUB` says.
        options: Of :class:`HubReader`.

    Raises:
        UserError: `datasets` is not installed or cannot load it; and as :class:`HubReader`.
    """
    use = _find_columns(name) if columns is None else columns
    try:
        rows = import_module("datasets").load_dataset(name, config, split=split)
    except ImportError:
        raise UserError("datasets of the hub need the package datasets: pip install datasets") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load split {split!r} of {name}: {reason}") from error
    return HubReader(rows, use, name, **options)


def _find_columns(columns: Columns | str) -> Columns:
    if isinstance(columns, Columns):
        found = columns
    elif columns in HUB:
        found = HUB[columns]
    else:
        raise UserError(f"the columns of {columns!r} are not known: give columns=Columns(...); known: {', '.join(HUB)}")
    if (found.image is None) == (found.audio is None):
        raise UserError("Columns needs either image or audio")
    return found


def _undecoded(rows: Any, columns: Columns, name: str) -> Any:
    """Return the dataset with the columns that are read, and its pictures and sounds as bytes."""
    if isinstance(rows, Mapping):
        raise UserError(f"{name} has several splits: give one, such as dataset[{next(iter(rows), 'train')!r}]")
    if not hasattr(rows, "__len__") or not hasattr(rows, "select_columns"):
        raise UserError(
            f"{name} is a {type(rows).__name__}, not a datasets.Dataset with a length: load it with streaming=False"
        )
    features = rows.features
    absent = [column for column in columns.names if column not in features]
    if absent:
        raise UserError(
            f"{name} has no column {', '.join(absent)}; it has {', '.join(features) or 'none'}: name what it has in "
            "columns=Columns(question=..., answers=..., image=...)"
        )
    datasets = import_module("datasets")
    medium, feature = (columns.image, datasets.Image) if columns.image else (columns.audio, datasets.Audio)
    if not isinstance(features[medium], feature):
        raise UserError(f"column {medium} of {name} is no {feature.__name__}: cast it with cast_column")
    plain = rows.with_format(None).select_columns(list(dict.fromkeys(columns.names)))
    return plain.cast_column(medium, feature(decode=False))


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a ClassLabel, or of a list of them; None for another feature."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if isinstance(names, list) and hasattr(inner, "int2str") else None


def _flag(value: object, what: str) -> bool:
    """Tell whether a column says yes."""
    if not isinstance(value, (bool, int)) and value is not None:
        raise FaultError(f"the column {what} is neither true nor false")
    return bool(value)


def _list_of(value: object) -> object:
    """Return a list, one text or number as a list, or a list from its Python text (as in the hub's A-OKVQA)."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return ast.literal_eval(value) if len(value) <= _MOST_WRITTEN else None
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise FaultError("the answers are no list") from None
    return [value] if isinstance(value, (str, int, float)) else value
