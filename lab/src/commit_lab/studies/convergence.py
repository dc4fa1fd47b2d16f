"""Theorem 2 as a simulation: Adam with beta_1 = 0 on lambda f + h (Eq. 11-12) against its printed bounds.

The paper gives the bound twice and not alike: Eq. 13 and Eq. 26. Both leave out a factor that their own proof has, so
`proven_bound` is a third: the theorem of Defossez et al. (2020, Theorem 2) that the proof follows, at h = 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_CHUNK = 1000  # steps whose noise is drawn at once


def balance_factor(smoothed_kappa: float, previous: float) -> float:
    """Return lambda_t of Section 7.2, from smoothed kappa at two consecutive learning-rate updates.

    It is (kappa_t + 1) / (kappa_{t-1} + 1) where kappa_t > 1, and the same of the reciprocals where kappa_t < 1; at
    kappa_t = 1, which the paper leaves out, the first form.

    Example:
        >>> balance_factor(3.0, 1.0), balance_factor(1.0, 3.0), balance_factor(0.25, 0.5)
        (2.0, 0.5, 1.6666666666666667)
    """
    if smoothed_kappa < 1:
        smoothed_kappa, previous = 1 / smoothed_kappa, 1 / previous
    return (smoothed_kappa + 1) / (previous + 1)


def balance_factors(smoothed_kappas: Sequence[float]) -> list[float]:
    """Return lambda_t along a path of smoothed kappa."""
    return [balance_factor(now, before) for before, now in itertools.pairwise(smoothed_kappas)]


@dataclass(frozen=True)
class Problem:
    """f(x) = sum_i sqrt(1 + x_i^2) - 1 + a (1 - cos(b x_i)), with noise of +-s on every partial derivative.

    Not convex when a b^2 > 1, yet without a stationary point far from the origin when a b < 1. Its minimum is f* = 0 at
    the origin, its gradient is bounded, and its curvature is known.

    Attributes:
        dimension: Number of coordinates, d.
        height: a.
        frequency: b.
        noise: s.
        start: Every coordinate of x_0.
    """

    dimension: int = 10
    height: float = 0.4
    frequency: float = 2.0
    noise: float = 1.0
    start: float = 5.0

    @property
    def lipschitz(self) -> float:
        """L: the largest curvature, at the origin."""
        return 1 + self.height * self.frequency**2

    @property
    def largest_partial(self) -> float:
        """No partial derivative of a noisy f_k is larger."""
        return 1 + self.height * self.frequency + self.noise

    @property
    def gap(self) -> float:
        """F(x_0) - f*."""
        one = math.sqrt(1 + self.start**2) - 1 + self.height * (1 - math.cos(self.frequency * self.start))
        return self.dimension * one

    def gradient(self, x: Array) -> Array:
        """Return the gradient of f, without noise; any shape."""
        slope = self.height * self.frequency
        result: Array = x / np.sqrt(1 + x * x) + slope * np.sin(self.frequency * x)
        return result


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Eq. 11-12 with the step size of Appendix A.4, alpha_k = alpha sqrt((1 - beta_2^k) / (1 - beta_2)).

    Attributes:
        rate: alpha.
        beta2: beta_2.
        epsilon: The constant under the root.
        drift_reward: w of grad h_k = -w (x_{k-1} - x_{k-2}): the previous-step drift of a unit Gaussian as h.
        copy: c of grad h_k = c grad f_k.
    """

    rate: float
    beta2: float = 0.999
    epsilon: float = 1e-8
    drift_reward: float = 0.0
    copy: float = 0.0

    def gradient_bound(self, problem: Problem) -> float:
        """Return R of the theorem: |grad f + grad h| + sqrt(epsilon) never exceeds it, in the L2 norm."""
        longest_step = self.rate / math.sqrt(1 - self.beta2)
        partial = abs(1 + self.copy) * problem.largest_partial + abs(self.drift_reward) * longest_step
        return math.sqrt(problem.dimension) * partial + math.sqrt(self.epsilon)


def gradient_norms(
    problem: Problem, adam: Adam, steps: int, *, runs: int = 32, factors: Sequence[float] = (1.0,), seed: int = 0
) -> Array:
    """Return the squared norm of grad f at x_0, ..., x_{steps-1}, averaged over simulated runs.

    Args:
        problem: What is minimised.
        adam: How.
        steps: K.
        runs: Runs with independent noise.
        factors: Lambda, held for equal parts of the run one after the other.
        seed: Of the noise.

    Returns:
        [steps].
    """
    generator = np.random.default_rng(seed)
    shape = (runs, problem.dimension)
    x, v, last_step = np.full(shape, problem.start), np.zeros(shape), np.zeros(shape)
    norms = np.empty(steps)
    for k in range(steps):
        if k % _CHUNK == 0:
            signs = 2.0 * generator.integers(0, 2, (_CHUNK, *shape)) - 1.0
        exact = problem.gradient(x)
        norms[k] = np.square(exact).sum() / runs
        noisy = exact + problem.noise * signs[k % _CHUNK]
        g = (factors[k * len(factors) // steps] + adam.copy) * noisy - adam.drift_reward * last_step
        v = adam.beta2 * v + g * g
        size = adam.rate * math.sqrt((1 - adam.beta2 ** (k + 1)) / (1 - adam.beta2))
        last_step = -size * g / np.sqrt(adam.epsilon + v)
        x = x + last_step
    return norms


def equation_13(problem: Problem, adam: Adam, steps: int, factor: float = 1.0) -> float:
    """Return the right-hand side of Eq. 13 at K = `steps` and lambda = `factor`."""
    first, size, logarithm = _parts(problem, adam, steps)
    return first / factor + size * (logarithm - math.log(adam.beta2)) / steps


def equation_26(problem: Problem, adam: Adam, steps: int, factor: float = 1.0) -> float:
    """Return the right-hand side of Eq. 26: 1 + lambda for lambda, and -ln(beta_2) is not divided by K."""
    first, size, logarithm = _parts(problem, adam, steps)
    return first / (1 + factor) + size * (logarithm / steps - math.log(adam.beta2))


def _parts(problem: Problem, adam: Adam, steps: int) -> tuple[float, float, float]:
    """Return 2 R (F(x_0) - f*) / (alpha K), the factor of C and its logarithm, as in both equations."""
    bound, rest = adam.gradient_bound(problem), 1 - adam.beta2
    size = 2 * adam.rate * bound / math.sqrt(rest) + adam.rate**2 * problem.lipschitz / (2 * rest)
    logarithm = math.log((1 - adam.beta2**steps) * bound**2 / (rest * adam.epsilon))
    return 2 * bound * problem.gap / (adam.rate * steps), size, logarithm


def proven_bound(problem: Problem, adam: Adam, steps: int) -> float:
    """Return Defossez et al. (2020), Theorem 2: the mean over x_0, ..., x_{K-1}, h = 0, R in the maximum norm.

    Summing Eq. 25 and solving for the gradient gives it, and multiplies C by 2 R d / alpha, which Eq. 13 and 26 do not
    have. Lambda is not in it: R and L then belong to lambda f, and it cancels but for the logarithm.
    """
    bound, rest = problem.largest_partial + math.sqrt(adam.epsilon), 1 - adam.beta2
    size = 4 * bound**2 / math.sqrt(rest) + adam.rate * bound * problem.lipschitz / rest
    logarithm = math.log(1 + bound**2 / (rest * adam.epsilon)) / steps - math.log(adam.beta2)
    return 2 * bound * problem.gap / (adam.rate * steps) + problem.dimension * size * logarithm
