"""Reader of IconQA's official folder layout as a map-style dataset.

A multi-image question becomes one picture, for models that take one image per question. Where the question has no
picture of its own (``image.png`` of one plain colour), the choices are laid out two in a row and are named by their
place, "top left" and so on; otherwise the question's picture is on top and the choices stand in one row below, each
under its letter, and are named by it. The answer is that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from commit_tuning.data.files import FaultError, check_inside, located, member, read_json, said, shown, user_path, words
from commit_tuning.data.pictures import (
    LETTERS,
    MAX_PIXELS,
    check_picture,
    choice_names,
    collage,
    load_picture,
    picture_names,
)
from commit_tuning.data.readers.base import Place, Reader, Record
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError

KINDS = ("choose_txt", "choose_img", "fill_in_blank")


_IMAGE = ("image.png", *picture_names("image"))


class IconQA(Reader[str]):
    """The questions of one split, in the order of their ids; see :class:`Reader`.

    Args:
        root: Folder that holds ``iconqa/`` (or ``iconqa_data/iconqa/``), or that folder itself.
        split: train, val or test (any folder of the layout).
        kinds: Kinds to read; None for those that exist.
        limit: Read at most this many questions.
        strict: Raise on the first broken question instead of skipping it.
    """

    layout = "iconqa/<split>/{choose_txt,choose_img,fill_in_blank}/<id>/{image.png,data.json}"

    def __init__(
        self,
        root: str | Path,
        split: str,
        kinds: Sequence[str] | None = None,
        limit: int | None = None,
        strict: bool = False,
    ) -> None:
        self._base = self._find_base(user_path(root), split)
        folder = self._base / split
        super().__init__(folder, self._question_folders(folder, kinds), limit=limit, strict=strict)

    def _find_base(self, root: Path, split: str) -> Path:
        for base in (root / "iconqa", root / "iconqa_data" / "iconqa", root):
            if Path(split).name == split and split not in {"", ".", ".."} and (base / split).is_dir():
                return base.resolve()
        raise UserError(f"no split {split!r} of IconQA in {root}: expected {root}/{self.layout}")

    def _question_folders(self, folder: Path, kinds: Sequence[str] | None) -> list[tuple[Place, str]]:
        unknown = sorted(set(kinds or ()) - set(KINDS))
        if unknown:
            raise UserError(f"unknown kind of question: {', '.join(unknown)}; there are {', '.join(KINDS)}")
        absent = [kind for kind in kinds or () if not (folder / kind).is_dir()]
        if absent:
            raise UserError(f"no {', '.join(absent)} in {folder}: expected {self.layout}")
        present = [kind for kind in kinds or KINDS if (folder / kind).is_dir()]
        self._straight = {folder / kind for kind in present if (folder / kind).resolve() == folder / kind}
        found = [(Place(path), kind) for kind in present for path in (folder / kind).iterdir() if path.is_dir()]
        return sorted(found, key=lambda it: (not it[0].path.name.isdigit(), it[0].path.name.zfill(12), it[1]))

    def _read(self, place: Place, entry: str) -> Iterator[Record]:
        folder, kind = place.path, entry
        if folder.parent not in self._straight or folder.is_symlink():
            check_inside(self._base, folder)
        data = read_json(member(self._base, folder, "data.json"))
        if not isinstance(data, dict):
            raise FaultError("data.json is not an object")
        question, answer = words(data.get("question"), "question in data.json"), data.get("answer")
        names: tuple[str, ...] = ()
        texts: tuple[str, ...] | None = None
        if kind == "fill_in_blank":
            answer = said(answer, "answer in data.json")
        else:
            names = _check_choices(data.get("choices"))
            texts = names if kind == "choose_txt" else LETTERS[: len(names)]
            answer = texts[_answer_index(answer, len(texts))]
        own = [_IMAGE]
        own += [(str(name),) for name in data["choices"]] if kind == "choose_img" else []
        pictures = tuple(located(self._base, folder, *spellings) for spellings in own)
        pixels = sum(check_picture(picture) for picture in pictures)
        if pixels > MAX_PIXELS:
            raise FaultError(f"the {len(pictures)} pictures are too large together: {pixels} pixels")
        yield Record(place, folder.name, kind, question, texts, (answer,), pictures)

    def _sample(self, record: Record) -> Sample:
        images = [load_picture(path) for path in record.pictures]
        image, choices, answers = images[0], record.choices, record.answers
        if record.kind == "choose_img":
            image, choices = collage(images[0], images[1:]), choice_names(images[0], len(images) - 1)
            answers = (choices[LETTERS.index(answers[0])],)
        return Sample(record.id, record.kind, record.question, choices, answers, image)


def _check_choices(choices: object) -> tuple[str, ...]:
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(LETTERS):
        raise FaultError("data.json has no choices")
    texts = tuple(str(choice).strip() for choice in choices)
    if not all(texts):
        raise FaultError("data.json has an empty choice")
    return tuple(words(text, "choice") for text in texts)


def _answer_index(answer: object, count: int) -> int:
    try:
        index = int(answer)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        raise FaultError(f"data.json's answer {shown(str(answer))!r} is no index of a choice") from None
    if not 0 <= index < count:
        raise FaultError(f"data.json's answer {index} is not one of {count} choices")
    return int(index)
