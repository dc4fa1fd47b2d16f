"""Theorem 1 against what was measured: does the bound hold, how loose is it, and does it follow the gradient?

Eq. 5 bounds |G_X| by (kappa + 1) H_S and |G_S| by (1/kappa + 1) H_X. Its proof (Appendix A.1) rests on two more:
Eq. 14, |L_t - L_{t+1}| <= gamma d_joint with gamma < 1, and Eq. 15, d_joint <= d_X + d_S.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

QUANTILES = (0.05, 0.5, 0.95)


def gradient_bounds(kappa: float, language_h: float, encoder_h: float) -> tuple[float, float]:
    """Return the right-hand sides of Eq. 5.

    Args:
        kappa: The balance coefficient of the step, > 0.
        language_h: H_X of Eq. 6.
        encoder_h: H_S of Eq. 6.

    Returns:
        The bound on |G_X| and the bound on |G_S|.

    Example:
        >>> gradient_bounds(kappa=3.0, language_h=0.75, encoder_h=2.0)
        (8.0, 1.0)
    """
    return (kappa + 1) * encoder_h, (1 / kappa + 1) * language_h


@dataclass(frozen=True)
class BoundCheck:
    """How a bound did over the steps of a run.

    Attributes:
        steps: Steps at which bound and actual value are finite and positive.
        held: Share of those at which the bound was not exceeded.
        looseness: Bound / actual value at the quantiles `QUANTILES`; below 1 the bound is broken.
        rank_correlation: Spearman's, of bound and actual value over the steps; NaN for fewer than three steps. A bound
            that says something about the gradient rises and falls with it.
    """

    steps: int
    held: float
    looseness: tuple[float, ...]
    rank_correlation: float


def check_bound(pairs: Iterable[tuple[float | None, float | None]]) -> BoundCheck:
    """Compare bounds with actual values.

    Args:
        pairs: (bound, actual value) of each step; None, NaN, zero and infinity are left out.

    Example:
        >>> check_bound([(2.0, 1.0), (4.0, 2.0), (3.0, 6.0), (None, 1.0)]).looseness[1]
        2.0
    """
    from scipy.stats import spearmanr

    table = np.array([(np.nan if b is None else b, np.nan if a is None else a) for b, a in pairs], dtype=float)
    table = table.reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1) & (table > 0).all(axis=1)]
    bounds, actual = table.T
    if not len(table):
        return BoundCheck(0, np.nan, (np.nan,) * len(QUANTILES), np.nan)
    ratios = bounds / actual
    varied = len(table) > 2 and np.ptp(bounds) > 0 and np.ptp(actual) > 0
    correlation = float(spearmanr(bounds, actual).statistic) if varied else np.nan
    looseness = tuple(float(q) for q in np.quantile(ratios, QUANTILES))
    return BoundCheck(len(table), float((ratios >= 1).mean()), looseness, correlation)
