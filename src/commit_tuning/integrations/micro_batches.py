"""What several trainers need: the micro-batches of one optimizer step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from commit_tuning.core.forward import Batch


class MicroBatches:
    """Collects the micro-batches of a step until there are enough samples; keeps no more than that in memory.

    Args:
        samples: How many the measurement takes from the front; None for all.
    """

    def __init__(self, samples: int | None) -> None:
        self._enough = samples
        self._batches: list[dict[str, Any]] = []
        self._samples = 0

    def add(self, batch: Batch) -> None:
        """Keep a micro-batch, unless there are enough; the tensors themselves are not copied."""
        if self._enough is None or self._samples < self._enough:
            self._batches.append(dict(batch))
            labels = batch.get("labels")
            self._samples += labels.shape[0] if isinstance(labels, Tensor) else 0

    def take(self) -> list[dict[str, Any]]:
        """What was collected; begins anew."""
        batches = self._batches
        self.clear()
        return batches

    def clear(self) -> None:
        """Begin anew."""
        self._batches, self._samples = [], 0
