"""Reader of TextVQA 0.5.1 (Singh et al. 2019, https://textvqa.org/dataset): questions about text in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from commit_tuning.data.files import file_name, identity, texts, words
from commit_tuning.data.pictures import picture_names
from commit_tuning.data.readers.base import Place, Reader, Record, check_option, fields, find, json_entries
from commit_tuning.data.sample import DIRECT


class TextVQA(Reader[object]):
    """The questions of one split in the file's order, each with ten answers; see :class:`Reader`.

    A blank answer is one of the ten, which the official score counts. The answers of the test split are not public: all
    its entries are broken. OCR tokens are not read.

    Args:
        root: Folder in which the JSON files lie and the archives were unpacked; both may be one folder deeper, in
            ``annotations/`` and ``images/``.
        split: train or val.
        limit: Read at most this many questions.
        strict: Raise on the first broken entry instead of skipping it.
    """

    layout = "TextVQA_0.5.1_<split>.json ({data: [...]}), train_images/<image_id>.jpg (of train and val), test_images/"

    def __init__(self, root: str | Path, split: str, limit: int | None = None, strict: bool = False) -> None:
        check_option(split, "split of TextVQA")
        name = f"TextVQA_0.5.1_{split}.json"
        images = "test_images" if split == "test" else "train_images"
        self._images = find(root, (images, f"images/{images}", f"train_val_images/{images}"), self.layout).resolve()
        path = find(root, (name, f"annotations/{name}"), self.layout)
        super().__init__(path, json_entries(path, "data"), limit=limit, strict=strict)

    def _read(self, place: Place, entry: object) -> Iterator[Record]:
        item = fields(entry)
        what = "answers (those of TextVQA's test split are not public)"
        answers = texts(item.get("answers"), what, blank=True)
        name = identity(item.get("question_id"), "question_id")
        picture = self._picture(self._images, *picture_names(file_name(item.get("image_id"), "image_id")))
        yield Record(place, name, DIRECT, words(item.get("question"), "question"), None, answers, (picture,))
