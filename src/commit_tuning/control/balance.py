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


class FillingWindow(KappaWindow):
    """A moving average that forgets how training began: it keeps the last half of what came, until that is `size`.

    The first measurements are of a model as it never is again: adapters at zero, the first step of an optimizer. A mean
    of all there is would carry them for a whole window. To average the last half of what there is, is known as suffix
    averaging (Rakhlin et al. 2012, arXiv 1109.5647).

    Example:
        >>> window = FillingWindow(size=20, estimator="arithmetic")
        >>> for drift in (900.0, 1.0, 2.0, 4.0):
        ...     window.push(drift, 1.0)
        >>> window.value, window.seen, window.full
        (3.0, 4, False)
    """

    def __init__(self, size: int, estimator: str) -> None:
        super().__init__(size, estimator)
        self.seen = 0

    @property
    def full(self) -> bool:
        """Whether it has grown to its size."""
        return len(self) == self._drifts.maxlen

    def push(self, language_drift: float, encoder_drift: float) -> None:
        """Add a measurement; one that has no kappa is left out, and does not count."""
        if math.isnan(balance_coefficient(language_drift, encoder_drift)):
            return
        super().push(language_drift, encoder_drift)
        self.seen += 1
        while len(self) > math.ceil(self.seen / 2):
            self._drifts.popleft()

    def state_dict(self) -> dict[str, Any]:
        """The measurements in the window, and how many there were."""
        return {**super().state_dict(), "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        super().load_state_dict(state)
        self.seen = int(state["seen"])
