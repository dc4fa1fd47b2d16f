"""The balance coefficient (Eq. 4), its moving average (Eq. 7), and the measurement that they are of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from commit_tuning.measure.probe import Measurement
from commit_tuning.measure.windows import RatioWindow, balance_coefficient, load_states, state_of
from commit_tuning.partition.modules import LANGUAGE_MODEL


class Balance:
    """Kappa of every encoder, as of the last measurement and as a moving average.

    Args:
        encoders: Names of the feature encoders.
        size: Measurements in the moving average.
        estimator: Of the moving average, as for `RatioWindow`.

    Attributes:
        measurement: The last one; None before the first.
        windows: Encoder to the moving average of its kappa.
    """

    def __init__(self, encoders: Sequence[str], size: int, estimator: str) -> None:
        self.measurement: Measurement | None = None
        self.windows = {name: RatioWindow(size, estimator) for name in encoders}

    def add(self, measurement: Measurement) -> None:
        """Take note of a measurement."""
        self.measurement, drift = measurement, measurement.drift
        for name, window in self.windows.items():
            window.push(drift.get(LANGUAGE_MODEL, math.nan), drift.get(name, math.nan))

    @property
    def drift(self) -> dict[str, float]:
        """Module to its drift in nats at the last measurement (Eq. 2-3); a module without a gradient is left out."""
        return self.measurement.drift if self.measurement else {}

    @property
    def noise_floor(self) -> dict[str, float]:
        """Module to what rounding alone adds to its drift, in nats, at the last look; empty before the first."""
        return {m: r.floor for m, r in self.measurement.readings.items()} if self.measurement else {}

    @property
    def kappas(self) -> dict[str, float]:
        """Encoder to the balance coefficient of the last measurement (Eq. 4); NaN where a module was not in it."""
        drift = self.drift
        language = drift.get(LANGUAGE_MODEL, math.nan)
        return {name: balance_coefficient(language, drift.get(name, math.nan)) for name in self.windows}

    @property
    def kappa(self) -> float:
        """The language model's drift over the mean drift of the encoders that moved; NaN where there is none."""
        drift = self.drift
        moved = [drift[name] for name in self.windows if drift.get(name, 0) != 0]
        mean = sum(moved) / len(moved) if moved else math.nan
        return balance_coefficient(drift.get(LANGUAGE_MODEL, math.nan), mean)

    @property
    def smoothed_kappas(self) -> dict[str, float]:
        """Encoder to the moving average of its balance coefficient (Eq. 7); NaN before the first measurement."""
        return {name: window.value for name, window in self.windows.items()}

    @property
    def smoothed_kappa(self) -> float:
        """The harmonic mean of the smoothed kappas that there are, as `kappa` has the encoders' mean below."""
        values = [value for value in self.smoothed_kappas.values() if not math.isnan(value)]
        return len(values) / sum(1 / value for value in values) if values else math.nan

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"windows": state_of(self.windows), "measurement": self.measurement and asdict(self.measurement)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        measurement = state["measurement"]
        self.measurement = measurement and Measurement.of(**measurement)
        load_states(self.windows, state["windows"])
