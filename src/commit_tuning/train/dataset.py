"""The recipe's dataset: found or built, its splits, and an order of the samples that only the seed decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from commit_tuning.data.collate import RefusedError, VisionCollator
from commit_tuning.data.readers.base import SPLITS, DamagedError, Record, SkipList, Skipped, check_option
from commit_tuning.data.sample import Sample
from commit_tuning.data.tasks import Part, Samples, tasks
from commit_tuning.errors import UserError
from commit_tuning.storage import sha256
from commit_tuning.train.recipe.schema import Data


def ensure_data(settings: Data, workers: int = 1) -> Path:
    """The dataset's folder; a dataset that is built is made first if it is not there yet.

    Args:
        settings: The recipe's `data` section.
        workers: Processes that may build.

    Raises:
        UserError: The folder is not a dataset, or something that building needs is not installed.
    """
    return tasks()[settings.dataset].root(settings.root, workers)


class Questions(Protocol):
    """The questions of a split as a run needs them; `indices` are positions in the split."""

    collator: VisionCollator
    skipped: SkipList

    @property
    def checksum(self) -> str:
        """Of everything that the questions say and show; computed when it is first asked for."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One question as it was read."""
        ...

    def expect(self, indices: list[int]) -> None:
        """Say which questions come next, so that those that are kept can be encoded together."""
        ...

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        ...

    def prompts(self, indices: list[int]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Those that can be decoded, perhaps without picture and sound, and their batch for generation."""
        ...


class StreamedQuestions:
    """Read and encoded each time they are asked for: any size of dataset.

    One that turns out to be damaged, or that the collator refuses, goes to `skipped`, and the next good one takes its
    place in training; `strict`, it is an error.
    """

    def __init__(self, samples: Samples, collator: VisionCollator, strict: bool = False) -> None:
        self._samples, self.collator, self._strict = samples, collator, strict
        self.skipped = samples.skipped
        self._refused: set[int] = set()

    @cached_property
    def checksum(self) -> str:
        """As `samples_checksum` computes it."""
        return samples_checksum(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._first_from(index)[1]

    def expect(self, indices: list[int]) -> None:
        """Do nothing: a question is read when it is asked for."""

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        while True:
            found = [self._first_from(index) for index in indices]
            try:
                return self.collator([sample for _, sample in found])
            except RefusedError as error:
                skip_refused(self._samples, found, error, self._strict)
                self._refused.update(found[place][0] for place in error.reasons)

    def prompts(self, indices: list[int]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Those that can be asked, and their batch for generation."""
        found, (prompts, _, media) = encoded_of(self._samples, indices, self.collator, self._strict)
        return [sample for _, sample in found], self.collator.prompt_batch(prompts, media) if found else {}

    def _first_from(self, index: int) -> tuple[int, Sample]:
        order = (at for at in chain(range(index, len(self)), range(index)) if at not in self._refused)
        for found in decoded(self._samples, order, self._strict):
            return found
        raise _nothing(self.skipped)


@dataclass(frozen=True)
class _Row:
    """One question as it is kept: without picture and sound, its token ids, and its row of each tensor of media."""

    words: Sample
    prompt: list[int]
    answer: list[int]
    media: dict[str, Tensor]


class StoredQuestions(StreamedQuestions):
    """Read and encoded when first asked for, then kept in memory: for small media and many runs.

    The batches are the same. What cannot be encoded is listed and left out when the split is opened, as the words tell
    it. A picture that turns out to be damaged is listed when it is asked for; the next good one takes its place.
    """

    _AT_ONCE = 100
    _FIRST = 4

    def __init__(self, samples: Samples, collator: VisionCollator, strict: bool = False) -> None:
        super().__init__(samples, collator, strict)
        self._all = samples
        self._rows: dict[int, _Row] = {}
        self._form: dict[str, torch.Size] | None = None
        self._keeps = True
        everything = range(len(samples))
        for part in chunks(list(everything), self._FIRST):
            self._keep(part)
            if self._rows or not self._keeps:
                break
        else:
            raise _nothing(self.skipped)
        if not self._keeps:
            raise UserError(
                f"data.in_memory: {', '.join(self._form or ())} has not one row of one size for each question, as "
                "where pictures are cut into tiles; set data.in_memory=false"
            )
        words = [_words(samples.record(index)) for index in everything]
        first = next(iter(self._rows.values()))
        self._fill(collator.doubtful(words, first.words, len(first.prompt)))
        good = [index for index in everything if index not in self._refused]
        self._samples, self._refused = Part(samples, good), set()
        self._rows = {place: self._rows[index] for place, index in enumerate(good) if index in self._rows}

    @cached_property
    def checksum(self) -> str:
        """As `samples_checksum` computes it."""
        return samples_checksum(self._all)

    def training(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch with answers and labels."""
        while missing := self._missing(map(self._place, indices)):
            self._keep(missing)
        if not self._keeps:
            return super().training(indices)
        rows = [self._rows[self._place(index)] for index in indices]
        return self.collator.training_batch([row.prompt for row in rows], [row.answer for row in rows], _media(rows))

    def prompts(self, indices: list[int]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Those that can be asked, without pictures and sounds, and their batch for generation."""
        self._keep(self._missing(indices))
        if not self._keeps:
            return super().prompts(indices)
        rows = [self._rows[index] for index in indices if index not in self._refused]
        batch = self.collator.prompt_batch([row.prompt for row in rows], _media(rows)) if rows else {}
        return [row.words for row in rows], batch

    def expect(self, indices: list[int]) -> None:
        """Encode questions, as many together as come next."""
        self._fill(map(self._place, indices))

    def fill(self) -> None:
        """Encode all questions, so that what is forked from this process encodes none."""
        self._fill(range(len(self)))

    def _fill(self, indices: Iterable[int]) -> None:
        for part in chunks(self._missing(indices), self._AT_ONCE):
            if self._keeps:
                self._keep(part)

    def _missing(self, indices: Iterable[int]) -> list[int]:
        """Those that are not kept and might be."""
        left_out = self._rows.keys() | self._refused
        return [index for index in dict.fromkeys(indices) if self._keeps and index not in left_out]

    def _place(self, index: int) -> int:
        """The question itself, or the one that takes its place."""
        order = chain(range(index, len(self)), range(index))
        for at in order:
            if at not in self._refused:
                return at
        raise _nothing(self.skipped)

    def _keep(self, indices: list[int]) -> None:
        """Encode some questions and keep them, unless their media are not a row of one size each."""
        found, (prompts, answers, media) = encoded_of(self._samples, indices, self.collator, self._strict)
        self._refused.update(set(indices) - {index for index, _ in found})
        if not found:
            return
        form = {name: values.shape[1:] for name, values in media.items()}
        self._form = self._form or form
        if form != self._form or any(len(values) != len(found) for values in media.values()):
            self._keeps = False
        if not self._keeps:
            return
        for row, (index, sample) in enumerate(found):
            of_it = {name: values[row] for name, values in media.items()}
            self._rows[index] = _Row(replace(sample, image=None, audio=None), prompts[row], answers[row], of_it)


def _media(rows: list[_Row]) -> dict[str, Tensor]:
    return {name: torch.stack([row.media[name] for row in rows]) for name in rows[0].media}


def _words(record: Record) -> Sample:
    return Sample(record.id, record.kind, record.question, record.choices, record.answers)


def open_splits(
    root: Path, settings: Data, model_name: str, device: str, trust_remote_code: bool = False
) -> dict[str, Questions]:
    """Train, val and test questions, cut to the recipe's limits and encoded for a model, which need not be loaded."""
    if settings.in_memory:
        return stored_splits(root, settings, model_name, device, trust_remote_code)
    return {split: open_split(root, settings, split, model_name, device, trust_remote_code) for split in SPLITS}


def open_split(  # noqa: PLR0917 - as open_splits, and the split
    root: Path, settings: Data, split: str, model_name: str, device: str, trust_remote_code: bool = False
) -> StreamedQuestions:
    """One split, read as it is asked for."""
    check_option(split, "split")
    collator = _collator(settings, model_name, device, trust_remote_code)
    return StreamedQuestions(_read(root, split, settings), collator, settings.strict)


@cache
def stored_splits(
    root: Path, settings: Data, model_name: str, device: str, trust_remote_code: bool = False
) -> dict[str, Questions]:
    """All splits in memory; made once per process, and before a worker is forked from it."""
    collator = _collator(settings, model_name, device, trust_remote_code)
    return {split: StoredQuestions(_read(root, split, settings), collator, settings.strict) for split in SPLITS}


def _collator(settings: Data, model_name: str, device: str, trust_remote_code: bool) -> VisionCollator:
    from commit_tuning.models.load import load_processor, max_positions

    longest = max_positions(model_name, trust_remote_code=trust_remote_code)
    most = [tokens for tokens in (settings.max_tokens, longest) if tokens is not None]
    return VisionCollator(
        load_processor(model_name, trust_remote_code=trust_remote_code),
        device,
        settings.prompt,
        max_tokens=min(most, default=None),
        cut=settings.too_long == "cut",
        room=tasks()[settings.dataset].answer_tokens,
    )


def _read(root: Path, split: str, settings: Data) -> Samples:
    return tasks()[settings.dataset].read(root, split, getattr(settings, f"{split}_limit"), settings.strict)


def decoded(samples: Samples, indices: Iterable[int], strict: bool) -> Iterator[tuple[int, Sample]]:
    """Those samples with their positions; a damaged one goes to `samples.skipped` instead, or strict, is an error."""
    for index in indices:
        try:
            sample = samples[index]
        except DamagedError as error:
            if strict:
                raise
            samples.skipped.note(error.skipped)
        else:
            yield index, sample


def encoded_of(
    samples: Samples, indices: Iterable[int], collator: VisionCollator, strict: bool
) -> tuple[list[tuple[int, Sample]], tuple[list[list[int]], list[list[int]], dict[str, Tensor]]]:
    """Those samples, with their positions, that can be decoded and encoded, and what they are encoded to.

    The others go to `samples.skipped`, or strict, the first is an error.
    """
    found = list(decoded(samples, indices, strict))
    while found:
        try:
            return found, collator.encode([sample for _, sample in found])
        except RefusedError as error:
            skip_refused(samples, found, error, strict)
            found = [one for place, one in enumerate(found) if place not in error.reasons]
    return [], ([], [], {})


def skip_refused(samples: Samples, found: list[tuple[int, Sample]], error: RefusedError, strict: bool) -> None:
    """List what the collator refused of a batch, or strict, raise it."""
    if strict:
        raise error
    for place, reason in error.reasons.items():
        where = samples.record(found[place][0]).place
        samples.skipped.note(Skipped(where.path, reason, where.line))


def _nothing(skipped: list[Skipped]) -> UserError:
    return UserError(f"no question can be used; the first: {skipped[0]}")


def data_checksums(root: Path, settings: Data) -> dict[str, str]:
    """The checksum of each split as it lies there now, cut to the recipe's limits.

    Raises:
        UserError: The data cannot be read.
    """
    return {split: samples_checksum(_read(root, split, settings)) for split in SPLITS}


def samples_checksum(samples: Samples) -> str:
    """Compute the SHA-256 of what samples say, in their order: texts, and the content of pictures and sounds.

    Files are read in parts, each file once.

    Raises:
        UserError: A picture or sound cannot be read any more.
    """
    digest, content = hashlib.sha256(), cache(_file_checksum)
    for record in map(samples.record, range(len(samples))):
        media = [*record.pictures, *([] if record.sound is None else [record.sound])]
        said = [record.id, record.kind, record.question, record.choices, record.answers, [content(p) for p in media]]
        digest.update(json.dumps(said).encode() + b"\n")
    return digest.hexdigest()


def _file_checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}; restore the dataset") from None


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
