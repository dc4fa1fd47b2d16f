"""From smoothed kappa to learning-rate multipliers (Eq. 8), and the paper's baselines in the same form.

A controller is asked every N_lr optimizer steps and answers with one multiplier per module: the module's learning rate
is its base rate times that. A new strategy is one class with the methods of `Controller`, listed in `make_controller`
or `coordinating_controller`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from commit_tuning.config import CoMMITConfig
from commit_tuning.core.balance import KappaWindow
from commit_tuning.core.hypergradient import HypergradientController
from commit_tuning.core.partition import LANGUAGE_MODEL, ModulePartition

FACTOR_UP = 10.0  # Section 5 of the paper: 1e-3 against 1e-4


def learning_rate_multipliers(smoothed_kappas: Mapping[str, float], normalization: str = "sum") -> dict[str, float]:
    """Eq. 8 for M modules: multiplier_m = M kappa_m / sum_j kappa_j, where the language model's own kappa is 1.

    With one encoder this is lr_X = 2 alpha / (kappa + 1) and lr_S = 2 alpha / (1/kappa + 1) exactly. The multipliers
    sum to M, and the language model's over an encoder's is 1 / kappa of that encoder.

    Args:
        smoothed_kappas: Encoder name to its smoothed balance coefficient, > 0.
        normalization: `"sum"` as printed; `"product"`: the same ratios, scaled to multipliers whose product is 1.

    Example:
        >>> learning_rate_multipliers({"vision": 4.0})
        {'language_model': 0.4, 'vision': 1.6}
        >>> learning_rate_multipliers({"vision": 4.0}, "product")
        {'language_model': 0.5, 'vision': 2.0}
    """
    shares = {LANGUAGE_MODEL: 1.0, **smoothed_kappas}
    mean = sum(shares.values()) / len(shares)
    if normalization == "product":
        mean = math.exp(math.fsum(map(math.log, shares.values())) / len(shares))
    return {module: share / mean for module, share in shares.items()}


class Controller(Protocol):
    """What decides the multipliers. `step` counts finished optimizer steps; kappas are smoothed, by encoder."""

    def before_step(self) -> None:
        """Look at the gradients and the parameters before an optimizer step."""
        ...

    def observe(self, drift: Mapping[str, float], multipliers: Mapping[str, float]) -> None:
        """Take note of a measurement: drift by module, and the multipliers that were in force when it was made."""
        ...

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: int) -> dict[str, float]:
        """One multiplier per module; zero leaves the module untouched by the optimizer."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        ...


class _Unobserving:
    """A controller that looks at smoothed kappa at most."""

    def before_step(self) -> None:
        """Nothing to look at."""

    def observe(self, drift: Mapping[str, float], multipliers: Mapping[str, float]) -> None:
        """Nothing to note."""
        del drift, multipliers


class _Stateless(_Unobserving):
    """A controller that remembers nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class FixedController(_Stateless):
    """The same multipliers for ever: Constant LR, Language LR up, Encoder LR up."""

    def __init__(self, fixed: Mapping[str, float]) -> None:
        self._fixed = dict(fixed)

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: int) -> dict[str, float]:
        """The fixed multipliers."""
        del step, kappas, measurements
        return dict(self._fixed)


class LiteralController(_Stateless):
    """Eq. 8 as printed, unbounded, from the first measurement on. It can drive a module's learning rate to zero."""

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: int) -> dict[str, float]:
        """Eq. 8."""
        del step, measurements
        return learning_rate_multipliers(kappas)


class BoundedController(_Stateless):
    """Eq. 8 on smoothed kappa over its target, clamped to [1/bound, bound], after a warm-up.

    Eq. 8 closes a loop: kappa grows with the square of lr_X/lr_S = 1/kappa, so its loop gain is -2. The loop settles
    only when the moving average spans several updates; the warm-up keeps a filling window, which spans too few, out.

    Args:
        config: Gives target, bound, normalisation and warm-up.
        encoders: Names of the feature encoders.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str]) -> None:
        self._config, self._encoders = config, tuple(encoders)
        warmup = config.warmup_measurements
        self._warmup = math.ceil(config.kappa_window / 2) if warmup is None else warmup

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: int) -> dict[str, float]:
        """Ones during the warm-up, then Eq. 8 within the bounds."""
        del step
        if measurements < self._warmup:
            return dict.fromkeys((LANGUAGE_MODEL, *self._encoders), 1.0)
        bound = self._config.kappa_bound
        shares = {name: min(max(share, 1 / bound), bound) for name, share in self._shares(kappas).items()}
        return learning_rate_multipliers(shares, self._config.rate_normalization)

    def _shares(self, kappas: Mapping[str, float]) -> dict[str, float]:
        """Encoder to the wanted ratio of its multiplier to the language model's."""
        return {name: kappa / self._config.kappa_target for name, kappa in kappas.items()}


