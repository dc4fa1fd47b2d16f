"""The recipe's dataset: found or built, its splits, and an order of the samples that only the seed decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from commit_tuning.data.building import MANIFEST
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.reading import SPLITS, Skipped, check_option
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError
from commit_tuning.experiments.schema import Data
from commit_tuning.experiments.tasks import TASKS, Samples


def ensure_data(settings: Data, workers: int = 1) -> Path:
    """The dataset's folder; a dataset that is built is made first if it is not there yet.

    Args:
        settings: The recipe's `data` section.
        workers: Processes that may build.

    Raises:
        UserError: The folder is not a dataset, or something that building needs is not installed.
    """
    return TASKS[settings.dataset].root(settings.root, workers)


class Questions(Protocol):
    """The questions of a split as a run needs them; `indices` are positions in the split."""

    collator: VisionCollator
    skipped: list[Skipped]

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One question as it was read."""
        ...

    def words(self, index: int) -> Sample:
        """The same; its picture and sound may be left out."""
        ...

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        ...

    def prompts(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch for generation."""
        ...


class StreamedQuestions:
    """Read and encoded each time they are asked for: any size of dataset."""

    def __init__(self, samples: Samples, collator: VisionCollator) -> None:
        self._samples, self.collator = samples, collator
        self.skipped = samples.skipped

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def words(self, index: int) -> Sample:
        """One question."""
        return self._samples[index]

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        return self.collator([self._samples[index] for index in indices])

    def prompts(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch for generation."""
        return self.collator.prompts([self._samples[index] for index in indices])


class StoredQuestions:
    """Read and encoded once, then kept in memory: for small media and many runs. The batches are the same."""

    _AT_ONCE = 100

    def __init__(self, samples: Samples, collator: VisionCollator) -> None:
        self._samples, self.collator, self.skipped = samples, collator, samples.skipped
        self._words: list[Sample] = []
        self._prompts: list[list[int]] = []
        parts: list[dict[str, Tensor]] = []
        for indices in chunks(list(range(len(samples))), self._AT_ONCE):
            read = [samples[index] for index in indices]
            self._words += [replace(sample, image=None, audio=None) for sample in read]
            prompts, media = collator.encode(read)
            self._prompts += prompts
            parts.append(media)
            first = {name: values.shape[1:] for name, values in parts[0].items()}
            for name, values in media.items():
                if len(values) != len(read) or values.shape[1:] != first[name]:
                    raise UserError(
                        f"data.in_memory: {name} has not one row of one size for each question, as where pictures are "
                        "cut into tiles; set data.in_memory=false"
                    )
        self._media = {name: torch.cat([media[name] for media in parts]) for name in parts[0]}

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def words(self, index: int) -> Sample:
        """One question without its picture and sound."""
        return self._words[index]

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        answers = [self.collator.target_ids(self._words[index]) for index in indices]
        return self.collator.training_batch([self._prompts[i] for i in indices], answers, self._chosen(indices))

    def prompts(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch for generation."""
        return self.collator.prompt_batch([self._prompts[i] for i in indices], self._chosen(indices))

    def _chosen(self, indices: list[int]) -> dict[str, Tensor]:
        return {name: values[indices] for name, values in self._media.items()}


def open_splits(root: Path, settings: Data, model_name: str, processor: Any, device: str) -> dict[str, Questions]:
    """Train, val and test questions, cut to the recipe's limits and encoded for a model."""
    if settings.in_memory:
        return stored_splits(root, settings, model_name, device)
    return {split: open_split(root, settings, split, processor, device) for split in SPLITS}


def open_split(root: Path, settings: Data, split: str, processor: Any, device: str) -> StreamedQuestions:
    """One split, read as it is asked for."""
    check_option(split, "split")
    return StreamedQuestions(_read(root, split, settings), VisionCollator(processor, device, settings.prompt))


@cache
def stored_splits(root: Path, settings: Data, model_name: str, device: str) -> dict[str, Questions]:
    """All splits in memory; made once per process, and before a worker is forked from it."""
    from commit_tuning.models.nano import load_processor

    collator = VisionCollator(load_processor(model_name), device, settings.prompt)
    return {split: StoredQuestions(_read(root, split, settings), collator) for split in SPLITS}


def _read(root: Path, split: str, settings: Data) -> Samples:
    return TASKS[settings.dataset].read(root, split, getattr(settings, f"{split}_limit"))


def data_checksum(root: Path) -> str | None:
    """The checksum in the manifest of the built dataset; for the official release, the sha256 of its list of splits."""
    manifest, splits = root / MANIFEST, root / "pid_splits.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["sha256"])
    return f"pid_splits:{hashlib.sha256(splits.read_bytes()).hexdigest()}" if splits.is_file() else None


def data_order(samples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of sample indices: one shuffled pass after another, cut into batches of equal size.

    The order is a function of the arguments alone, so every method that gets the same seed sees the same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(samples, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive parts of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
