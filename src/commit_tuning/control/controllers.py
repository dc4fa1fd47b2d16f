"""From measurements to learning-rate multipliers: Eq. 8, what goes beyond it, and the paper's baselines.

A controller is asked every N_lr optimizer steps, and at every step while it is settling. It answers with one multiplier
per module: the module's learning rate is its base rate times that. A new strategy is one class with the methods of
`Controller`, listed in `commit_tuning.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from commit_tuning.config import CoMMITConfig
from commit_tuning.control.balance import FillingWindow, KappaWindow
from commit_tuning.control.base import Controller
from commit_tuning.partition.modules import LANGUAGE_MODEL

FIRST_STEP = 0.01  # of the base rate: a step whose drift is not known beforehand
DRIFT_TARGET = 5e-4  # share of the loss, where a step's gradient is of few answer tokens; with their square up to many
FEW_ANSWERS, MANY_ANSWERS = 48, 96


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


class FixedController(Controller):
    """The same multipliers for ever: Constant LR, Language LR up, Encoder LR up."""

    def __init__(self, fixed: Mapping[str, float]) -> None:
        self._fixed = dict(fixed)

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: Mapping[str, int]) -> dict[str, float]:
        """The fixed multipliers."""
        del step, kappas, measurements
        return dict(self._fixed)


class LiteralController(Controller):
    """Eq. 8 as printed, unbounded, from the first measurement on. It can drive a module's learning rate to zero."""

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: Mapping[str, int]) -> dict[str, float]:
        """Eq. 8 for the encoders that have a kappa; one for the others, which are not in its sum."""
        del step, measurements
        known = {name: kappa for name, kappa in kappas.items() if not math.isnan(kappa)}
        return {**dict.fromkeys(kappas, 1.0), **learning_rate_multipliers(known)}


class BoundedController(Controller):
    """Eq. 8 on smoothed kappa over its target, clamped to [1/bound, bound], after a warm-up.

    Eq. 8 closes a loop: kappa grows with the square of lr_X/lr_S = 1/kappa, so its loop gain is -2. The loop settles
    only when the moving average spans several updates; the warm-up keeps a filling window, which spans too few, out.
    Every encoder has a warm-up of its own. Until it ends, the encoder keeps its base rate and is not in the sum of
    Eq. 8: the other modules share out their own base rates, so an encoder whose batches come late holds up no other.

    Args:
        config: Gives target, bound, normalisation and warm-up.
        encoders: Names of the feature encoders.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str]) -> None:
        self._config, self._encoders = config, tuple(encoders)
        warmup = config.warmup_measurements
        self._warmup = math.ceil(config.kappa_window / 2) if warmup is None else warmup

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: Mapping[str, int]) -> dict[str, float]:
        """Eq. 8 within the bounds for the encoders past their warm-up; one for the others."""
        del step
        bound = self._config.kappa_bound
        shares = {n: min(max(share, 1 / bound), bound) for n, share in self._shares(kappas, measurements).items()}
        ones = dict.fromkeys((LANGUAGE_MODEL, *self._encoders), 1.0)
        return {**ones, **learning_rate_multipliers(shares, self._config.rate_normalization)}

    def _shares(self, kappas: Mapping[str, float], measurements: Mapping[str, int]) -> dict[str, float]:
        """Encoder past its warm-up to the wanted ratio of its multiplier to the language model's."""
        ready = [name for name, count in measurements.items() if count >= self._warmup]
        return {name: kappas[name] / self._config.kappa_target for name in ready}


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

    def observe(
        self, drift: Mapping[str, float], factors: Mapping[str, float], loss: float, answers: float = 0.0
    ) -> None:
        """Keep the drifts as they would be at the base rates."""
        del loss, answers
        at_base_rate = _at_base_rate(drift, factors)
        for name, window in self._windows.items():
            window.push(at_base_rate.get(LANGUAGE_MODEL, math.nan), at_base_rate.get(name, math.nan))

    def _shares(self, kappas: Mapping[str, float], measurements: Mapping[str, int]) -> dict[str, float]:
        del kappas, measurements
        ready = {name: window for name, window in self._windows.items() if len(window) >= self._warmup}
        return {name: math.sqrt(window.value / self._config.kappa_target) for name, window in ready.items()}

    def state_dict(self) -> dict[str, Any]:
        """The compensated measurements."""
        return _state_of(self._windows)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        _load_state(self._windows, state)


