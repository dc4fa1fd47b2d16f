"""Reader of IconQA's official folder layout (real or nano) as a map-style dataset.

A multi-image question becomes one picture, for models that take one image per question. Where the question has no
picture of its own (``image.png`` of one plain colour), the choices are laid out two in a row and are named by their
place, "top left" and so on; otherwise the question's picture is on top and the choices stand in one row below, each
under its letter, and are named by it. The answer is that name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commit_tuning.data.pictures import LETTERS, FaultError, check_picture, choice_names, collage, load_picture, shown
from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("choose_txt", "choose_img", "fill_in_blank")
_LAYOUT = "iconqa/<split>/{choose_txt,choose_img,fill_in_blank}/<id>/{image.png,data.json}"


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: The problem's id.
        kind: choose_txt, choose_img or fill_in_blank.
        image: RGB.
        question: The text.
        choices: Option texts (places or letters for choose_img); None for fill_in_blank.
        answer: The right option's text, or the answer to write.
    """

    id: str
    kind: str
    image: Image.Image
    question: str
    choices: tuple[str, ...] | None
    answer: str


@dataclass(frozen=True)
class Skipped:
    """A question that cannot be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class _Record:
    folder: Path
    kind: str
    question: str
    choices: tuple[str, ...] | None
    answer: str
    pictures: tuple[Path, ...]


class IconQA:
    """The questions of one split, in the order of their ids.

    Everything but the pixels is checked when the dataset is opened: the JSON, that every file lies inside the dataset
    folder, and that every picture is whole. So the length is final, and ``skipped`` lists what was left out.

    Args:
        root: Folder that holds ``iconqa/`` (or ``iconqa_data/iconqa/``), or that folder itself.
        split: train, val or test (any folder of the layout).
        kinds: Kinds to read; None for those that exist.
        limit: Read at most this many questions.
        strict: Raise on the first broken question instead of skipping it.

    Attributes:
        skipped: The questions left out, with reasons.

    Raises:
        UserError: The folder is not in the expected layout, nothing readable is in it, or ``strict`` and a question
            is broken.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        kinds: Sequence[str] | None = None,
        limit: int | None = None,
        strict: bool = False,
    ) -> None:
        self._base = _find_base(Path(root), split)
        self.skipped: list[Skipped] = []
        self._records: list[_Record] = []
        for kind, folder in _question_folders(self._base / split, kinds):
            if limit is not None and len(self._records) >= limit:
                break
            try:
                self._records.append(_read_record(self._base, kind, folder))
            except FaultError as fault:
                if strict:
                    raise UserError(f"{folder}: {fault}; repair it, or read without strict to skip it") from None
                self.skipped.append(Skipped(folder, str(fault)))
        if not self._records:
            raise UserError(f"no readable question in {self._base / split}{self._first_skip()}; expected {_LAYOUT}")

    def _first_skip(self) -> str:
        return f" ({len(self.skipped)} broken, first: {self.skipped[0].reason})" if self.skipped else ""

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        try:
            images = [load_picture(path) for path in record.pictures]
        except FaultError as fault:
            raise UserError(f"{record.folder}: {fault}; it changed after the dataset was opened") from None
        image, choices, answer = images[0], record.choices, record.answer
        if record.kind == "choose_img":
            image, choices = collage(images[0], images[1:]), choice_names(images[0], len(images) - 1)
            answer = choices[LETTERS.index(answer)]
        return Sample(record.folder.name, record.kind, image, record.question, choices, answer)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def _find_base(root: Path, split: str) -> Path:
    candidates = [root / "iconqa", root / "iconqa_data" / "iconqa", root]
    for base in candidates:
        if Path(split).name == split and split not in {"", ".", ".."} and (base / split).is_dir():
            return base.resolve()
    raise UserError(f"no split {split!r} of IconQA in {root}: expected {root}/{_LAYOUT}")


def _question_folders(folder: Path, kinds: Sequence[str] | None) -> list[tuple[str, Path]]:
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise UserError(f"unknown kind of question: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    absent = [kind for kind in kinds or () if not (folder / kind).is_dir()]
    if absent:
        raise UserError(f"no {', '.join(absent)} in {folder}: expected {_LAYOUT}")
    present = [kind for kind in kinds or KINDS if (folder / kind).is_dir()]
    found = [(kind, path) for kind in present for path in (folder / kind).iterdir() if path.is_dir()]
    return sorted(found, key=lambda item: (not item[1].name.isdigit(), item[1].name.zfill(12), item[0]))


def _read_record(base: Path, kind: str, folder: Path) -> _Record:
    _inside(base, folder)
    data = _read_json(_member(base, folder, "data.json"))
    question, answer, choices = data.get("question"), data.get("answer"), data.get("choices")
    if not isinstance(question, str) or not question.strip():
        raise FaultError("data.json has no question")
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] | None = None
    if kind == "fill_in_blank":
        answer = str(answer).strip() if isinstance(answer, (str, int, float)) else ""
        if not answer:
            raise FaultError("data.json has no answer")
    else:
        names = _check_choices(choices)
        texts = names if kind == "choose_txt" else LETTERS[: len(names)]
        answer = texts[_answer_index(answer, len(texts))]
    files = ("image.png", *(names if kind == "choose_img" else ()))
    pictures = tuple(_member(base, folder, name) for name in files)
    for picture in pictures:
        check_picture(picture)
    return _Record(folder, kind, question.strip(), texts, answer, pictures)


def _check_choices(choices: object) -> tuple[str, ...]:
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(LETTERS):
        raise FaultError("data.json has no choices")
    texts = tuple(str(choice).strip() for choice in choices)
    if not all(texts):
        raise FaultError("data.json has an empty choice")
    return texts


def _answer_index(answer: object, count: int) -> int:
    try:
        index = int(answer)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        raise FaultError(f"data.json's answer {answer!r} is no index of a choice") from None
    if not 0 <= index < count:
        raise FaultError(f"data.json's answer {index} is not one of {count} choices")
    return int(index)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError:
        raise FaultError("data.json is missing or unreadable") from None
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deep
        raise FaultError("data.json is not valid JSON") from None
    if not isinstance(data, dict):
        raise FaultError("data.json is not an object")
    return data


def _inside(base: Path, path: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(base)
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, a loop of links
        inside = False
    if not inside:
        raise FaultError(f"{shown(path)} lies outside the dataset folder")


def _member(base: Path, folder: Path, name: str) -> Path:
    """A file of a question's folder; the folder itself has been checked."""
    path = folder / name
    if Path(name).name != name or "\0" in name or os.path.islink(path):  # noqa: PTH114 (it never raises)
        _inside(base, path)
    return path
