"""The balance coefficient (Eq. 4) and its moving average (Eq. 7)."""

from __future__ import annotations

import math
from collections import deque
from typing import Any


def balance_coefficient(language_drift: float, encoder_drift: float) -> float:
    """Kappa = d_X / d_S (Eq. 4).

    Returns:
        The ratio, or NaN where there is none: a drift that is zero (the module did not move), infinite or NaN.
        Kappa >> 1: the update inclines toward the language model; kappa -> 0: toward the encoder.

    Example:
        >>> balance_coefficient(0.5, 0.25)
        2.0
        >>> balance_coefficient(0.5, 0.0)
        nan
    """
    drifts = (language_drift, encoder_drift)
    if not all(math.isfinite(d) and d > 0 for d in drifts):
        return math.nan
    return language_drift / encoder_drift


class KappaWindow:
    """The moving average of kappa over the last measurements (Eq. 7); while it fills, over those there are.

    Args:
        size: Measurements in the window, N_kappa.
        estimator: `"arithmetic"` mean of kappa as printed; `"geometric"` mean of kappa, which one outlier cannot rule;
            `"ratio"` of the summed drifts, sum d_X / sum d_S.

    Example:
        >>> window = KappaWindow(size=2, estimator="arithmetic")
        >>> for drifts in [(9.0, 1.0), (1.0, 1.0), (3.0, 1.0)]:
        ...     window.push(*drifts)
        >>> window.value
        2.0
    """

    def __init__(self, size: int, estimator: str) -> None:
        self.estimator = estimator
        self._drifts: deque[tuple[float, float]] = deque(maxlen=size)

    def push(self, language_drift: float, encoder_drift: float) -> None:
        """Add a measurement; one that has no kappa is left out."""
        if not math.isnan(balance_coefficient(language_drift, encoder_drift)):
            self._drifts.append((language_drift, encoder_drift))

    def __len__(self) -> int:
        """How many measurements are in the window."""
        return len(self._drifts)

    @property
    def value(self) -> float:
        """Smoothed kappa; NaN before the first measurement."""
        if not self._drifts:
            return math.nan
        if self.estimator == "ratio":
            return math.fsum(x for x, _ in self._drifts) / math.fsum(s for _, s in self._drifts)
        kappas = [balance_coefficient(x, s) for x, s in self._drifts]
        if self.estimator == "geometric":
            return math.exp(math.fsum(map(math.log, kappas)) / len(kappas))
        return math.fsum(kappas) / len(kappas)

    def state_dict(self) -> dict[str, Any]:
        """The measurements in the window."""
        return {"drifts": list(self._drifts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the measurements of `state_dict()`."""
        self._drifts.clear()
        self._drifts.extend((float(x), float(s)) for x, s in state["drifts"])
