"""Rank correlation of two quantities over runs, with nuisances taken out and an interval over arms."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Estimate:
    """A rank correlation and its 95 % bootstrap interval; NaN where the runs do not determine it."""

    value: float
    low: float
    high: float


def ranks_within(values: Array, strata: Sequence[Hashable]) -> Array:
    """Rank each column in [-1, 1] within strata, with ties shared; 0 for a stratum of one.

    Args:
        values: [runs, columns], finite.
        strata: The stratum of each run; values of different strata are never compared.
    """
    from scipy.stats import rankdata

    ranks = np.zeros_like(values, dtype=float)
    codes = _codes(strata)
    for code in range(codes.max() + 1):
        rows = codes == code
        count = int(rows.sum())
        if count > 1:
            ranks[rows] = 2 * (rankdata(values[rows], axis=0) - 1) / (count - 1) - 1
    return ranks


def residuals(values: Array, factors: Sequence[Sequence[Hashable]], covariates: Array | None = None) -> Array:
    """Return the residuals of each column after least squares on the levels of `factors` and on `covariates`.

    Args:
        values: [runs, columns].
        factors: For each factor the level of each run; the effects of several factors add up.
        covariates: [runs, covariates].

    Returns:
        [runs, columns]; a column that is explained altogether, or of which fewer than two degrees of freedom are left,
        is NaN.
    """
    blocks = [np.eye(codes.max() + 1)[codes] for codes in map(_codes, factors)]
    design = np.hstack([np.ones((len(values), 1)), *blocks, *([] if covariates is None else [covariates])])
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    left = values - design @ solution
    tiny = np.square(left).sum(axis=0) <= 1e-12 * np.square(values).sum(axis=0)
    left[:, tiny | (len(values) - rank < 2)] = np.nan
    result: Array = left
    return result


def correlation(x: Array, y: Array) -> float:
    """Return Pearson's correlation; NaN without variation."""
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def partial_rank_correlations(
    values: Array,
    pairs: Sequence[tuple[int, int]],
    strata: Sequence[Hashable],
    factors: Sequence[Sequence[Hashable]] = (),
    covariates: Array | None = None,
) -> Array:
    """Correlate pairs of columns (Spearman) within strata, given factors and covariates (as ranks too).

    Example:
        >>> values = np.array([[0, 3], [1, 2], [10, 13], [11, 12.0]])
        >>> bool(partial_rank_correlations(values, [(0, 1)], strata="aaaa")[0] > 0)
        True
        >>> partial_rank_correlations(values, [(0, 1)], strata="aaaa", factors=["aabb"])
        array([-1.])
    """
    ranked = None if covariates is None else ranks_within(covariates, strata)
    left = residuals(ranks_within(values, strata), [strata, *factors], ranked)
    return np.array([correlation(left[:, i], left[:, j]) for i, j in pairs])


def with_intervals(
    values: Array,
    pairs: Sequence[tuple[int, int]],
    *,
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
    factors: Sequence[Sequence[Hashable]] = (),
    covariates: Array | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Estimate]:
    """Return `partial_rank_correlations` with percentile bootstrap intervals.

    Whole clusters are drawn, as many as there are: the runs of an arm differ in their seed alone and are not
    independent of each other.

    Args:
        values: [runs, columns], finite.
        pairs: Columns to correlate.
        clusters: The arm of each run.
        strata: The task of each run.
        factors: As for `residuals`.
        covariates: [runs, covariates], finite.
        draws: Bootstrap samples.
        seed: Of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    members = _members(_codes(clusters))

    def on(rows: Indices) -> Array:
        taken = [[factor[row] for row in rows] for factor in factors]
        used = None if covariates is None else covariates[rows]
        return partial_rank_correlations(values[rows], pairs, [strata[row] for row in rows], taken, used)

    centre = on(np.arange(len(values)))
    drawn = [
        on(np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))]))
        for _ in range(draws)
    ]
    return [Estimate(float(value), *_interval(column)) for value, column in zip(centre, np.array(drawn).T, strict=True)]


def _interval(draws: Array) -> tuple[float, float]:
    """Return the middle 95 % of the draws; NaN if more than a tenth of them is NaN."""
    finite = draws[np.isfinite(draws)]
    if len(finite) < 0.9 * len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def _codes(levels: Sequence[Hashable]) -> Indices:
    """Return the levels as 0, 1, ... in order of appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(level, len(known)) for level in levels], dtype=np.intp)


def _members(codes: Indices) -> list[Indices]:
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
