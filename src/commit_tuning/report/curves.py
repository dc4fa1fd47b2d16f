"""Curves of several runs as one: smoothed, on common steps, with mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commit_tuning.train.record import RunRecord

Array = NDArray[np.float64]
_TINY, _HUGE = 1e-100, 1e100  # what a logarithmic scale shows lies between


@dataclass(frozen=True)
class Group:
    """The runs of one arm.

    Attributes:
        label: Name in the legend.
        method: The method's name; decides the colour.
        records: One record per seed.
        histories: The records' histories.
    """

    label: str
    method: str
    records: tuple[RunRecord, ...]
    histories: tuple[tuple[dict[str, Any], ...], ...]

    @classmethod
    def of(cls, label: str, method: str, records: Sequence[RunRecord]) -> Group:
        """Read the histories of the records."""
        return cls(label, method, tuple(records), tuple(tuple(record.history()) for record in records))


@dataclass(frozen=True)
class Curve:
    """Mean over seeds and its spread at each step; arrays [points]."""

    steps: Array
    mean: Array
    low: Array
    high: Array


def curve(group: Group, key: str, *, window: int = 1, log: bool = False, over: str | None = None) -> Curve | None:
    """Make a curve of a quantity of a group's runs.

    Args:
        group: The runs.
        key: A key of the history.
        window: Steps in the running mean that smooths each run first.
        log: Average logarithms (a geometric mean) and take the spread by the same rule; for what spans decades.
        over: Divide by this key, value by value.

    Returns:
        Mean and mean ± one standard deviation over seeds at the steps that every run measured; None where nothing was
        measured.
    """
    series = [found for history in group.histories if (found := _series(history, key, over, log))]
    if not series:
        return None
    steps = sorted(set.intersection(*(set(one) for one in series)))
    if not steps:
        return None
    places = np.array(steps, dtype=float)
    values = np.array([_running_mean(places, np.array([one[step] for step in steps]), window) for one in series])
    centre = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros_like(centre)
    bands = (centre, centre - spread, centre + spread)
    # rounded, so that the noise of a running mean over a constant is no range of values
    return Curve(places, *(np.exp(band.round(12)) if log else band for band in bands))


def _series(history: Sequence[dict[str, Any]], key: str, over: str | None, log: bool) -> dict[int, float]:
    """Map step to value, without unmeasured values and, on a log scale, without what it cannot show."""
    found = {}
    for row in history:
        value, divisor = row.get(key), 1.0 if over is None else row.get(over)
        if value is None or not divisor:
            continue
        quotient = value / divisor
        if _TINY < quotient < _HUGE or not log:
            found[int(row["step"])] = math.log(quotient) if log else quotient
    return found


def _running_mean(steps: Array, values: Array, window: int) -> Array:
    """Return the mean over the last `window` steps, over fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.searchsorted(steps, steps - window, side="right")
    result: Array = (sums[ends] - sums[starts]) / (ends - starts)
    return result
