"""Reader of A-OKVQA 1.0 (Schwenk et al. 2022, https://github.com/allenai/aokvqa): questions that need knowledge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from commit_tuning.data.files import FaultError, file_name, identity, number, texts, words
from commit_tuning.data.pictures import LETTERS, picture_names
from commit_tuning.data.readers.base import Place, Reader, Record, check_option, fields, find, json_entries
from commit_tuning.data.sample import DIRECT

SETTINGS = ("multiple_choice", DIRECT)


class AOKVQA(Reader[object]):
    """The questions of one split in the file's order; see :class:`Reader`.

    In the multiple-choice setting the answer is the right choice. In the direct-answer setting the answers are those of
    ten people, blank ones too. Outside train, questions marked ``difficult_direct_answer`` are left out, because the
    official ``evaluation/eval_predictions.py`` does not count them. The answers of the test split are not public.

    Args:
        root: Folder of the JSON files (or holding them in ``aokvqa/`` or ``annotations/``).
        split: train or val.
        setting: multiple_choice or direct_answer.
        limit: Read at most this many questions.
        strict: Raise on the first broken entry instead of skipping it.
        coco: Folder of COCO 2017's ``train2017/`` and ``val2017/``; None looks in the root, its ``coco/`` and
            ``images/``.
    """

    layout = "aokvqa_v1p0_<split>.json (a list), [coco/]<split>2017/<image_id of 12 digits>.jpg"

    def __init__(
        self,
        root: str | Path,
        split: str,
        setting: str = "multiple_choice",
        *,
        limit: int | None = None,
        strict: bool = False,
        coco: str | Path | None = None,
    ) -> None:
        check_option(split, "split of A-OKVQA")
        check_option(setting, "setting of A-OKVQA", SETTINGS)
        self._setting, self._leaves_out = setting, setting == DIRECT and split != "train"
        name, images = f"aokvqa_v1p0_{split}.json", f"{split}2017"
        path = find(root, (name, f"aokvqa/{name}", f"annotations/{name}"), self.layout)
        folders = (images, f"coco/{images}", f"images/{images}")
        self._images = find(root if coco is None else coco, folders, self.layout).resolve()
        super().__init__(path, json_entries(path), limit=limit, strict=strict)

    def _read(self, place: Place, entry: object) -> Iterator[Record]:
        item = fields(entry)
        choices, answers = self._choices_and_answers(item)
        if self._leaves_out and item.get("difficult_direct_answer") is True:
            return
        name, question = identity(item.get("question_id"), "question_id"), words(item.get("question"), "question")
        picture = self._picture(self._images, *_pictures(item.get("image_id")))
        yield Record(place, name, self._setting, question, choices, answers, (picture,))

    def _choices_and_answers(self, item: dict[str, object]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        if self._setting == DIRECT:
            what = "direct_answers (those of the test split are not public)"
            return None, texts(item.get("direct_answers"), what, blank=True)
        return choice_of(item.get("choices"), item.get("correct_choice_idx"))


def _pictures(image_id: object) -> tuple[str, ...]:
    """Return the possible names of a picture whose id is a number of COCO's, or a text."""
    if isinstance(image_id, str):
        return (*picture_names(file_name(image_id, "image_id")), *picture_names(image_id.strip().zfill(12)))
    return picture_names(f"{number(image_id, 'image_id'):012d}")


def choice_of(choices: object, index: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the choices and, alone, the right one.

    Raises:
        FaultError: They are no list of two to 26 texts, or the index is none of it.
    """
    options = texts(choices, "choices")
    if not isinstance(choices, list) or len(options) != len(choices) or not 2 <= len(options) <= len(LETTERS):
        raise FaultError("a blank choice, or not 2 to 26 choices")
    right = number(index, "correct_choice_idx (those of the test split are not public)", len(options))
    return options, (options[right],)
