"""Eq. 8 within bounds, after a warm-up."""

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


class BoundedController(Controller):
    """Eq. 8 on smoothed kappa over its target, clamped to [1/bound, bound], after a warm-up.

    Eq. 8 closes a loop: kappa grows with the square of lr_X/lr_S = 1/kappa, so its loop gain is -2. The loop settles
    only when the moving average spans several updates; the warm-up keeps a filling window, which spans too few, out.
    Every encoder has a warm-up of its own. Until it ends, the encoder keeps its base rate and is not in the sum of
    Eq. 8: the other modules share out their own base rates, so an encoder whose batches come late holds up no other.

    Args:
        config: Gives target, bound, normalisation and warm-up.
        encoders: Names of the feature encoders.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str]) -> None:
        super().__init__((LANGUAGE_MODEL, *encoders))
        self._config = config
        self._windows = {name: RatioWindow(config.kappa_window, config.kappa_estimator) for name in encoders}
        warmup = config.warmup_measurements
        self._warmup = math.ceil(config.kappa_window / 2) if warmup is None else warmup

    def observe(self, measurement: Measurement, in_force: Mapping[str, float]) -> None:
        """Keep kappa of every encoder that was measured."""
        drift = self._counted(measurement.drift, in_force)
        for name, window in self._windows.items():
            window.push(drift.get(LANGUAGE_MODEL, math.nan), drift.get(name, math.nan))

    def multipliers(self, step: int) -> dict[str, float]:
        """Eq. 8 within the bounds for the encoders past their warm-up; one for the others."""
        bound = self._config.kappa_bound
        ready = {name: window.value for name, window in self._windows.items() if len(window) >= self._warmup}
        shares = {name: min(max(self._share(value), 1 / bound), bound) for name, value in ready.items()}
        return {**super().multipliers(step), **learning_rate_multipliers(shares, self._config.rate_normalization)}

    def _counted(self, drift: Mapping[str, float], in_force: Mapping[str, float]) -> Mapping[str, float]:
        """The drifts that go into the windows."""
        del in_force
        return drift

    def _share(self, average: float) -> float:
        """The wanted ratio of an encoder's multiplier to the language model's."""
        return average / self._config.kappa_target

    def state_dict(self) -> dict[str, Any]:
        """The measurements in the windows."""
        return {"windows": state_of(self._windows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        load_states(self._windows, state["windows"])
