"""The rates at which kappa is at its target, by internal model control."""

from __future__ import annotations

import math
from collections.abc import Mapping

from commit_tuning.control.bounded import BoundedController
from commit_tuning.measure.probe import Measurement


class CompensatedController(BoundedController):
    """The rates at which kappa would be at its target, by internal model control; clamped, after a warm-up.

    A module's drift grows with the square of its learning rate, so drift over squared multiplier does not depend on the
    rates in force at a measurement. Smoothed, it gives rho, which is kappa at equal multipliers, and kappa is at its
    target where lr_m / lr_X = sqrt(rho / target). The window holds no trace of old rates: the loop has no delay, and it
    settles at the target wherever drift grows with a power of the rate between 0 and 4.
    """

    def _counted(self, measurement: Measurement, in_force: Mapping[str, float]) -> Mapping[str, float]:
        return measurement.at_base_rate(in_force)

    def _share(self, average: float) -> float:
        return math.sqrt(average / self._settings.kappa_target)
