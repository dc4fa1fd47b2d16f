"""Which samples of an optimizer step's batches are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from commit_tuning.errors import BatchError
from commit_tuning.measure.divergence import IGNORE_INDEX, TargetPositions
from commit_tuning.measure.forward import Batch

Kept = TypeVar("Kept")
Kind = frozenset[str]


def check_batches(batches: Batch | Sequence[Batch]) -> list[Batch]:
    """One batch or several micro-batches of one optimizer step, as a list; each must hold `labels`.

    Raises:
        BatchError: Not a mapping, no micro-batch at all, or no `labels`.
    """
    items = [batches] if isinstance(batches, Mapping) else list(batches)
    if not items:
        raise BatchError(
            "no micro-batch was given; pass the batch, or the list of micro-batches, of this optimizer step"
        )
    for item in items:
        if not isinstance(item, Mapping):
            raise BatchError(
                f"a batch must be a mapping such as the model's keyword arguments, not {type(item).__name__}"
            )
        if not isinstance(item.get("labels"), Tensor):
            keys = ", ".join(map(str, item)) or "none"
            raise BatchError(
                f"the batch has no 'labels' tensor (its keys: {keys}); the drift is measured at the answers"
            )
    return items


def count_target_tokens(batch: Batch) -> int | Tensor:
    """How many answer tokens a batch has: a scalar tensor where its labels are, so nothing waits for the device."""
    labels = batch.get("labels")
    return (labels != IGNORE_INDEX).sum() if isinstance(labels, Tensor) else 0


def kind_of(batch: Batch) -> Kind:
    """Which inputs a batch has, by name: those of an image batch are others than those of a text batch."""
    return frozenset(key for key, value in batch.items() if _holds_something(value))


def _holds_something(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0
    return isinstance(value, list | tuple | Mapping) and len(value) > 0


class Collector(Generic[Kept]):
    """The micro-batches of a step, no more of each kind than a measurement looks at, and none copied.

    Samples are counted with or without an answer: to look for one would wait for the device at every micro-batch.

    Args:
        samples: How many samples; None for all.
    """

    def __init__(self, samples: int | None) -> None:
        self._samples = samples
        self._batches: list[Kept] = []
        self._counts: Counter[Kind] = Counter()
        self._answers: int | Tensor = 0

    def add(self, batch: Batch, kept: Kept) -> None:
        """Keep something of a micro-batch, such as itself, unless there are enough of its kind."""
        self._answers += count_target_tokens(batch)
        kind = kind_of(batch)
        if self._samples is None or self._counts[kind] < self._samples:
            self._batches.append(kept)
            labels = batch.get("labels")
            self._counts[kind] += labels.shape[0] if isinstance(labels, Tensor) else 0

    def take(self) -> tuple[list[Kept], int | Tensor]:
        """What was kept, and how many answer tokens there were in all; forgets both."""
        kept, answers = self._batches, self._answers
        self._batches, self._answers = [], 0
        self._counts.clear()
        return kept, answers


def take_samples(
    batches: Sequence[Batch], samples: int | None, shift: bool = True, placeholders: Collection[int] = ()
) -> list[Batch]:
    """The first `samples` samples with an answer of a list of micro-batches; the first of all if none has one.

    Micro-batches with different inputs, such as text and images, have the same share of the samples, as far as they
    have so many, and at least one each: no encoder is hidden by what comes first. A micro-batch is cut only where it is
    sure which rows of its tensors and lists are whose; otherwise it is taken whole.

    Args:
        batches: Micro-batches.
        samples: How many samples; None for all, with or without an answer.
        shift: Whether the logits at position j predict the label at j + 1.
        placeholders: Ids of the tokens that stand for an encoder's output.

    Raises:
        BatchError: Labels are not two-dimensional.
    """
    if samples is None:
        return list(batches)
    answered = [TargetPositions.from_labels(batch["labels"], shift).mask.any(1).tolist() for batch in batches]
    if not any(map(any, answered)):  # so that this rank runs the model as the others do
        answered = [[True] * len(rows) for rows in answered]
    kinds = [*map(kind_of, batches)]
    left = _shares(samples, kinds, map(sum, answered))
    taken: list[Batch] = []
    for batch, kind, has_answer in zip(batches, kinds, answered, strict=True):
        rows = [row for row, answers in enumerate(has_answer) if answers][: max(left[kind], 0)]
        if rows:
            cut = len(has_answer) > left[kind] and _has_a_row_per_sample(batch, placeholders)
            taken.append({key: _pick(value, rows) for key, value in batch.items()} if cut else batch)
        left[kind] -= sum(has_answer)
    return taken


def _shares(samples: int, kinds: Sequence[Kind], counts: Iterable[int]) -> Counter[Kind]:
    """Kind to how many samples are taken of it: dealt out in turn to those that have more, one to each in any case.

    Args:
        samples: How many are dealt out.
        kinds: Of the micro-batches.
        counts: How many samples each micro-batch has.
    """
    available: Counter[Kind] = Counter()
    for kind, count in zip(kinds, counts, strict=True):
        available[kind] += count
    if available.total() <= samples:
        return Counter(dict.fromkeys(kinds, samples))  # every one, and no micro-batch has to be cut
    turns = [kind for turn in range(samples) for kind, count in available.items() if count > turn]
    return Counter(turns[: max(samples, sum(count > 0 for count in available.values()))])


def _pick(value: Any, rows: list[int]) -> Any:
    """Some rows of a tensor or list; the first are a view."""
    if not isinstance(value, Tensor | list | tuple):
        return value
    if rows == [*range(len(rows))]:
        return value[: len(rows)]
    return value[rows] if isinstance(value, Tensor) else type(value)(value[row] for row in rows)


def _has_a_row_per_sample(batch: Batch, placeholders: Collection[int]) -> bool:
    """Whether everything in a batch has one row for each sample, in their order.

    Images, tiles and sounds of all samples may stand in one list. That is one for each sample if they are as many as
    the samples and every sample has a placeholder.
    """
    size, ids = batch["labels"].shape[0], batch.get("input_ids")
    if isinstance(ids, Tensor):
        for token in placeholders:
            has = (ids == token).any(-1)
            if has.any() and not has.all():
                return False
    return all(_rows(key, value) in (size, None) for key, value in batch.items())


def _rows(key: str, value: Any) -> int | None:
    """How many rows a value of a batch has; None if it is the same for all samples, 0 if that cannot be told."""
    if value is None or isinstance(value, str | bool | int | float):
        return None
    if isinstance(value, Tensor):
        many_axes = key == "position_ids" and value.ndim > 2  # [axes, batch, length]
        return 0 if value.ndim == 0 or many_axes else value.shape[0]
    return len(value) if isinstance(value, list | tuple) else 0
