"""Eq. 8 as printed."""

from __future__ import annotations

from commit_tuning.control.base import KappaController
from commit_tuning.control.equation8 import learning_rate_multipliers


class LiteralController(KappaController):
    """Eq. 8 as printed, unbounded, from the first measurement on. It can drive a module's learning rate to zero."""

    def multipliers(self, step: int) -> dict[str, float]:
        """Eq. 8 for the encoders that have a kappa; one for the others, which are not in its sum."""
        kappas = {name: window.value for name, window in self._windows.items() if len(window)}
        return {**super().multipliers(step), **learning_rate_multipliers(kappas)}
