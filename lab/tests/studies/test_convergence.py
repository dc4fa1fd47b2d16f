"""Theorem 2's bounds, lambda_t and the simulation, by hand and against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from commit_lab.studies.convergence import (
    Adam,
    Problem,
    balance_factor,
    balance_factors,
    equation_13,
    equation_26,
    gradient_norms,
    proven_bound,
)

SMALL = Problem(dimension=4, height=0.5, frequency=2.0, noise=1.0, start=0.0)


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (3.0, 1.5, 1.6),  # above 1 and away from it: (3 + 1) / (1.5 + 1)
        (1.5, 3.0, 0.625),  # above 1 and toward it
        (0.25, 0.5, 5 / 3),  # below 1 and away from it: (4 + 1) / (2 + 1)
        (0.5, 2.0, 2.0),  # across 1: (2 + 1) / (0.5 + 1)
        (1.0, 1.0, 1.0),
    ],
)
def test_lambda_by_hand(now: float, before: float, expected: float) -> None:
    assert balance_factor(now, before) == pytest.approx(expected)


def test_lambda_exceeds_1_when_kappa_leaves_or_crosses() -> None:
    path = np.exp(np.random.default_rng(0).normal(size=200)).tolist()
    for before, now, factor in zip(path, path[1:], balance_factors(path), strict=False):
        crossed = (now - 1) * (before - 1) < 0
        away = abs(math.log(now)) > abs(math.log(before))
        assert (factor > 1) == (crossed or away)


def test_lambda_multiplies_out_on_one_side_of_1() -> None:
    assert math.prod(balance_factors([2.0, 5.0, 3.0, 9.0])) == pytest.approx(10 / 3)


def test_function_has_the_properties_the_bounds_assume() -> None:
    problem = Problem(dimension=1, noise=0.0)
    x = np.linspace(-8, 8, 20001)
    values = np.sqrt(1 + x**2) - 1 + problem.height * (1 - np.cos(problem.frequency * x))
    slope = np.gradient(values, x)
    curvature = np.gradient(slope, x)[2:-2]
    assert np.allclose(slope[1:-1], problem.gradient(x)[1:-1], atol=1e-5)
    assert np.abs(slope).max() <= problem.largest_partial
    assert np.abs(curvature).max() == pytest.approx(problem.lipschitz, rel=1e-4)
    assert curvature.min() < -0.5  # not convex
    assert values.min() == pytest.approx(0, abs=1e-9)
    assert Problem(dimension=3, start=8.0).gap == pytest.approx(3 * values[-1])


def test_the_printed_bounds_by_hand() -> None:
    # d = 4, partials up to 1 + 1 + 1 = 3, so R = 2 * 3 + 0.1; L = 1 + 0.5 * 4 = 3; F(x_0) = f*
    adam = Adam(rate=0.2, beta2=0.75, epsilon=0.01)
    size = 2 * 0.2 * 6.1 / 0.5 + 0.2**2 * 3 / (2 * 0.25)
    logarithm = math.log((1 - 0.75**2) * 6.1**2 / (0.25 * 0.01))
    assert equation_13(SMALL, adam, 2) == pytest.approx(size * (logarithm - math.log(0.75)) / 2)
    assert equation_26(SMALL, adam, 2) == pytest.approx(size * (logarithm / 2 - math.log(0.75)))


def test_lambda_divides_the_first_term_alone() -> None:
    problem, adam = Problem(dimension=1, start=3.0), Adam(rate=0.1)
    first = 2 * adam.gradient_bound(problem) * problem.gap / (0.1 * 10)
    assert equation_13(problem, adam, 10, 1.0) - equation_13(problem, adam, 10, 4.0) == pytest.approx(0.75 * first)
    assert equation_26(problem, adam, 10, 1.0) - equation_26(problem, adam, 10, 3.0) == pytest.approx(0.25 * first)


def test_the_proven_bound_by_hand() -> None:
    adam = Adam(rate=0.2, beta2=0.75, epsilon=0.01)
    size = 4 * 3.1**2 / 0.5 + 0.2 * 3.1 * 3 / 0.25
    logarithm = math.log(1 + 3.1**2 / (0.25 * 0.01)) / 2 - math.log(0.75)
    assert proven_bound(SMALL, adam, 2) == pytest.approx(4 * size * logarithm)


def test_the_first_step_of_adam_has_length_alpha() -> None:
    problem = Problem(dimension=2, noise=0.0, start=3.0)
    norms = gradient_norms(problem, Adam(rate=0.5), steps=2, runs=1)
    expected = [2 * float(problem.gradient(np.array(x))) ** 2 for x in (3.0, 2.5)]
    assert norms == pytest.approx(expected)


def test_lambda_without_h_changes_nothing() -> None:
    one, hundred = (gradient_norms(Problem(), Adam(rate=0.01), steps=300, runs=2, factors=(f,)) for f in (1.0, 100.0))
    assert hundred == pytest.approx(one, rel=1e-3)


def test_adam_without_noise_stays_within_proven_bound() -> None:
    problem, adam = Problem(noise=0.0), Adam(rate=0.01)
    norms = gradient_norms(problem, adam, steps=3000, runs=1)
    assert norms[-1] < 0.05 * norms[0]
    assert norms.mean() < proven_bound(problem, adam, 3000)


def test_gradient_bound_includes_the_drift_reward() -> None:
    plain, rewarded, penalised = (Adam(rate=0.1, drift_reward=w) for w in (0.0, 2.0, -2.0))
    extra = math.sqrt(10) * 2 * 0.1 / math.sqrt(0.001)
    assert rewarded.gradient_bound(Problem()) - plain.gradient_bound(Problem()) == pytest.approx(extra)
    assert penalised.gradient_bound(Problem()) == rewarded.gradient_bound(Problem())
