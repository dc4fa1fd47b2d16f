"""Eq. 8 as printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from commit_tuning.config import CoMMITConfig
from commit_tuning.control.base import Controller
from commit_tuning.control.equation8 import learning_rate_multipliers
from commit_tuning.measure.balance import RatioWindow, load_states, state_of
from commit_tuning.measure.probe import Measurement
from commit_tuning.partition.modules import LANGUAGE_MODEL


class LiteralController(Controller):
    """Eq. 8 as printed, unbounded, from the first measurement on. It can drive a module's learning rate to zero.

    Args:
        config: Gives the window and its estimator.
        encoders: Names of the feature encoders.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str]) -> None:
        super().__init__((LANGUAGE_MODEL, *encoders))
        self._windows = {name: RatioWindow(config.kappa_window, config.kappa_estimator) for name in encoders}

    def observe(self, measurement: Measurement, in_force: Mapping[str, float]) -> None:
        """Keep kappa of every encoder that was measured."""
        del in_force
        drift = measurement.drift
        for name, window in self._windows.items():
            window.push(drift.get(LANGUAGE_MODEL, math.nan), drift.get(name, math.nan))

    def multipliers(self, step: int) -> dict[str, float]:
        """Eq. 8 for the encoders that have a kappa; one for the others, which are not in its sum."""
        kappas = {name: window.value for name, window in self._windows.items() if len(window)}
        return {**super().multipliers(step), **learning_rate_multipliers(kappas)}

    def state_dict(self) -> dict[str, Any]:
        """The measurements in the windows."""
        return {"windows": state_of(self._windows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        load_states(self._windows, state["windows"])
