"""The numbers of the table, against an example worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from commit_tuning.train.compare.arms import Arm
from commit_tuning.train.compare.table import build_rows, markdown, paired_difference
from commit_tuning.train.record import RunRecord

CONSTANT, CLR = Arm("constant", 1e-3, 1e-3), Arm("commit-clr", 1e-3, 1e-3)


def record(seed: int, test: float, *, lowest: float | None = 1.0, status: str = "complete") -> RunRecord:
    scores = {"val": {"accuracy": test - 0.1}, "test": {"accuracy": test}}
    return RunRecord(
        recipe={},
        seed=seed,
        status=status,  # type: ignore[arg-type]
        metrics={**scores, "train_loss": 0.5, "lowest_multiplier": lowest},
        seconds={"training": 10.0, "evaluation": 2.0},
        folder=Path(f"seed-{seed}"),
    )


def test_paired_difference_by_hand() -> None:
    # differences 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(0.975, 2 degrees of freedom) = 4.302653
    found = paired_difference({0: 0.6, 1: 0.8, 2: 0.7}, {0: 0.5, 1: 0.6, 2: 0.4})
    assert found is not None
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)
    assert found.seeds == 3


def test_only_seeds_that_both_have_count() -> None:
    found = paired_difference({0: 0.6, 7: 0.9}, {0: 0.5, 8: 0.1})
    assert found is not None
    assert (found.mean, found.low, found.seeds) == (pytest.approx(0.1), None, 1)
    assert paired_difference({0: 0.6}, {1: 0.5}) is None


def test_rows_by_hand() -> None:
    results = {
        CONSTANT: [record(0, 0.5), record(1, 0.6), record(2, 0.4)],
        CLR: [record(0, 0.6), record(1, 0.8, lowest=0.005), record(2, 0.0, status="failed")],
    }
    constant, clr = build_rows(results, [CONSTANT, CLR], {CONSTANT: ["a"], CLR: ["b"]})
    assert constant.difference is None
    assert (constant.test, constant.test_sd) == pytest.approx((0.5, 0.1))
    assert (clr.test, clr.test_sd) == pytest.approx((0.7, 0.1 * math.sqrt(2)))
    assert (clr.seeds, clr.failed, clr.collapsed, clr.seconds) == (2, 1, 1, 12.0)
    assert clr.difference is not None
    assert clr.difference.mean == pytest.approx(0.15)  # seeds 0 and 1: +0.1 and +0.2
    assert (clr.validation, clr.chosen) == (pytest.approx(0.6), True)


def test_markdown() -> None:
    results = {CONSTANT: [record(0, 0.5), record(1, 0.6)], CLR: [record(0, 0.6)]}
    head, rule, constant, clr = markdown(build_rows(results, [CONSTANT], {CONSTANT: [], CLR: []})).splitlines()
    assert head.count("|") == rule.count("|") == constant.count("|") == clr.count("|")
    assert constant.startswith("| **Constant LR** | 0.001 | 55.0 ± 7.1 | 2 |")
    assert clr.startswith("| CoMMIT-CLR | 0.001 | 60.0 | 1 | +10.0 | 50.0 | 0.500 | 12 |")


def test_an_arm_without_a_finished_run_has_dashes() -> None:
    rows = build_rows({CONSTANT: [record(0, 0.5, status="running")]}, [CONSTANT], {CONSTANT: []})
    assert (rows[0].test, rows[0].failed) == (None, 1)
    assert "\N{EN DASH}" in markdown(rows)
