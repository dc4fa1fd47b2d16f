"""Theorem 1's bounds by hand."""

from __future__ import annotations

import math

import pytest

from commit_lab.studies.gradient_bound import check_bound, gradient_bounds


def test_equation_5_by_hand() -> None:
    assert gradient_bounds(kappa=0.25, language_h=2.0, encoder_h=3.0) == (3.75, 10.0)
    assert gradient_bounds(kappa=1.0, language_h=2.0, encoder_h=3.0) == (6.0, 4.0)


def test_bound_check_gives_share_looseness_and_correlation() -> None:
    check = check_bound([(1.0, 4.0), (2.0, 2.0), (6.0, 1.0)])
    assert (check.steps, check.held, check.looseness[1]) == (3, pytest.approx(2 / 3), 1.0)
    assert check.looseness[0] == pytest.approx(0.25 + 0.1 * 0.75)  # linear between 0.25 and 1 at 5 %
    assert check.rank_correlation == -1.0


def test_what_was_not_measured_does_not_count() -> None:
    check = check_bound([(None, 1.0), (1.0, None), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (3.0, 1.0)])
    assert (check.steps, check.held, check.looseness) == (1, 1.0, (3.0, 3.0, 3.0))
    assert math.isnan(check.rank_correlation)
    assert check_bound([]).steps == 0
