"""What a monitor warns of: modules that stand still or starve, and batches without an answer."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from commit_tuning.config import CoMMITConfig
from commit_tuning.core.probe import Measurement
from commit_tuning.core.starvation import STARVED, StarvationDetector
from commit_tuning.errors import NoAnswerError


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
            bound=config.kappa_bound if config.has_bound and not config.sets_drift else None,
            lowest=0.0 if config.sets_drift else STARVED,
        )
        self._patience, self._still, self._unanswered = config.starvation_patience, set[str](), 0

    def unanswered(self, step: int, error: NoAnswerError, before_the_first: bool) -> None:
        """A batch without an answer was to be measured.

        Args:
            step: The optimizer step, counted from 1.
            error: Says so.
            before_the_first: Whether nothing was ever measured.

        Raises:
            NoAnswerError: That is so for `starvation_patience` batches.
        """
        self._unanswered += 1
        if before_the_first and self._unanswered >= self._patience:
            raise error
        if self._unanswered == 1:
            _warn(
                f"every label of the batch at optimizer step {step} is -100: nothing can be measured, and the next "
                "batch with an answer is measured instead; see how the labels are masked"
            )

    def measured(
        self, step: int, found: Measurement, idle: Collection[str], moved: Collection[str], rates: Mapping[str, float]
    ) -> None:
        """Look for modules without a measurable drift: kappa does not exist then, and says so.

        Not while samples without its input explain it and another module moves: it starves if that goes on.

        Args:
            step: The optimizer step, counted from 1.
            found: What was measured at it.
            idle: The modules without a gradient.
            moved: The modules whose parameters have changed.
            rates: Module to its learning rate.
        """
        readings = found.readings
        unseen = {name for name, reading in readings.items() if reading.drift == 0 and (name in idle or name in moved)}
        for name, reading in readings.items():
            explained = name in unseen and len(unseen) < len(readings)
            if reading.fault is None or name in self._still or explained or rates[name] == 0:
                continue
            self._still.add(name)
            _warn(
                f"the drift of module {name!r} {reading.fault} at optimizer step {step}: no kappa can be taken. "
                "Does it get a gradient from this batch, is its learning rate above zero, is the loss finite?"
            )

    def learning(self, step: int, drift: Mapping[str, float], multipliers: Mapping[str, float]) -> None:
        """Look for modules that learn next to nothing; as for `StarvationDetector.observe`."""
        for name in self.starvation.observe(step, drift, multipliers):
            own = drift.get(name, 0.0)
            why = (
                f"its learning rate is {multipliers[name]:.3g} of its base rate and its drift {own:.3g} nats, "
                f"of {max(drift.values()):.3g} in the module that moves most; see docs/stability.md"
            )
            if own == 0:
                why = "nothing of it shows in the outputs. Do the batches hold its inputs, does a gradient reach it?"
            _warn(f"module {name!r} starves since optimizer step {self.starvation.starving[name]}: {why}")

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"starvation": self.starvation.state_dict(), "unanswered": self._unanswered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`, or what else it is part of."""
        self.starvation.load_state_dict(state["starvation"])
        self._unanswered = state.get("unanswered", 0)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)  # the caller of the monitor
