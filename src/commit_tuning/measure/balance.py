"""The balance coefficient (Eq. 4)."""

from __future__ import annotations

import math


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
