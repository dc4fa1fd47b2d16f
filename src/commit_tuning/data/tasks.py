"""The datasets that a recipe can name: how each is read and scored. A new one is a line in `TASKS`, or a plugin's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from commit_tuning.data.files import user_path
from commit_tuning.data.readers.aokvqa import AOKVQA
from commit_tuning.data.readers.base import Reader, Record, SkipList, tenth
from commit_tuning.data.readers.clothoaqa import ClothoAQA
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.data.readers.macs import MACS
from commit_tuning.data.readers.songdescriber import SongDescriber
from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError
from commit_tuning.plugins import load_plugins

WORDS, CAPTION = 12, 64  # new tokens


class Samples(Protocol):
    """The samples of a split."""

    skipped: SkipList

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return a decoded sample."""
        ...

    def record(self, index: int) -> Record:
        """Return a sample before its picture and sound are decoded."""
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
        """Return a sample before its picture and sound are decoded."""
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
        make: Returns the dataset's folder, and makes the dataset there if it is missing: `make(root, workers)`, where
            `root` is None for a folder in the cache. None where the dataset is downloaded.
    """

    read: Read
    metric: str
    answer_tokens: int
    make: Callable[[Path | None, int], Path] | None = None

    def root(self, chosen: str | None, workers: int = 1) -> Path:
        """Return the dataset's folder; a dataset that is made here is made first if it is missing.

        Raises:
            UserError: The folder holds something else, is damaged, or something that making needs is not installed.
        """
        folder = None if chosen is None else user_path(chosen)
        if self.make is not None:
            return self.make(folder, workers)
        if folder is None:
            raise UserError("data.root is missing: name the folder that the dataset lies in")
        return folder


def splits(reader: Callable[..., Reader[Any]], **options: Any) -> Read:
    """Return a reader of a dataset whose three splits have answers."""
    return lambda root, split, limit, strict: reader(root, split, limit=limit, strict=strict, **options)


def captions(reader: Callable[..., Reader[Any]]) -> Read:
    """Return a reader for training on each caption and scoring against all captions of a clip."""
    return lambda root, split, limit, strict: reader(
        root, split, captions="all" if split == "train" else "first", limit=limit, strict=strict
    )


def _hidden_test(reader: Callable[..., Reader[Any]], **options: Any) -> Read:
    """Return a reader without public test answers: validation is the test, and a tenth of train validates."""

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
    """Tell whether a picture's questions are held out: by its name alone, so that none is on both sides."""
    return tenth(record.pictures[0].name) == 0


TASKS: dict[str, Task] = {
    "iconqa": Task(splits(IconQA), "iconqa", WORDS),
    "textvqa": Task(_hidden_test(TextVQA), "textvqa", WORDS),
    "aokvqa": Task(_hidden_test(AOKVQA), "aokvqa", WORDS),
    "aokvqa-direct": Task(_hidden_test(AOKVQA, setting="direct_answer"), "aokvqa/direct-answer", WORDS),
    "clothoaqa": Task(splits(ClothoAQA), "clothoaqa", WORDS),
    "macs": Task(captions(MACS), "macs", CAPTION),
    "song-describer": Task(captions(SongDescriber), "song-describer", CAPTION),
}
"""Datasets by name; plugins add theirs."""


def tasks() -> Mapping[str, Task]:
    """Return the datasets by name, with those of plugins."""
    load_plugins()
    return TASKS