class TrustRegionController(Controller):
    """The rates at which every module's step moves the output distribution by its budget, and kappa is at its target.

    The budget is a share of the present loss: the drift target x sqrt(kappa target) of it for the language model and
    over sqrt(kappa target) for an encoder. A module's drift grows with the square of its learning rate, so its
    rate is its base rate over the square root of how many times over its budget its drift is at the base rate,
    smoothed. That product does not depend on the base rate. A KL divergence as the measure of a step is the trust
    region of natural gradient methods (Schulman et al. 2015, arXiv 1502.05477), here one for each module.

    The first step is taken at a hundredth of the base rate and measured, for what the base rate does is not known yet;
    at the base rate itself where weights in half precision would round a hundredth away, and its drift with it. What
    the first steps say holds for none but the next, so until a window is full the average is of the last half of what
    there is, and every measurement sets the rates at once. A module whose drift was never measured keeps its first
    rate. One with little effect on the outputs would be driven up for
    ever, so no multiplier exceeds `kappa_bound` times the smallest that was measured, nor times its own first.

    A measurement counts once for every module in it. Where batches are of one modality each, the language model is in
    the measurements of all encoders, so its average is over all modalities and not over the one that is always due.

    Args:
        config: Gives drift target, kappa target, window, estimator and bound.
        encoders: Names of the feature encoders.
        coarse: Modules with weights in half precision.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str], coarse: Collection[str] = ()) -> None:
        share = math.sqrt(config.kappa_target)
        self._config, self._bound = config, config.kappa_bound
        self._portions = {LANGUAGE_MODEL: share, **dict.fromkeys(encoders, 1 / share)}  # of the drift target
        self._windows = {name: FillingWindow(config.kappa_window, config.kappa_estimator) for name in self._portions}
        self._unmeasured = {name: 1.0 if name in coarse else FIRST_STEP for name in self._portions}
        self._first: dict[str, float] = {}

    @property
    def starting(self) -> bool:
        """Whether nothing was measured yet."""
        return not any(map(len, self._windows.values()))

    @property
    def settling(self) -> bool:
        """Whether no window is full yet; one that is never measured does not fill."""
        return not any(window.full for window in self._windows.values())

    def observe(
        self, drift: Mapping[str, float], factors: Mapping[str, float], loss: float, answers: float = 0.0
    ) -> None:
        """Keep how many times over its budget each drift would be at the base rate."""
        target = drift_target(self._config, answers) * loss
        for name, value in _at_base_rate(drift, factors).items():
            self._windows[name].push(value, self._portions[name] * target)

    def multipliers(self, step: int, kappas: Mapping[str, float], measurements: Mapping[str, int]) -> dict[str, float]:
        """The first step's before the first measurement, then what is on budget."""
        del step, kappas, measurements
        wanted = {name: window.value**-0.5 for name, window in self._windows.items() if len(window)}
        self._first = {**wanted, **self._first}
        limits = {name: self._bound * min(self._first[name], *wanted.values()) for name in wanted}
        return {n: min(wanted[n], limits[n]) if n in wanted else first for n, first in self._unmeasured.items()}

    def state_dict(self) -> dict[str, Any]:
        """The measurements, and the first multipliers that followed from one."""
        return {**_state_of(self._windows), "first": dict(self._first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        _load_state(self._windows, state)
        self._first = dict(state["first"])


def drift_target(config: CoMMITConfig, answers: float) -> float:
    """The drift of one step as a share of the loss: as set, or by how many answer tokens the step's gradient is of.

    The noise of a gradient falls with what it is a mean of, so steps can be longer, up to a point (McCandlish et al.
    2018, arXiv 1812.06162). The numbers are measured (`docs/stability.md`), the exponent between few and many is
    interpolated.

    Args:
        config: Gives `drift_target`.
        answers: Answer tokens in the step's batch, on all processes; 0 where that is not known.

    Example:
        >>> [round(drift_target(CoMMITConfig(), answers), 6) for answers in (0, 32, 72, 10_000)]
        [0.0005, 0.0005, 0.001125, 0.002]
    """
    if config.drift_target != "auto":
        return config.drift_target
    return DRIFT_TARGET * (min(max(answers, FEW_ANSWERS), MANY_ANSWERS) / FEW_ANSWERS) ** 2


def _at_base_rate(drift: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """The drifts at factors of one; NaN for a module that was at rest."""
    return {name: value / factors[name] ** 2 if factors[name] else math.nan for name, value in drift.items()}


def _state_of(windows: Mapping[str, KappaWindow]) -> dict[str, Any]:
    return {"windows": {name: window.state_dict() for name, window in windows.items()}}


def _load_state(windows: Mapping[str, KappaWindow], state: dict[str, Any]) -> None:
    for name, window in windows.items():
        window.load_state_dict(state["windows"][name])
