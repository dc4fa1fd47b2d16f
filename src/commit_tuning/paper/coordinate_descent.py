"""Coordinate descent over the modules: the paper's baselines Feature CD and Language CD."""

from __future__ import annotations

from typing import Any

import torch

from commit_tuning.config import Switch
from commit_tuning.control.base import Controller
from commit_tuning.distributed import full_tensor
from commit_tuning.measure.divergence import exact_sum
from commit_tuning.partition.modules import ModulePartition


class CoordinateDescent(Controller):
    """Feature CD and Language CD: one side of the model until its weights are stable, then the other.

    The paper says "until its weights stabilize" and gives no criterion. Ours: the first side is stable once its weights
    move less, from one look to the next, than `tolerance` of what they moved before the second look; at
    `latest` at the latest. Looks are `window` optimizer steps apart.
    """

    def __init__(self, partition: ModulePartition, first: tuple[str, ...], switch: Switch) -> None:
        super().__init__(partition)
        self._partition, self._first, self._switch = partition, first, switch
        self._switched = False
        self._weights: list[torch.Tensor] | None = None
        self._initial_movement: float | None = None
        self._looked_at = 0

    def multipliers(self, step: int) -> dict[str, float]:
        """One for the modules of the current phase, zero for the others."""
        latest = self._switch.latest
        if not self._switched:
            self._switched = (latest is not None and step >= latest) or self._stable(step)
        if self._switched:
            self._weights = None
        return {name: float((name in self._first) != self._switched) for name in self._partition}

    def _stable(self, step: int) -> bool:
        """Whether the first side's weights moved less since the last look than the tolerance allows."""
        if self._weights is not None and step - self._looked_at < self._switch.window:
            return False
        weights = [p.detach().clone() for name in self._first for p in self._partition[name]]
        before, self._weights, self._looked_at = self._weights, weights, step
        if before is None:
            return False
        moved = (full_tensor(exact_sum((new - old).square())) for new, old in zip(weights, before, strict=True))
        movement = sum(map(float, moved)) ** 0.5
        if self._initial_movement is None:
            self._initial_movement = movement
            return False
        return bool(movement < self._switch.tolerance * self._initial_movement)

    def state_dict(self) -> dict[str, Any]:
        """The phase and what the stability criterion has seen."""
        return {
            "switched": self._switched,
            "weights": self._weights,
            "initial_movement": self._initial_movement,
            "looked_at": self._looked_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`, whatever device it was loaded on."""
        self._switched, weights = state["switched"], state["weights"]
        self._initial_movement, self._looked_at = state["initial_movement"], state["looked_at"]
        live = (p for name in self._first for p in self._partition[name])
        self._weights = None if weights is None else [value.to(p) for value, p in zip(weights, live, strict=True)]
