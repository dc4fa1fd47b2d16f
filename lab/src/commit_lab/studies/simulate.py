"""The feedback loop of Eq. 7-8 without a model: which settings settle, and which starve a module.

A module's step is linear in its learning rate and KL is quadratic in the step, so kappa = rho (lr_X / lr_S)^2 times
noise, while Eq. 8 sets lr_X / lr_S = 1 / kappa: the loop gain is -2. Windows and controllers are the real ones.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from commit_tuning.config import CoMMITConfig, LiteralEq8
from commit_tuning.control.base import Controller
from commit_tuning.control.stability import LOG_SD
from commit_tuning.health.alarms import STARVED
from commit_tuning.measure.balance import RatioWindow
from commit_tuning.measure.probe import Measurement
from commit_tuning.methods import coordinating_controller
from commit_tuning.partition.modules import LANGUAGE_MODEL

COLLAPSED = 0.01  # a multiplier below this counts as a collapsed module
ENCODER = "encoder"
_LARGEST_LOG = 340.0  # drifts stay within e to this, so that their ratio is a finite number


@dataclass(frozen=True, kw_only=True)
class Plant:
    """The simulated process that the controller steers.

    Attributes:
        rho: Kappa at equal learning rates, at the first step.
        drift: The encoder's drift at its base rate, in nats; the loss is one nat.
        log_sd: Standard deviation of log kappa; half of its variance comes from either drift.
        exponent: How a drift grows with the learning rate: 2 in the quadratic range of KL.
        change: What log rho changes by over the whole run, evenly.
    """

    rho: float = 4.0
    drift: float = 1e-3
    log_sd: float = LOG_SD
    exponent: float = 2.0
    change: float = 0.0


@dataclass(frozen=True)
class Trajectory:
    """A simulated run, one value per learning-rate update.

    Attributes:
        steps: Optimizer step of the update.
        log_kappas: Log kappa without its noise, at the rates that the update found.
        smoothed_kappas: Smoothed kappa, noise included, that the update sees.
        log_ratios: Log of the language model's over the encoder's multiplier, as the update sets it.
        lowest: The smaller of the two multipliers.
    """

    steps: list[int]
    log_kappas: list[float]
    smoothed_kappas: list[float]
    log_ratios: list[float]
    lowest: list[float]


@dataclass(frozen=True)
class Verdict:
    """The result of the simulated runs of one configuration.

    Attributes:
        collapsed: Share of runs in which a multiplier falls below a hundredth.
        confined: Share of runs with a module at its bound, or below a fiftieth, for more than a tenth of the updates.
        residual: Median over runs of the distance of mean log kappa from the log target, over the second half of
            the steps.
        ringing: Median over runs of the standard deviation of the log rate ratio over the second half.
    """

    collapsed: float
    confined: float
    residual: float
    ringing: float


def simulate(
    config: CoMMITConfig,
    plant: Plant | None = None,
    *,
    steps: int = 1000,
    seed: int = 0,
    controller: Controller | None = None,
) -> Trajectory:
    """Simulate one run of a coordinated method.

    Args:
        config: Settings of window and controller.
        plant: What is steered; `Plant()` by default.
        steps: Optimizer steps.
        seed: Of the noise.
        controller: In place of the one that `config` names.
    """
    plant, noise, run = plant or Plant(), random.Random(seed), Trajectory([], [], [], [], [])
    controller = controller or coordinating_controller(config, (ENCODER,))
    window = RatioWindow(config.kappa_window, config.kappa_estimator)
    multipliers = controller.multipliers(0)
    for step in range(1, steps + 1):
        log_rho = math.log(plant.rho) + plant.change * step / steps
        if (step - 1) % (config.probe.interval or 1) == 0:
            drift = {name: plant.drift * _drift(multipliers[name], plant, noise) for name in multipliers}
            drift[LANGUAGE_MODEL] *= math.exp(log_rho)
            window.push(drift[LANGUAGE_MODEL], drift[ENCODER])
            controller.observe(Measurement.of_drift(drift, loss=1.0), multipliers)
        if controller.settling or step % config.lr_update_interval == 0:
            run.steps.append(step)
            run.smoothed_kappas.append(window.value)
            run.log_kappas.append(log_rho + plant.exponent * _log_ratio(multipliers))
            multipliers = controller.multipliers(step)
            run.log_ratios.append(_log_ratio(multipliers))
            run.lowest.append(min(multipliers.values()))
    return run


def _drift(multiplier: float, plant: Plant, noise: random.Random) -> float:
    """Return the drift of a module: a power of its learning rate, with half of the noise of log kappa."""
    log_drift = plant.exponent * math.log(max(multiplier, 1e-300)) + noise.gauss(0.0, plant.log_sd / math.sqrt(2))
    return math.exp(min(max(log_drift, -_LARGEST_LOG), _LARGEST_LOG))


def _log_ratio(multipliers: dict[str, float]) -> float:
    return math.log(max(multipliers[LANGUAGE_MODEL], 1e-300)) - math.log(max(multipliers[ENCODER], 1e-300))


def judge(config: CoMMITConfig, runs: Sequence[Trajectory]) -> Verdict:
    """Judge the simulated runs of one configuration."""
    target, limit = 0.0, math.inf
    if not isinstance(config.controller, LiteralEq8):
        target, limit = math.log(config.controller.kappa_target), math.log(config.controller.bound) * (1 - 1e-9)

    def confined(run: Trajectory) -> bool:
        held = [abs(r) >= limit or low < STARVED for r, low in zip(run.log_ratios, run.lowest, strict=True)]
        return sum(held) > len(held) / 10

    starts = [sum(step <= run.steps[-1] // 2 for step in run.steps) for run in runs]  # in steps: updates are not even
    halves = [(run.log_kappas[at:], run.log_ratios[at:]) for run, at in zip(runs, starts, strict=True)]
    return Verdict(
        collapsed=sum(min(run.lowest) < COLLAPSED for run in runs) / len(runs),
        confined=sum(map(confined, runs)) / len(runs),
        residual=statistics.median(abs(statistics.fmean(kappas) - target) for kappas, _ in halves),
        ringing=statistics.median(statistics.pstdev(ratios) for _, ratios in halves),
    )


def verdict(runs: int = 100, steps: int = 1000, plant: Plant | None = None, **settings: Any) -> Verdict:
    """Simulate a configuration with seeds 0, 1, ... and judge it.

    Args:
        runs: Simulated runs.
        steps: Optimizer steps of each.
        plant: What is steered.
        **settings: Fields of `CoMMITConfig`.
    """
    config = CoMMITConfig(**settings)
    return judge(config, [simulate(config, plant, steps=steps, seed=seed) for seed in range(runs)])
