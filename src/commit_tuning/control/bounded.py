"""Eq. 8 within bounds, after a warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from commit_tuning.config import Bounded, CoMMITConfig
from commit_tuning.control.base import KappaController
from commit_tuning.control.equation8 import learning_rate_multipliers


class BoundedController(KappaController):
    """Eq. 8 on smoothed kappa over its target, clamped to [1/bound, bound], after a warm-up.

    Eq. 8 closes a loop: kappa grows with the square of lr_X/lr_S = 1/kappa, so its loop gain is -2. The loop settles
    only when the moving average spans several updates; the warm-up keeps a filling window, which spans too few, out.
    Every encoder has a warm-up of its own. Until it ends, the encoder keeps its base rate and is not in the sum of
    Eq. 8: the other modules share out their own base rates, so an encoder whose batches come late holds up no other.

    Args:
        config: Its controller is a `Bounded`.
        encoders: Names of the feature encoders.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str]) -> None:
        super().__init__(config, encoders)
        assert isinstance(config.controller, Bounded)
        self._settings, warmup = config.controller, config.controller.warmup
        self._warmup = math.ceil(config.kappa_window / 2) if warmup is None else warmup

    def multipliers(self, step: int) -> dict[str, float]:
        """Eq. 8 within the bounds for the encoders past their warm-up; one for the others."""
        bound = self._settings.bound
        ready = {name: window.value for name, window in self._windows.items() if len(window) >= self._warmup}
        shares = {name: min(max(self._share(value), 1 / bound), bound) for name, value in ready.items()}
        return {**super().multipliers(step), **learning_rate_multipliers(shares, self._settings.normalization)}

    def _share(self, average: float) -> float:
        """The wanted ratio of an encoder's multiplier to the language model's."""
        return average / self._settings.kappa_target
