"""The feedback loop of Eq. 7-8 without a model: which settings settle, and which starve a module.

A module's step is linear in its learning rate and KL is quadratic in the step, so kappa ~ rho (lr_X / lr_S)^2 times
noise, while Eq. 8 sets lr_X / lr_S = 1 / kappa: the loop gain is -2.
"""

from __future__ import annotations

import math
import random
from typing import Any

from commit_tuning.config import CoMMITConfig
from commit_tuning.core.balance import KappaWindow
from commit_tuning.core.controllers import coordinating_controller
from commit_tuning.core.partition import LANGUAGE_MODEL

COLLAPSED = 0.01  # a multiplier below this counts as a starved module


_ENCODER = "encoder"


def simulate(
    config: CoMMITConfig, steps: int = 1000, rho: float = 4.0, log_sd: float = 1.2, seed: int = 0
) -> list[float]:
    """Multiplier of the starving module over one simulated run.

    Args:
        config: A coordinated method.
        steps: Optimizer steps.
        rho: Kappa at equal learning rates.
        log_sd: Standard deviation of log kappa; 1.2 was measured in a real run.
        seed: Of the noise.

    Returns:
        At every learning-rate update, the smaller of the two multipliers.
    """
    noise = random.Random(seed)
    controller = coordinating_controller(config, (LANGUAGE_MODEL, _ENCODER))
    window = KappaWindow(config.kappa_window, config.kappa_estimator)
    multipliers = {LANGUAGE_MODEL: 1.0, _ENCODER: 1.0}
    smallest = []
    for step in range(1, steps + 1):
        if (step - 1) % (config.probe_interval or 1) == 0:
            window.push(
                *(_drift(multipliers[m], scale, log_sd, noise) for m, scale in ((LANGUAGE_MODEL, rho), (_ENCODER, 1.0)))
            )
        if step % config.lr_update_interval == 0:
            multipliers = controller.multipliers(step, {_ENCODER: window.value}, len(window))
            smallest.append(min(multipliers.values()))
    return smallest


def _drift(multiplier: float, scale: float, log_sd: float, noise: random.Random) -> float:
    """Drift of a module: the square of its learning rate, with half of the noise of log kappa."""
    log_drift = math.log(scale) + 2 * math.log(max(multiplier, 1e-150)) + noise.gauss(0.0, log_sd / math.sqrt(2))
    return math.exp(min(max(log_drift, -690.0), 690.0))


def collapse_share(runs: int = 100, steps: int = 1000, rho: float = 4.0, **settings: Any) -> float:
    """Share of simulated runs in which a module's learning rate fell below a hundredth of its base rate.

    Args:
        runs: Simulated runs, with seeds 0, 1, ...
        steps: Optimizer steps of each.
        rho: Kappa at equal learning rates.
        **settings: Fields of `CoMMITConfig`.
    """
    config = CoMMITConfig(**settings)
    return sum(min(simulate(config, steps, rho, seed=seed)) < COLLAPSED for seed in range(runs)) / runs
