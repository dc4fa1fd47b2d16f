"""Which steps are measured, and which modules at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from commit_tuning.distributed.ranks import sum_over_ranks
from commit_tuning.distributed.shards import local
from commit_tuning.partition.modules import ModulePartition


class Schedule:
    """Decides which steps are measured.

    From a step on that is due, every module owes a measurement until the first step at which it has a gradient. Else
    batches of one kind that come in step with the interval would hide a module for ever.

    Args:
        partition: The modules.
        interval: Optimizer steps between two measurements; None never measures.
    """

    def __init__(self, partition: ModulePartition, interval: int | None) -> None:
        self._partition, self._interval = partition, interval
        self._owed: set[str] = set()
        self._owed_before: set[str] = set()  # what a step that is not made leaves

    def is_due(self, steps: int, out_of_turn: bool) -> bool:
        """Whether the next step is measured; asked once a step, with its gradients there.

        Args:
            steps: Finished optimizer steps.
            out_of_turn: Whether a measurement is wanted as soon as can be.
        """
        turn = self._interval is not None and (steps % self._interval == 0 or out_of_turn)
        self._owed_before, self._owed = self._owed, self._owed | set(self._partition if turn else ())
        return turn or bool(with_gradient(self._partition, self._owed))

    def paid(self, idle: set[str]) -> None:
        """The step was measured; `idle` modules had no gradient and still owe."""
        self._owed &= idle

    def missed(self) -> None:
        """The step was not made."""
        self._owed = self._owed_before

    def give_up(self) -> None:
        """Nothing is owed until the next step that is due."""
        self._owed = set()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"owed": sorted(self._owed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`."""
        self._owed = set(state["owed"])


def with_gradient(partition: ModulePartition, names: Iterable[str]) -> set[str]:
    """Those of some modules at which a gradient arrives, on any rank; every rank asks for the same modules."""
    asked = sorted(names)
    if not asked:
        return set()
    arrives = [float(any(map(_is_not_zero, partition[name]))) for name in asked]
    ranks = sum_over_ranks(arrives, partition[asked[0]][0].device)
    return {name for name, count in zip(asked, ranks, strict=True) if count}


def _is_not_zero(parameter: nn.Parameter) -> bool:
    """Whether a parameter has a gradient; under FSDP2, in this rank's part of it."""
    return parameter.grad is not None and bool(local(parameter.grad).any())
