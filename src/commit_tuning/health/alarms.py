"""What a training is warned of: modules that stand still or starve, numbers that are not finite, what was left out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from commit_tuning.config import CoMMITConfig
from commit_tuning.errors import NoTargetError, warn
from commit_tuning.measure.probe import Measurement
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
        bound: The controller's bound on a ratio of rates; None where there is none.
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


SKIPPED = 20  # optimizer steps in a row; loss scaling that looks for its scale skips fewer


class Alarms:
    """Warns once of each fault, on behalf of whoever called the monitor.

    Args:
        config: Settings; the patience and bound of starvation matter here.

    Attributes:
        starvation: Which modules learn next to nothing.
    """

    def __init__(self, config: CoMMITConfig) -> None:
        self.starvation = StarvationDetector(
            config.starvation_patience,
            bound=config.ratio_bound,
            lowest=0.0 if config.sets_drift else STARVED,
        )
        self._patience, self._still, self._unanswered = config.starvation_patience, set[str](), 0
        self._skipped, self._at_zero = 0, dict[str, int]()
        self._said_zero_loss = self._said_no_memory = False

    def unanswered(self, step: int, error: NoTargetError, before_the_first: bool) -> None:
        """A batch without an answer was to be measured.

        Args:
            step: The optimizer step, counted from 1.
            error: Says so.
            before_the_first: Whether nothing was ever measured.

        Raises:
            NoTargetError: That is so for `starvation_patience` batches.
        """
        self._unanswered += 1
        if before_the_first and self._unanswered >= self._patience:
            raise error
        if self._unanswered == 1:
            warn(
                f"every label of the batch at optimizer step {step} is -100: nothing can be measured, and the next "
                "batch with an answer is measured instead; see how the labels are masked"
            )

    def skipped(self, step: int, skipped: bool) -> None:
        """Count the optimizer steps in a row that were skipped.

        Args:
            step: The optimizer step that was to come, counted from 1.
            skipped: Whether the last one was.
        """
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped == SKIPPED:
            warn(
                f"the optimizer skipped {SKIPPED} steps in a row before its step {step}: gradients overflow under loss "
                "scaling, and nothing is trained; is the loss finite, would bfloat16 do?"
            )

    def out_of_memory(self, step: int, samples: int, fewer: int) -> None:
        """A measurement did not fit into memory.

        Args:
            step: The optimizer step, counted from 1.
            samples: How many samples were to be measured.
            fewer: How many will be from now on.
        """
        if self._said_no_memory:
            return
        self._said_no_memory = fewer == samples
        remedy = f"the next ones take {fewer} samples" if fewer < samples else "there is no memory for a single sample"
        warn(
            f"the measurement of {samples} samples at optimizer step {step} ran out of memory and is left out; "
            f"{remedy}. Training goes on at the learning rates there are; see probe.samples"
        )

    def measured(
        self,
        step: int,
        found: Measurement,
        idle: Collection[str],
        moved: Collection[str],
        *,
        rates: Mapping[str, float],
        norms: Mapping[str, float],
    ) -> None:
        """Look for modules without a measurable drift: kappa does not exist then, and says so.

        Not while samples without its input explain it and another module moves: it starves if that goes on.

        Args:
            step: The optimizer step, counted from 1.
            found: What was measured at it.
            idle: The modules without a gradient.
            moved: The modules whose parameters have changed.
            rates: Module to its learning rate.
            norms: `theta_norm/<module>` before the step and `step_norm/<module>`.
        """
        readings = found.readings
        unseen = {name for name, reading in readings.items() if reading.drift == 0 and (name in idle or name in moved)}
        for name, reading in readings.items():
            explained = name in unseen and len(unseen) < len(readings)
            if reading.fault is None or name in self._still or explained or rates[name] == 0:
                continue
            self._still.add(name)
            warn(
                f"the drift of module {name!r} {reading.fault} at optimizer step {step}: no kappa can be taken. "
                f"{_likely_cause(found, norms, reading.drift)}"
            )
        if found.loss == 0 and not self._said_zero_loss:
            self._said_zero_loss = True
            warn(
                f"the loss of the measured samples is exactly zero at optimizer step {step}: there is nothing left to "
                "learn from them; do the labels stand in the input?"
            )

    def resting(self, step: int, rates: Mapping[str, float], multipliers: Mapping[str, float]) -> None:
        """Look for modules whose base learning rate is zero for `starvation_patience` measurements in a row.

        Args:
            step: The optimizer step, counted from 1.
            rates: Module to its learning rate.
            multipliers: Module to its multiplier; one at zero rests on purpose.
        """
        for name, rate in rates.items():
            at_zero = rate == 0 and multipliers[name] != 0
            self._at_zero[name] = self._at_zero.get(name, 0) + 1 if at_zero else 0
            if self._at_zero[name] == self._patience:
                warn(
                    f"the learning rate of module {name!r} was zero at {self._patience} measurements in a row, the "
                    f"last at optimizer step {step}: the module does not train; see its parameter groups and the "
                    "scheduler"
                )

    def learning(self, step: int, drift: Mapping[str, float], multipliers: Mapping[str, float]) -> None:
        """Look for modules that learn next to nothing; as for `StarvationDetector.observe`."""
        for name in self.starvation.observe(step, drift, multipliers):
            own = drift.get(name, 0.0)
            why = (
                f"its learning rate is {multipliers[name]:.3g} of its base rate and its drift {own:.3g} nats, "
                f"of {max(drift.values()):.3g} in the module that moves most; see docs/explanation/stability.md"
            )
            if own == 0:
                why = "nothing of it shows in the outputs. Do the batches hold its inputs, does a gradient reach it?"
            warn(f"module {name!r} starves since optimizer step {self.starvation.starving[name]}: {why}")

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"starvation": self.starvation.state_dict(), "unanswered": self._unanswered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`, or what else it is part of."""
        self.starvation.load_state_dict(state["starvation"])
        self._unanswered = state.get("unanswered", 0)


def _likely_cause(found: Measurement, norms: Mapping[str, float], drift: float) -> str:
    """What may be behind a drift that is not finite, or zero."""
    for kind, when in (("theta_norm", "before the step"), ("step_norm", "since the step")):
        for name in found.readings:
            if not math.isfinite(norms.get(f"{kind}/{name}", 0.0)):
                return f"The weights of module {name!r} hold NaN or infinity {when}: go back to a checkpoint."
    if not math.isfinite(found.loss):
        return f"The loss of the measured samples is {found.loss:g} before the step."
    if not math.isfinite(drift):
        return "The outputs are not finite, or too noisy, once the module has moved; is its learning rate too high?"
    return "Does it get a gradient from this batch, is its learning rate above zero, is the loss finite?"