class CompensatedController(BoundedController):
    """The rates at which kappa would be at its target, by internal model control; clamped, after a warm-up.

    A module's drift grows with the square of its learning rate, so drift over squared multiplier does not depend on the
    rates in force at a measurement. Smoothed, it gives rho, which is kappa at equal multipliers, and kappa is at its
    target where lr_m / lr_X = sqrt(rho / target). The window holds no trace of old rates: the loop has no delay, and it
    settles at the target wherever drift grows with a power of the rate between 0 and 4.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str]) -> None:
        super().__init__(config, encoders)
        self._windows = {name: KappaWindow(config.kappa_window, config.kappa_estimator) for name in encoders}

    def observe(self, drift: Mapping[str, float], multipliers: Mapping[str, float]) -> None:
        """Keep the drifts as they would be at multipliers of one."""
        at_base_rate = {name: value / multipliers[name] ** 2 for name, value in drift.items()}
        for name, window in self._windows.items():
            window.push(at_base_rate[LANGUAGE_MODEL], at_base_rate[name])

    def _shares(self, kappas: Mapping[str, float]) -> dict[str, float]:
        del kappas
        return {name: math.sqrt(w.value / self._config.kappa_target) for name, w in self._windows.items()}

    def state_dict(self) -> dict[str, Any]:
        """The compensated measurements."""
        return {"windows": {name: window.state_dict() for name, window in self._windows.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        for name, window in self._windows.items():
            window.load_state_dict(state["windows"][name])


class CoordinateDescent(_Unobserving):
    """Feature CD and Language CD: one side of the model until its weights are stable, then the other.

    The paper says "until its weights stabilize" and gives no criterion. Ours: the first side is stable once its weights
    move less, from one look to the next, than `switch_tolerance` of what they moved before the second look; at
    `switch_latest` at the latest. Looks are `switch_window` optimizer steps apart.
    """

    def __init__(self, partition: ModulePartition, first: tuple[str, ...], config: CoMMITConfig) -> None:
        self._partition, self._first, self._config = partition, first, config
        self._switched = False
        self._weights: list[torch.Tensor] | None = None
        self._initial_movement: float | None = None
        self._looked_at = 0

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: int) -> dict[str, float]:
        """One for the modules of the current phase, zero for the others."""
        del kappas, measurements
        latest = self._config.switch_latest
        if not self._switched:
            self._switched = (latest is not None and step >= latest) or self._stable(step)
        return {name: float((name in self._first) != self._switched) for name in self._partition}

    def _stable(self, step: int) -> bool:
        """Whether the first side's weights moved less since the last look than the tolerance allows."""
        if self._weights is not None and step - self._looked_at < self._config.switch_window:
            return False
        weights = [p.detach().clone() for name in self._first for p in self._partition[name]]
        before, self._weights, self._looked_at = self._weights, weights, step
        if before is None:
            return False
        movement = sum(float((new - old).double().square().sum()) for new, old in zip(weights, before, strict=True))
        movement = movement**0.5
        if self._initial_movement is None:
            self._initial_movement = movement
            return False
        return bool(movement < self._config.switch_tolerance * self._initial_movement)

    def state_dict(self) -> dict[str, Any]:
        """The phase and what the stability criterion has seen."""
        return {
            "switched": self._switched,
            "weights": self._weights,
            "initial_movement": self._initial_movement,
            "looked_at": self._looked_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        self._switched, self._weights = state["switched"], state["weights"]
        self._initial_movement, self._looked_at = state["initial_movement"], state["looked_at"]


def coordinating_controller(config: CoMMITConfig, encoders: Sequence[str]) -> Controller:
    """The controller that `config.controller` names, for these encoders and the language model."""
    match config.controller:
        case "literal":
            return LiteralController()
        case "compensated":
            return CompensatedController(config, encoders)
        case _:
            return BoundedController(config, encoders)


def make_controller(config: CoMMITConfig, partition: ModulePartition) -> Controller:
    """The controller that `config.method` stands for."""
    match config.method:
        case "commit" | "commit-clr":
            return coordinating_controller(config, partition.encoders)
        case "hypergradient":
            return HypergradientController(partition, config.kappa_bound)
        case "feature-cd":
            return CoordinateDescent(partition, partition.encoders, config)
        case "language-cd":
            return CoordinateDescent(partition, (LANGUAGE_MODEL,), config)
        case "language-lr-up" | "encoder-lr-up":
            language = config.method == "language-lr-up"
            return FixedController({m: FACTOR_UP if (m == LANGUAGE_MODEL) == language else 1.0 for m in partition})
        case _:
            return FixedController(dict.fromkeys(partition, 1.0))
