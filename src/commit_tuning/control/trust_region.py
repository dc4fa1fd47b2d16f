"""The default: every module's step moves the output distribution by its budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from commit_tuning.config import CoMMITConfig, TrustRegion
from commit_tuning.control.base import Controller
from commit_tuning.measure.balance import FadingWindow, SuffixWindow, load_states, state_of
from commit_tuning.measure.probe import Measurement
from commit_tuning.partition.modules import LANGUAGE_MODEL

FIRST_STEP = 0.01  # of the base rate: a step whose drift is not known beforehand
DRIFT_TARGET = 5e-4  # share of the loss, where a step's gradient is of few target tokens; with their square up to many
FEW_TOKENS, MANY_TOKENS = 48, 96


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
    there is, and every measurement sets the rates at once. Measurements by need fade out instead. A module whose drift
    was never measured keeps its first rate. One with little effect on the outputs would be driven up for ever, so no
    multiplier exceeds `bound` times the smallest that was measured, nor times its own first.

    A measurement counts once for every module in it. Where batches are of one modality each, the language model is in
    the measurements of all encoders, so its average is over all modalities and not over the one that is always due.

    Args:
        config: Its controller is a `TrustRegion`; it gives window and estimator.
        encoders: Names of the feature encoders.
        low_precision: Modules with weights in half precision.
    """

    def __init__(self, config: CoMMITConfig, encoders: Sequence[str], low_precision: Collection[str] = ()) -> None:
        super().__init__((LANGUAGE_MODEL, *encoders))
        assert isinstance(config.controller, TrustRegion)
        self._settings, share = config.controller, math.sqrt(config.controller.kappa_target)
        self._portions = {LANGUAGE_MODEL: share, **dict.fromkeys(encoders, 1 / share)}  # of the drift target
        window = FadingWindow if config.interval == "auto" else SuffixWindow
        self._windows = {name: window(config.kappa_window, config.kappa_estimator) for name in self._portions}
        self._unmeasured = {name: 1.0 if name in low_precision else FIRST_STEP for name in self._portions}
        self._first: dict[str, float] = {}

    @property
    def starting(self) -> bool:
        """Whether nothing was measured yet."""
        return not any(map(len, self._windows.values()))

    @property
    def settling(self) -> bool:
        """Whether no window is full yet; one that is never measured does not fill."""
        return not any(window.full for window in self._windows.values())

    def observe(self, measurement: Measurement, in_force: Mapping[str, float]) -> None:
        """Keep how many times over its budget each drift would be at the base rate."""
        target = drift_target(self._settings, measurement.target_tokens) * measurement.loss
        for name, drift in measurement.at_base_rate(in_force).items():
            self._windows[name].push(drift, self._portions[name] * target, measurement.samples)

    def multipliers(self, step: int) -> dict[str, float]:
        """The first step's before the first measurement, then what is on budget."""
        del step
        wanted = {name: window.value**-0.5 for name, window in self._windows.items() if len(window)}
        self._first = {**wanted, **self._first}
        limits = {name: self._settings.bound * min(self._first[name], *wanted.values()) for name in wanted}
        return {n: min(wanted[n], limits[n]) if n in wanted else first for n, first in self._unmeasured.items()}

    def state_dict(self) -> dict[str, Any]:
        """The measurements, and the first multipliers that followed from one."""
        return {"windows": state_of(self._windows), "first": dict(self._first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        load_states(self._windows, state["windows"])
        self._first = dict(state["first"])


def drift_target(settings: TrustRegion, target_tokens: float) -> float:
    """The drift of one step as a share of the loss: as set, or by how many target tokens the step's gradient is of.

    The noise of a gradient falls with what it is a mean of, so steps can be longer, up to a point (McCandlish et al.
    2018, arXiv 1812.06162). The numbers are measured (`docs/explanation/stability.md`), the exponent between few
    and many is interpolated.

    Args:
        settings: Give `drift_target`.
        target_tokens: Of the step's batch, on all processes; 0 where that is not known.

    Example:
        >>> [round(drift_target(TrustRegion(), tokens), 6) for tokens in (0, 32, 72, 10_000)]
        [0.0005, 0.0005, 0.001125, 0.002]
    """
    if settings.drift_target != "auto":
        return settings.drift_target
    return DRIFT_TARGET * (min(max(target_tokens, FEW_TOKENS), MANY_TOKENS) / FEW_TOKENS) ** 2
