"""Which module learns next to nothing, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from commit_tuning.partition.modules import LANGUAGE_MODEL

STARVED = 1 / 50  # of the base learning rate; drift is quadratic in the rate, so its share is the square of this


class StarvationDetector:
    """Finds modules that are held back measurement after measurement.

    A module is held back when its multiplier is below the lowest, when its rate against the language model's (for the
    language model: against an encoder's) is at the controller's bound, or when its drift is below 1/2500 of another
    module's. It starves once that holds for `patience` measurements in a row. A measurement without a module's drift
    is not one of its row: no batch came for it. Only until its first drift such measurements are a row of their own,
    because a module whose batches never come learns nothing.

    Args:
        patience: Measurements in a row.
        bound: The controller's `kappa_bound`; None where there is none.
        lowest: Multiplier below which a module is held back.

    Example:
        >>> detector = StarvationDetector(patience=2)
        >>> drift, multipliers = {"language_model": 1.0, "vision": 1e-6}, {"language_model": 1.0, "vision": 1.0}
        >>> [detector.observe(step, drift, multipliers) for step in (1, 6)]
        [[], ['vision']]
        >>> detector.starving
        {'vision': 1}
    """

    def __init__(self, patience: int, bound: float | None = None, lowest: float = STARVED) -> None:
        self._patience, self._bound, self._lowest = patience, bound, lowest
        self._streaks: dict[str, tuple[int, int]] = {}  # module: first step, measurements
        self._named: set[str] = set()
        self._seen: set[str] = set()

    @property
    def starving(self) -> dict[str, int]:
        """Module to the optimizer step (counted from 1) since which it starves."""
        return {name: since for name, (since, count) in self._streaks.items() if count >= self._patience}

    def observe(self, step: int, drift: Mapping[str, float], multipliers: Mapping[str, float]) -> list[str]:
        """Take note of a measurement.

        Args:
            step: The optimizer step, counted from 1.
            drift: Module to its drift; a module without a gradient is left out.
            multipliers: Module to its multiplier; modules at rest are left out and never starve.

        Returns:
            The modules that are found starving for the first time.
        """
        old = {name: streak for name, streak in self._streaks.items() if name in self._seen or name not in drift}
        self._seen |= drift.keys()
        judged = [name for name in multipliers if name in drift or name not in self._seen]
        held = [name for name in judged if self._held_back(name, drift, multipliers)]
        since = {name: old.get(name, (step, 0)) for name in held}
        waiting = {name: streak for name, streak in old.items() if name in multipliers and name not in judged}
        self._streaks = {**waiting, **{name: (first, count + 1) for name, (first, count) in since.items()}}
        fresh = [name for name in self.starving if name not in self._named]
        self._named.update(fresh)
        return fresh

    def _held_back(self, name: str, drift: Mapping[str, float], multipliers: Mapping[str, float]) -> bool:
        others = [other for other in multipliers if other != name]
        rivals = [other for other in others if LANGUAGE_MODEL in (name, other)]
        limit = multipliers[name] * self._bound * (1 - 1e-9) if self._bound else float("inf")
        return (
            multipliers[name] < self._lowest
            or any(multipliers[rival] >= limit for rival in rivals)
            or any(drift.get(name, 0.0) < STARVED**2 * drift.get(other, 0.0) for other in others)
        )

    def state_dict(self) -> dict[str, Any]:
        """The streaks so far."""
        return {"streaks": dict(self._streaks), "named": sorted(self._named), "seen": sorted(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        self._streaks, self._named = {n: (s, c) for n, (s, c) in state["streaks"].items()}, set(state["named"])
        self._seen = set(state["seen"])
