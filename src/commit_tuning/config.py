"""The settings of CoMMIT: one frozen dataclass, every check in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from commit_tuning.errors import ConfigError, one_line

Method = Literal[
    "constant",
    "feature-cd",
    "language-cd",
    "commit-clr",
    "commit",
    "synced",
    "language-lr-up",
    "encoder-lr-up",
    "hypergradient",
]
ControllerName = Literal["trust-region", "compensated", "bounded", "literal"]
Normalization = Literal["sum", "product"]
Estimator = Literal["arithmetic", "geometric", "ratio"]
RegularizerName = Literal["lookahead", "previous-step", "drift-penalty"]
RegularizerStep = Literal["raw", "optimizer"]
ProjectorPlace = Literal["encoder", "language_model", "own"]
RegularizerLabels = Literal["given", "sampled"]

METHODS: tuple[str, ...] = get_args(Method)
CONTROLLERS: tuple[str, ...] = get_args(ControllerName)
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
REGULARIZERS: tuple[str, ...] = get_args(RegularizerName)
REGULARIZER_STEPS: tuple[str, ...] = get_args(RegularizerStep)
PROJECTOR_PLACES: tuple[str, ...] = get_args(ProjectorPlace)
REGULARIZER_LABELS: tuple[str, ...] = get_args(RegularizerLabels)
COORDINATED = ("commit-clr", "commit")
UNCONTROLLED = ("constant", "synced")
DESCENTS = ("feature-cd", "language-cd")
MOST = 10**9
"""Largest number that a setting may be: far beyond use, and safe to compute with in single precision."""


@dataclass(frozen=True, kw_only=True)
class CoMMITConfig:
    """How balance is measured and what is done about it.

    `CoMMITConfig()` is the default that we can show evidence for; `CoMMITConfig.paper()` is the paper to the
    letter. Where the paper gives no value (`kappa_window`, `lr_update_interval`), the choice is ours.

    Args:
        method: What sets the learning rates.

            - `"commit-clr"`: coordinated learning rates, set by the controller (Eq. 7-8 in the paper), no regulariser.
            - `"commit"`: the same and the drift regulariser (Eq. 9-10).
            - `"constant"` (in Section 5 of the paper `"synced"`): no control, measurement only.
            - `"feature-cd"`, `"language-cd"`: coordinate descent, the encoders first or the language model first.
            - `"language-lr-up"`, `"encoder-lr-up"`: ten times the rate for that module.
            - `"hypergradient"`: a rival, not in the paper and not CoMMIT. Raises a module's rate while its gradient
              goes on along its last step and lowers it where it turns. Keeps a copy of the trainable parameters.
        controller: What turns the measured drifts, or smoothed kappa, into learning rates
            (`docs/explanation/stability.md`).

            - `"trust-region"`: every module's rate is the one at which its drift is on a budget: `drift_target` of the
              loss, shared out by `kappa_target`. What base rate it starts from does not matter; a schedule of the base
              rates scales the rates as ever. Not in the paper.
            - `"compensated"`: takes the rates in force out of every measurement, and sets the ratio of rates at which
              kappa is at its target; no residual error and no delay. Not in the paper.
            - `"bounded"`: Eq. 8 on kappa / target, clamped, after a warm-up. It settles where kappa / target is the
              cube root of what it is at equal rates.
            - `"literal"`: Eq. 8 as printed, unbounded.
        kappa_estimator: The moving average of Eq. 7: `"arithmetic"` as printed, `"geometric"` mean, or `"ratio"` of
            the summed drifts. `"trust-region"` averages every module's drift over its budget in the same way, and
            kappa only to report it.
        kappa_window: Measurements in the moving average (the paper's N_kappa), of kappa or of drift over budget. While
            it fills, the mean of kappa is of what there is; that of `"trust-region"` is of the last half of it.
        lr_update_interval: Optimizer steps between two updates of the learning rates (the paper's N_lr). Under
            `"trust-region"` every measurement sets them until its window is full.
        probe_interval: Optimizer steps between two measurements; `None` never measures.
        probe_samples: Samples that a measurement looks at, the first of the step's batch with an answer; `None`: all.
        drift_scale: How far along its update a module is moved when its drift is measured, in optimizer steps (the
            drift is divided by the square). 1 is Eq. 2-3 to the letter; `"auto"` is 1 while that stands clear of the
            rounding noise, and farther where it does not.
        kappa_target: The smoothed kappa that the controller aims at. Not used by `"literal"`, which aims at 1.
        kappa_bound: The language model's multiplier over an encoder's stays in [1/bound, bound]. `"trust-region"` lets
            none exceed bound times its first as well; with method `"hypergradient"` each multiplier stays in the range.
            `"auto"` is 1000 for `"trust-region"` and 100 elsewhere. Not used by `"literal"`.
        drift_target: What one step of a module may move the output distribution, as a share of the present loss (nats
            of Eq. 2-3 per nat). `"trust-region"` holds the geometric mean of the language model's and an encoder's
            drift there. `"auto"` is 5e-4 for steps of up to 48 answer tokens (on all processes, in all micro-batches),
            2e-3 from 96 on, and rises with their square between.
        rate_normalization: `"sum"` as in Eq. 8: the multipliers of M modules sum to M, so none exceeds M; `"product"`:
            their product is 1, so a rate rises by what the others fall. `"literal"` always takes the sum;
            `"trust-region"` needs neither.
        warmup_measurements: Measurements before `"compensated"` or `"bounded"` acts, at most `kappa_window`; `None` for
            half of it. The others act from the first.
        starvation_patience: Measurements in a row in which a module has to be held back, by its learning rate or in its
            drift, before it is called starving. Batches without any answer that are put up with before the first one.
        regularizer: The reading of Eq. 9-10, `"lookahead"` or `"previous-step"`; `None` for none; `"auto"` is
            `"lookahead"` for method `"commit"` and `None` for the others. `"drift-penalty"` is `"previous-step"` with
            the opposite sign, a KL trust region against the previous step: not in the paper, and not CoMMIT.
        regularizer_weight: Weight of the drift's gradient; the paper's is 1.
        regularizer_step: `"raw"` adds learning rate x weight x gradient to the parameters as in Eq. 9-10;
            `"optimizer"` adds the gradient to the loss gradient before the optimizer's step (previous-step only).
        regularizer_labels: The answers on which the regulariser takes the drift: `"given"` in the batch, or `"sampled"`
            from the model at every step, so that it needs no labels. Kappa is always measured on the given ones.
        shift_labels: True when the logits at position j predict the label at j + 1, as in transformers' causal models;
            False where they predict the label at j, as in encoder-decoders. `"auto"` asks the model.
        switch_window: Coordinate descent: optimizer steps between two looks at the weights of the first module, which
            are taken only when rates are set, every `lr_update_interval` steps.
        switch_tolerance: Coordinate descent: the first module counts as stable once it moves less over one window than
            this fraction of what it moved over the first.
        switch_latest: Coordinate descent: optimizer step at which the second phase begins at the latest, if rates are
            set then, or else when they are set next.

    Raises:
        ConfigError: Any setting is not valid; all faults are named at once.

    Example:
        >>> CoMMITConfig(kappa_window=30).kappa_window
        30
        >>> CoMMITConfig(method="comit", kappa_window=0)
        Traceback (most recent call last):
        ...
        commit_tuning.errors.ConfigError: 2 faults in CoMMITConfig: method='comit' is not one of constant, ...
    """

    method: Method = "commit-clr"
    controller: ControllerName = "trust-region"
    kappa_estimator: Estimator = "geometric"
    kappa_window: int = 20
    lr_update_interval: int = 10
    probe_interval: int | None = 5
    probe_samples: int | None = 8
    drift_scale: float | Literal["auto"] = "auto"
    kappa_target: float = 1.0
    kappa_bound: float = "auto"  # type: ignore[assignment]  # a number from __post_init__ on
    drift_target: float | Literal["auto"] = "auto"
    rate_normalization: Normalization = "sum"
    warmup_measurements: int | None = None
    starvation_patience: int = 10
    regularizer: RegularizerName | Literal["auto"] | None = "auto"
    regularizer_weight: float = 1.0
    regularizer_step: RegularizerStep = "raw"
    regularizer_labels: RegularizerLabels = "given"
    shift_labels: bool | Literal["auto"] = "auto"
    switch_window: int = 25
    switch_tolerance: float = 0.5
    switch_latest: int | None = None

    def __post_init__(self) -> None:
        """Resolve `"auto"` and refuse what is not valid."""
        if self.regularizer == "auto":
            object.__setattr__(self, "regularizer", "lookahead" if self.method == "commit" else None)
        if self.kappa_bound == "auto":  # type: ignore[comparison-overlap]
            object.__setattr__(self, "kappa_bound", 1000.0 if self.sets_drift else 100.0)
        faults = self._faults()
        if faults:
            count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
            raise ConfigError(f"{count} in CoMMITConfig: " + "; ".join(faults))

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """The paper to the letter: Eq. 4 at every step on every sample, Eq. 7-8 as printed, Eq. 9-10 with weight 1.

        The paper gives no N_kappa and no N_lr; 20 and 10 are our choice.
        """
        literal = {
            "method": "commit",
            "controller": "literal",
            "kappa_estimator": "arithmetic",
            "kappa_window": 20,
            "lr_update_interval": 10,
            "probe_interval": 1,
            "probe_samples": None,
            "drift_scale": 1.0,
            "regularizer_weight": 1.0,
            "regularizer_step": "raw",
            "regularizer_labels": "given",
        }
        return cls(**{**literal, **overrides})

    @property
    def coordinated(self) -> bool:
        """Whether what is measured, kappa or the drifts themselves, sets the learning rates."""
        return self.method in COORDINATED

    @property
    def sets_rates(self) -> bool:
        """Whether the modules' learning rates are not left as they are."""
        return self.method not in UNCONTROLLED

    @property
    def scales_rates(self) -> bool:
        """Whether learning rates are multiplied by other numbers than zero and one."""
        return self.sets_rates and self.method not in DESCENTS

    @property
    def has_bound(self) -> bool:
        """Whether `kappa_bound` limits the ratio of the learning rates."""
        return self.coordinated and self.controller != "literal"

    @property
    def sets_drift(self) -> bool:
        """Whether drifts set the rates, so that a small multiplier says nothing but that the base rate is large."""
        return self.coordinated and self.controller == "trust-region"

    def _faults(self) -> list[str]:
        """Every fault of the settings, as text that names the field, its value and what is accepted."""
        faults: list[str] = []

        def accept(name: str, choices: tuple[Any, ...]) -> None:
            value = getattr(self, name)
            if value not in choices:
                listed = ", ".join(str(c) for c in choices)
                faults.append(f"{name}={_shown(value)} is not one of {listed}")

        def whole(name: str, *, optional: bool = False) -> None:
            value = getattr(self, name)
            if optional and value is None:
                return
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
                allowed = f"a whole number from 1 to {MOST:g}" + (" or None" if optional else "")
                faults.append(f"{name}={_shown(value)} must be {allowed}")

        def number(name: str, *, above: float) -> None:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not above < value <= MOST:
                faults.append(f"{name}={_shown(value)} must be a number above {above:g}, up to {MOST:g}")

        accept("method", METHODS)
        accept("controller", CONTROLLERS)
        accept("kappa_estimator", ESTIMATORS)
        accept("rate_normalization", NORMALIZATIONS)
        accept("regularizer", (None, *REGULARIZERS))
        accept("regularizer_step", REGULARIZER_STEPS)
        accept("regularizer_labels", REGULARIZER_LABELS)
        accept("shift_labels", (True, False, "auto"))
        for name in ("kappa_window", "lr_update_interval", "starvation_patience", "switch_window"):
            whole(name)
        for name in ("probe_interval", "probe_samples", "warmup_measurements", "switch_latest"):
            whole(name, optional=True)
        if self.drift_scale != "auto":
            number("drift_scale", above=0)
        number("kappa_target", above=0)
        number("kappa_bound", above=1)
        if self.drift_target != "auto":
            number("drift_target", above=0)
        number("regularizer_weight", above=0)
        number("switch_tolerance", above=0)
        faults.extend(self._contradictions())
        return faults

    def _contradictions(self) -> list[str]:
        """Settings that are valid alone and not together."""
        faults = []
        if self.coordinated and self.probe_interval is None:
            faults.append(f"probe_interval=None measures nothing, and method={self.method!r} needs kappa")
        if self.method == "commit" and self.regularizer is None:
            faults.append("method='commit' needs a regularizer; without one the method is 'commit-clr'")
        if self.method == "commit" and self.regularizer == "drift-penalty":
            faults.append("method='commit' rewards drift (Eq. 9-10); with 'drift-penalty' the method is 'commit-clr'")
        if self.method == "commit-clr" and self.regularizer not in (None, "drift-penalty"):
            faults.append("method='commit-clr' has no regularizer; with one the method is 'commit'")
        if self.regularizer is None and self.regularizer_labels == "sampled":
            faults.append(
                "regularizer_labels='sampled' does nothing without a regularizer; set one, or leave it 'given'"
            )
        if self.regularizer == "lookahead" and self.regularizer_step == "optimizer":
            faults.append("regularizer='lookahead' acts after the optimizer's step, so regularizer_step must be 'raw'")
        if self.controller == "literal" and self.rate_normalization != "sum":
            faults.append("controller='literal' is Eq. 8 as printed, so rate_normalization must be 'sum'")
        warmup, window = self.warmup_measurements, self.kappa_window
        if isinstance(warmup, int) and isinstance(window, int) and warmup > window:
            faults.append(
                f"warmup_measurements={warmup} is more than kappa_window={window} holds, so nothing would act"
            )
        return faults

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a record."""
        return dataclasses.asdict(self)


def _shown(value: object) -> str:
    """A setting as Python writes it, shortened."""
    return one_line(repr(value), 60)
