"""The datasets that a recipe can name: how each is read, built and scored. A new one is a line in `TASKS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from commit_tuning.data.aokvqa import AOKVQA
from commit_tuning.data.building import MANIFEST, check_built
from commit_tuning.data.clothoaqa import ClothoAQA
from commit_tuning.data.files import user_path
from commit_tuning.data.iconqa import IconQA
from commit_tuning.data.macs import MACS
from commit_tuning.data.nano_aokvqa import build_nano_aokvqa, default_nano_aokvqa_root
from commit_tuning.data.nano_clothoaqa import build_nano_clothoaqa, default_nano_clothoaqa_root
from commit_tuning.data.nano_iconqa import build_nano_iconqa, default_nano_root
from commit_tuning.data.nano_macs import build_nano_macs, default_nano_macs_root
from commit_tuning.data.nano_songdescriber import build_nano_songdescriber, default_nano_songdescriber_root
from commit_tuning.data.nano_textvqa import build_nano_textvqa, default_nano_textvqa_root
from commit_tuning.data.reading import Reader, Record, SkipList, tenth
from commit_tuning.data.sample import Sample
from commit_tuning.data.songdescriber import SongDescriber
from commit_tuning.data.textvqa import TextVQA
from commit_tuning.errors import UserError

WORD, WORDS, NANO_CAPTION, CAPTION = 4, 12, 20, 64  # new tokens


class Samples(Protocol):
    """The samples of a split."""

    skipped: SkipList

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One, decoded."""
        ...

    def record(self, index: int) -> Record:
        """One before its picture and sound are decoded."""
        ...


class Part:
    """Some samples of a reader, by position."""

    def __init__(self, reader: Samples, positions: Sequence[int]) -> None:
        self._reader, self._positions = reader, positions
        self.skipped = reader.skipped

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Sample:
        return self._reader[self._positions[index]]

    def record(self, index: int) -> Record:
        """One before its picture and sound are decoded."""
        return self._reader.record(self._positions[index])


Read = Callable[[Path, str, "int | None", bool], Samples]


@dataclass(frozen=True)
class Task:
    """A dataset and its metric.

    Attributes:
        read: Opens a split: folder, train, val or test, the most samples to read (None for all), and whether the first
            broken entry is an error.
        metric: A name in `commit_tuning.metrics.score.METRICS`.
        answer_tokens: New tokens that any answer fits in.
        build: Makes the dataset in a folder, `build(root, workers=)`; None where it is downloaded.
        default: Makes it in the cache, `default(workers=)`.
    """

    read: Read
    metric: str
    answer_tokens: int
    build: Callable[..., Path] | None = None
    default: Callable[..., Path] | None = None

    def root(self, chosen: str | None, workers: int = 1) -> Path:
        """The dataset's folder; one that is built here is made first if it is not there yet.

        Raises:
            UserError: The folder holds something else, is damaged, or something that building needs is not installed.
        """
        if chosen is None and self.default is not None:
            return self.default(workers=workers)
        folder = user_path(str(chosen))
        if self.build is None:
            return folder
        if os.path.isfile(folder / MANIFEST):  # noqa: PTH113 (it never raises)
            check_built(folder)
            return folder
        return self.build(folder, workers=workers)


def _splits(reader: Callable[..., Reader[Any]], **options: Any) -> Read:
    """A dataset whose three splits have answers."""
    return lambda root, split, limit, strict: reader(root, split, limit=limit, strict=strict, **options)


def _captions(reader: Callable[..., Reader[Any]]) -> Read:
    """Trained on each caption, scored against all of a clip's."""
    return lambda root, split, limit, strict: reader(
        root, split, captions="all" if split == "train" else "first", limit=limit, strict=strict
    )


def _hidden_test(reader: Callable[..., Reader[Any]], **options: Any) -> Read:
    """A dataset whose test answers are not public: its validation split is the test, a tenth of train validates."""

    def read(root: Path, split: str, limit: int | None, strict: bool) -> Samples:
        if split == "test":
            return reader(root, "val", limit=limit, strict=strict, **options)
        held_out, train = split == "val", reader(root, "train", strict=strict, **options)
        positions = [index for index in range(len(train)) if _validates(train.record(index)) == held_out]
        if not positions:
            raise UserError(f"the {len(train)} training questions in {root} leave none for {split}: more are needed")
        return Part(train, positions[:limit])

    return read


def _validates(record: Record) -> bool:
    """Whether the questions about a picture are held out: by its name alone, so that none is on both sides."""
    return tenth(record.pictures[0].name) == 0


TASKS: dict[str, Task] = {
    "iconqa": Task(_splits(IconQA), "iconqa", WORDS),
    "textvqa": Task(_hidden_test(TextVQA), "textvqa", WORDS),
    "aokvqa": Task(_hidden_test(AOKVQA), "aokvqa", WORDS),
    "aokvqa-direct": Task(_hidden_test(AOKVQA, setting="direct_answer"), "aokvqa/direct-answer", WORDS),
    "clothoaqa": Task(_splits(ClothoAQA), "clothoaqa", WORDS),
    "macs": Task(_captions(MACS), "macs", CAPTION),
    "song-describer": Task(_captions(SongDescriber), "song-describer", CAPTION),
    "nano-iconqa": Task(_splits(IconQA), "iconqa", WORD, build_nano_iconqa, default_nano_root),
    "nano-textvqa": Task(_splits(TextVQA), "textvqa", WORD, build_nano_textvqa, default_nano_textvqa_root),
    "nano-aokvqa": Task(_splits(AOKVQA), "aokvqa", WORD, build_nano_aokvqa, default_nano_aokvqa_root),
    "nano-aokvqa-direct": Task(
        _splits(AOKVQA, setting="direct_answer"),
        "aokvqa/direct-answer",
        WORD,
        build_nano_aokvqa,
        default_nano_aokvqa_root,
    ),
    "nano-clothoaqa": Task(_splits(ClothoAQA), "clothoaqa", WORD, build_nano_clothoaqa, default_nano_clothoaqa_root),
    "nano-macs": Task(_captions(MACS), "macs", NANO_CAPTION, build_nano_macs, default_nano_macs_root),
    "nano-song-describer": Task(
        _captions(SongDescriber),
        "song-describer",
        NANO_CAPTION,
        build_nano_songdescriber,
        default_nano_songdescriber_root,
    ),
}
"""Datasets by name."""
