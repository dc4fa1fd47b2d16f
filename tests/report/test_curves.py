"""Curves over seeds: smoothing, spread, and what was not measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from commit_tuning.report.curves import Group, curve
from commit_tuning.report.plots import Panel, explanation
from commit_tuning.train.record import RunRecord


def group(*histories: list[dict[str, Any]]) -> Group:
    return Group("a", "constant", (), tuple(tuple(history) for history in histories))


def test_mean_and_spread_over_seeds() -> None:
    found = curve(group([{"step": 1, "loss": 1.0}], [{"step": 1, "loss": 3.0}]), "loss")
    assert found is not None
    assert (found.mean[0], found.low[0], found.high[0]) == pytest.approx((2.0, 2 - 2**0.5, 2 + 2**0.5))


def test_logarithms_give_geometric_means_and_leave_out_zero() -> None:
    first = [{"step": 1, "kappa": 0.0}, {"step": 2, "kappa": 1.0}]
    second = [{"step": 1, "kappa": 5.0}, {"step": 2, "kappa": 100.0}]
    found = curve(group(first, second), "kappa", log=True)
    assert found is not None
    np.testing.assert_allclose(found.steps, [2])
    np.testing.assert_allclose(found.mean, [10.0])


def test_running_mean_is_shorter_at_the_start() -> None:
    history = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)]
    found = curve(group(history), "loss", window=3)
    assert found is not None
    np.testing.assert_allclose(found.mean, [1, 1.5, 2, 3])
    np.testing.assert_allclose(found.high, found.mean)


def test_ratio_skips_what_was_not_measured() -> None:
    history = [
        {"step": 1, "g": 1.0, "t": 2.0},
        {"step": 2, "g": None, "t": 2.0},
        {"step": 3, "g": 1.0, "t": None},
        {"step": 4, "g": 1.0, "t": 0.0},
    ]
    found = curve(group(history), "g", over="t")
    assert found is not None
    np.testing.assert_allclose(found.mean, [0.5])


def test_nothing_measured_is_no_curve() -> None:
    assert curve(group([{"step": 1, "kappa": None}]), "kappa") is None
    assert curve(group([{"step": 1, "a": 1.0}], [{"step": 2, "a": 1.0}]), "a") is None


def test_the_caption_counts_the_seeds_of_every_group() -> None:
    groups = [Group("a", "constant", (RunRecord(recipe={}),) * seeds, ()) for seeds in (2, 3)]
    panel = Panel("loss", "", "", log=False)
    assert explanation(groups, panel, 1) == "Line: mean over 2 to 3 seeds; band: one standard deviation. Not smoothed."
    assert explanation(groups[:1], panel, 1).startswith("Line: mean over 2 seeds;")
    assert explanation([Group("a", "constant", (RunRecord(recipe={}),), ())], panel, 1).startswith("One seed.")
