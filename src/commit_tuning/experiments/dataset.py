"""The recipe's dataset: found or built, its splits, and an order of the samples that only the seed decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from commit_tuning.data.building import MANIFEST
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.iconqa import IconQA
from commit_tuning.data.nano_iconqa import build_nano_iconqa, default_nano_root
from commit_tuning.data.sample import Sample
from commit_tuning.experiments.schema import Data

SPLITS = ("train", "val", "test")


def ensure_data(settings: Data, workers: int = 1) -> Path:
    """The dataset's folder; the built dataset is made first if it is not there yet.

    Args:
        settings: The recipe's `data` section.
        workers: Processes that may build.

    Raises:
        UserError: The folder is not a dataset, or something that building needs is not installed.
    """
    if settings.dataset == "iconqa":
        return Path(str(settings.root))
    if settings.root is None:
        return default_nano_root(workers=workers)
    root = Path(settings.root)
    return root if (root / MANIFEST).is_file() else build_nano_iconqa(root, workers=workers)


class Questions(Protocol):
    """The questions of a split as a run needs them; `indices` are positions in the split."""

    collator: VisionCollator

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One question as it was read."""
        ...

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        ...

    def prompts(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch for generation."""
        ...


class StreamedQuestions:
    """Read and encoded each time they are asked for: any size of dataset."""

    def __init__(self, samples: IconQA, collator: VisionCollator) -> None:
        self._samples, self.collator = samples, collator

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        return self.collator([self._samples[index] for index in indices])

    def prompts(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch for generation."""
        return self.collator.prompts([self._samples[index] for index in indices])


class StoredQuestions:
    """Read and encoded once, then kept in memory: for small images and many runs. The batches are the same."""

    _AT_ONCE = 100

    def __init__(self, samples: IconQA, collator: VisionCollator) -> None:
        self._samples, self.collator = list(samples), collator
        parts = [collator.encode(part) for part in chunks(self._samples, self._AT_ONCE)]
        self._prompts = [prompt for prompts, _ in parts for prompt in prompts]
        self._images = {name: torch.cat([images[name] for _, images in parts]) for name in parts[0][1]}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        answers = [self.collator.target_ids(self._samples[index]) for index in indices]
        return self.collator.training_batch([self._prompts[i] for i in indices], answers, self._pictures(indices))

    def prompts(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch for generation."""
        return self.collator.prompt_batch([self._prompts[i] for i in indices], self._pictures(indices))

    def _pictures(self, indices: list[int]) -> dict[str, Tensor]:
        return {name: values[indices] for name, values in self._images.items()}


def open_splits(root: Path, settings: Data, model_name: str, processor: Any, device: str) -> dict[str, Questions]:
    """Train, val and test questions, cut to the recipe's limits and encoded for a model."""
    if settings.in_memory:
        return stored_splits(root, settings, model_name, device)
    collator = VisionCollator(processor, device=device)
    return {split: StreamedQuestions(_read(root, split, settings), collator) for split in SPLITS}


@cache
def stored_splits(root: Path, settings: Data, model_name: str, device: str) -> dict[str, Questions]:
    """All splits in memory; made once per process, and before a worker is forked from it."""
    from commit_tuning.models.nano import load_processor

    collator = VisionCollator(load_processor(model_name), device=device)
    return {split: StoredQuestions(_read(root, split, settings), collator) for split in SPLITS}


def _read(root: Path, split: str, settings: Data) -> IconQA:
    return IconQA(root, split, limit=getattr(settings, f"{split}_limit"))


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
