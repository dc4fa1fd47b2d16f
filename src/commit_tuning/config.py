"""The settings of CoMMIT: one frozen dataclass for each part that reads them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from commit_tuning.errors import ConfigError, one_line

Normalization = Literal["sum", "product"]
Estimator = Literal["arithmetic", "geometric", "ratio"]
RegularizerStep = Literal["raw", "optimizer"]
RegularizerLabels = Literal["given", "sampled"]
ProjectorPlace = Literal["encoder", "language_model", "own"]

NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
REGULARIZER_STEPS: tuple[str, ...] = get_args(RegularizerStep)
REGULARIZER_LABELS: tuple[str, ...] = get_args(RegularizerLabels)
PROJECTOR_PLACES: tuple[str, ...] = get_args(ProjectorPlace)
COORDINATED = ("commit-clr", "commit")
UNCONTROLLED = ("constant", "synced")
DESCENTS = ("feature-cd", "language-cd")
METHODS = ["constant", *DESCENTS, *COORDINATED, "synced", "language-lr-up", "encoder-lr-up"]
"""What `CoMMITConfig.method` may be; `commit_tuning.methods.add_method` adds to it."""

MOST = 10**9
"""Largest number that a setting may be: far beyond use, and safe to compute with in single precision."""


_S = TypeVar("_S")


class Settings:
    """Base of every dataclass of settings.

    Raises:
        ConfigError: Any setting is not valid; all faults are named at once.
    """

    def __post_init__(self) -> None:
        """Refuse what is not valid."""
        if faults := list(self._faults()):
            count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
            raise ConfigError(f"{count} in {type(self).__name__}: " + "; ".join(faults), faults)

    def _faults(self) -> Iterator[str]:
        """Every fault of the settings, as text that names the field, its value and what is accepted."""
        raise NotImplementedError

    def _one_of(self, name: str, choices: Collection[Any]) -> Iterator[str]:
        value = getattr(self, name)
        if value not in choices:
            yield f"{name}={_shown(value)} is not one of {', '.join(map(str, choices))}"

    def _whole(self, *names: str, optional: bool = False) -> Iterator[str]:
        for name in names:
            value = getattr(self, name)
            if optional and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
                allowed = f"a whole number from 1 to {MOST:g}" + (" or None" if optional else "")
                yield f"{name}={_shown(value)} must be {allowed}"

    def _number(self, name: str, *, above: float = 0, auto: bool = False) -> Iterator[str]:
        value = getattr(self, name)
        if auto and value == "auto":
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not above < value <= MOST:
            yield f"{name}={_shown(value)} must be a number above {above:g}, up to {MOST:g}"


@dataclass(frozen=True, kw_only=True)
class Probe(Settings):
    """How the drift of each module is measured.

    Args:
        interval: Optimizer steps between two measurements; `None` never measures.
        samples: Samples that a measurement looks at, the first of the step's batch with an answer; `None`: all.
        drift_scale: How far along its update a module is moved when its drift is measured, in optimizer steps (the
            drift is divided by the square). 1 is Eq. 2-3 to the letter; `"auto"` is 1 while that stands clear of the
            rounding noise, and farther where it does not.
        shift_labels: True when the logits at position j predict the label at j + 1, as in transformers' causal models;
            False where they predict the label at j, as in encoder-decoders. `"auto"` asks the model.

    Raises:
        ConfigError: A setting is not valid.
    """

    interval: int | None = 5
    samples: int | None = 8
    drift_scale: float | Literal["auto"] = "auto"
    shift_labels: bool | Literal["auto"] = "auto"

    def _faults(self) -> Iterator[str]:
        yield from self._whole("interval", "samples", optional=True)
        yield from self._number("drift_scale", auto=True)
        yield from self._one_of("shift_labels", (True, False, "auto"))


@dataclass(frozen=True, kw_only=True)
class TrustRegion(Settings):
    """The default controller: each module gets the learning rate at which its drift is on a budget. Not in the paper.

    The base rate does not matter; a schedule of the base rates scales the rates as ever.

    Args:
        drift_target: How far one step of a module may move the output distribution, as a share of the present loss
            (nats of Eq. 2-3 per nat). The geometric mean of the language model's and an encoder's drift is held there.
            `"auto"` is 5e-4 for steps of up to 48 target tokens (on all processes, in all micro-batches), 2e-3 from 96
            on, and rises with their square between.
        kappa_target: The kappa that shares the budget out.
        bound: No multiplier exceeds bound times the smallest, nor bound times its own first.

    Raises:
        ConfigError: A setting is not valid.
    """

    name: ClassVar[str] = "trust-region"
    drift_target: float | Literal["auto"] = "auto"
    kappa_target: float = 1.0
    bound: float = 1000.0

    def _faults(self) -> Iterator[str]:
        yield from self._number("drift_target", auto=True)
        yield from self._number("kappa_target")
        yield from self._number("bound", above=1)


@dataclass(frozen=True, kw_only=True)
class Bounded(Settings):
    """Eq. 8 on kappa / target, clamped, after a warm-up. Not in the paper.

    It settles where kappa / target is the cube root of what it is at equal rates.

    Args:
        kappa_target: The smoothed kappa that the controller aims at.
        bound: The language model's multiplier over an encoder's stays in [1/bound, bound].
        normalization: `"sum"` as in Eq. 8: the multipliers of M modules sum to M, so none exceeds M. `"product"`: their
            product is 1, so a rate rises by what the others fall.
        warmup: Measurements before the controller acts, at most `kappa_window`; `None` for half of it.

    Raises:
        ConfigError: A setting is not valid.
    """

    name: ClassVar[str] = "bounded"
    kappa_target: float = 1.0
    bound: float = 100.0
    normalization: Normalization = "sum"
    warmup: int | None = None

    def _faults(self) -> Iterator[str]:
        yield from self._number("kappa_target")
        yield from self._number("bound", above=1)
        yield from self._one_of("normalization", NORMALIZATIONS)
        yield from self._whole("warmup", optional=True)


@dataclass(frozen=True, kw_only=True)
class Compensated(Bounded):
    """A controller that takes the rates in force out of every measurement. Not in the paper.

    It sets the ratio of rates at which kappa is at its target, with no residual error and no delay. The settings are
    those of `Bounded`.
    """

    name: ClassVar[str] = "compensated"


@dataclass(frozen=True, kw_only=True)
class LiteralEq8(Settings):
    """Eq. 8 as printed: unbounded, aiming at kappa = 1. It has no settings of its own."""

    name: ClassVar[str] = "literal"

    def _faults(self) -> Iterator[str]:
        return iter(())


@dataclass(frozen=True, kw_only=True)
class Lookahead(Settings):
    """The regulariser of Eq. 9-10, whose gradient is taken where the plain step leads.

    Args:
        weight: Weight of the drift's gradient; the paper's is 1.
        labels: The answers on which the regulariser takes the drift: `"given"` in the batch, or `"sampled"` from the
            model at every step, so that it needs no labels. Kappa is always measured on the given ones.

    Raises:
        ConfigError: A setting is not valid.
    """

    name: ClassVar[str] = "lookahead"
    weight: float = 1.0
    labels: RegularizerLabels = "given"

    def _faults(self) -> Iterator[str]:
        yield from self._number("weight")
        yield from self._one_of("labels", REGULARIZER_LABELS)


@dataclass(frozen=True, kw_only=True)
class PreviousStep(Lookahead):
    """The regulariser of Eq. 9-10, on the drift since the step before. Weight and labels are those of `Lookahead`.

    Args:
        step: `"raw"` adds learning rate x weight x gradient to the parameters as in Eq. 9-10; `"optimizer"` adds the
            gradient to the loss gradient before the optimizer's step.

    Raises:
        ConfigError: A setting is not valid.
    """

    name: ClassVar[str] = "previous-step"
    step: RegularizerStep = "raw"

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        yield from self._one_of("step", REGULARIZER_STEPS)


@dataclass(frozen=True, kw_only=True)
class DriftPenalty(PreviousStep):
    """`PreviousStep` with the opposite sign: a KL trust region against the previous step. Not in the paper."""

    name: ClassVar[str] = "drift-penalty"


@dataclass(frozen=True, kw_only=True)
class Switch(Settings):
    """When coordinate descent goes on from the first side of the model to the second.

    Args:
        window: Optimizer steps between two looks at the weights of the first side. Looks are taken only when rates are
            set, every `lr_update_interval` steps.
        tolerance: The first side counts as stable once it moves less over one window than this fraction of what it
            moved over the first.
        latest: Optimizer step at which the second phase begins at the latest, if rates are set then, or else when they
            are set next.

    Raises:
        ConfigError: A setting is not valid.
    """

    window: int = 25
    tolerance: float = 0.5
    latest: int | None = None

    def _faults(self) -> Iterator[str]:
        yield from self._whole("window")
        yield from self._number("tolerance")
        yield from self._whole("latest", optional=True)


Controller = TrustRegion | Bounded | LiteralEq8
Regularizer = Lookahead
CONTROLLERS: dict[str, type[Controller]] = {c.name: c for c in (TrustRegion, Compensated, Bounded, LiteralEq8)}
REGULARIZERS: dict[str, type[Regularizer]] = {r.name: r for r in (Lookahead, PreviousStep, DriftPenalty)}

MOVED = {
    "probe_interval": "probe.interval",
    "probe_samples": "probe.samples",
    "drift_scale": "probe.drift_scale",
    "shift_labels": "probe.shift_labels",
    "drift_target": "controller.drift_target",
    "kappa_target": "controller.kappa_target",
    "kappa_bound": "controller.bound",
    "rate_normalization": "controller.normalization",
    "warmup_measurements": "controller.warmup",
    "regularizer_weight": "regularizer.weight",
    "regularizer_step": "regularizer.step",
    "regularizer_labels": "regularizer.labels",
    "switch_window": "switch.window",
    "switch_tolerance": "switch.tolerance",
    "switch_latest": "switch.latest",
}
"""Where the flat settings of development versions are now."""


def _refusing_moved(settings: type[_S]) -> type[_S]:
    """Make a class of settings that says of a flat name where it is now."""
    make = settings.__init__

    @functools.wraps(make)
    def init(self: _S, *args: Any, **named: Any) -> None:
        if moved := [old for old in named if old in MOVED]:
            places = {old: "={'".join(MOVED[old].split(".")) for old in moved}
            raise ConfigError("; ".join(f"{old} is {place}': ...}} now" for old, place in places.items()))
        make(self, *args, **named)

    settings.__init__ = init  # type: ignore[assignment]
    return settings


@_refusing_moved
@dataclass(frozen=True, kw_only=True)
class CoMMITConfig(Settings):
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
        controller: What turns the measured drifts, or smoothed kappa, into learning rates under a coordinated method
            (`docs/explanation/stability.md`): `TrustRegion`, `Compensated`, `Bounded` or `LiteralEq8`. A name stands
            for one with its defaults: `"trust-region"`, `"compensated"`, `"bounded"`, `"literal"`.
        probe: How the drift of each module is measured.
        regularizer: The reading of Eq. 9-10: `Lookahead`, `PreviousStep` or `DriftPenalty`, or a name:
            `"lookahead"`, `"previous-step"`, `"drift-penalty"`. `None` for none. `"auto"` is `Lookahead()` for method
            `"commit"` and `None` for the others.
        switch: When coordinate descent goes on to the second side.
        kappa_estimator: The moving average of Eq. 7: `"arithmetic"` as printed, `"geometric"` mean, or `"ratio"` of
            the summed drifts. `TrustRegion` averages every module's drift over its budget in the same way, and kappa
            only to report it.
        kappa_window: Measurements in the moving average (the paper's N_kappa), of kappa or of drift over budget. While
            it fills, the mean of kappa is of what there is; that of `TrustRegion` is of the last half of it.
        lr_update_interval: Optimizer steps between two updates of the learning rates (the paper's N_lr). Under
            `TrustRegion` every measurement sets them until its window is full.
        starvation_patience: Measurements in a row in which a module has to be held back, by its learning rate or in its
            drift, before it is called starving. Batches without any answer that are put up with before the first one.

    A mapping of plain values stands for a nested setting, too: `probe={"interval": 10}`, and
    `controller={"name": "bounded", "bound": 50}`. A `to_dict()` holds such mappings.

    Raises:
        ConfigError: Any setting is not valid; all faults are named at once.

    Example:
        >>> CoMMITConfig(controller=TrustRegion(drift_target=1e-3), kappa_window=30).controller
        TrustRegion(drift_target=0.001, kappa_target=1.0, bound=1000.0)
        >>> CoMMITConfig(method="comit", kappa_window=0)
        Traceback (most recent call last):
        ...
        commit_tuning.errors.ConfigError: 2 faults in CoMMITConfig: method='comit' is not one of constant, ...
    """

    method: str = "commit-clr"
    controller: Controller = TrustRegion()
    probe: Probe = Probe()
    regularizer: Regularizer | None = "auto"  # type: ignore[assignment]  # resolved by __post_init__
    switch: Switch = Switch()
    kappa_estimator: Estimator = "geometric"
    kappa_window: int = 20
    lr_update_interval: int = 10
    starvation_patience: int = 10

    def __post_init__(self) -> None:
        """Make nested settings of names and mappings, resolve `"auto"`, and refuse what is not valid."""
        if self.regularizer == "auto":  # type: ignore[comparison-overlap]
            object.__setattr__(self, "regularizer", Lookahead() if self.method == "commit" else None)
        super().__post_init__()

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """The paper to the letter: Eq. 4 at every step on every sample, Eq. 7-8 as printed, Eq. 9-10 with weight 1.

        The paper gives no N_kappa and no N_lr; 20 and 10 are our choice.

        Args:
            **overrides: Other settings. `probe={"samples": 8}` changes that alone, `probe=Probe(samples=8)` all of it.
        """
        probe = {"interval": 1, "samples": None, "drift_scale": 1.0}
        if isinstance(changed := overrides.get("probe"), Mapping):
            overrides["probe"] = {**probe, **changed}
        literal = {
            "method": "commit",
            "controller": LiteralEq8(),
            "probe": probe,
            "kappa_estimator": "arithmetic",
            "kappa_window": 20,
            "lr_update_interval": 10,
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
    def sets_drift(self) -> bool:
        """Whether drifts set the rates, so that a small multiplier says nothing but that the base rate is large."""
        return self.coordinated and isinstance(self.controller, TrustRegion)

    @property
    def ratio_bound(self) -> float | None:
        """What limits the ratio of the learning rates of two modules; None where nothing does."""
        return self.controller.bound if self.coordinated and isinstance(self.controller, Bounded) else None

    def _faults(self) -> Iterator[str]:
        yield from self._one_of("method", METHODS)
        yield from self._nested("controller", CONTROLLERS, TrustRegion.name)
        yield from self._nested("probe", {"probe": Probe}, "probe")
        if self.regularizer is not None:
            yield from self._nested("regularizer", REGULARIZERS, Lookahead.name)
        yield from self._nested("switch", {"switch": Switch}, "switch")
        yield from self._one_of("kappa_estimator", ESTIMATORS)
        yield from self._whole("kappa_window", "lr_update_interval", "starvation_patience")
        yield from self._contradictions()

    def _nested(self, field: str, kinds: Mapping[str, type[Settings]], default: str) -> Iterator[str]:
        """Make a nested setting of a name or a mapping of plain values, and find the faults of it."""
        value = getattr(self, field)
        if isinstance(value, tuple(kinds.values())):
            return
        plain = {"name": value} if isinstance(value, str) else value
        if not isinstance(plain, Mapping):
            names = f"one of {', '.join(kinds)}, or " if len(kinds) > 1 else ""
            yield f"{field}={_shown(value)} is not {names}a mapping of settings"
            return
        name, plain = plain.get("name", default), {key: plain[key] for key in plain if key != "name"}
        if name not in tuple(kinds):
            yield f"{field}={_shown(name)} is not one of {', '.join(kinds)}"
            return
        known = [known.name for known in dataclasses.fields(kinds[name])]  # type: ignore[arg-type]
        if strange := [key for key in plain if key not in known]:
            listed = ", ".join(known) or "none"
            yield f"{field}.{one_line(strange[0], 60)} is no setting of {name!r}; its settings: {listed}"
            return
        try:
            object.__setattr__(self, field, kinds[name](**plain))
        except ConfigError as error:
            yield from (f"{field}.{fault}" for fault in error.faults)

    def _contradictions(self) -> Iterator[str]:
        """Settings that are valid alone and not together."""
        if self.coordinated and isinstance(self.probe, Probe) and self.probe.interval is None:
            yield f"probe.interval=None measures nothing, and method={self.method!r} needs kappa"
        penalty = isinstance(self.regularizer, DriftPenalty)
        if self.method == "commit" and self.regularizer is None:
            yield "method='commit' needs a regularizer; without one the method is 'commit-clr'"
        if self.method == "commit" and penalty:
            yield "method='commit' rewards drift (Eq. 9-10); with 'drift-penalty' the method is 'commit-clr'"
        if self.method == "commit-clr" and not (self.regularizer is None or penalty):
            yield "method='commit-clr' has no regularizer; with one the method is 'commit'"
        warmup, window = getattr(self.controller, "warmup", None), self.kappa_window
        if isinstance(warmup, int) and isinstance(window, int) and warmup > window:
            yield f"controller.warmup={warmup} is more than kappa_window={window} holds, so nothing would act"

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested plain values, for a record; `CoMMITConfig(**values)` reads them."""
        plain = dataclasses.asdict(self)
        for field in ("controller", "regularizer"):
            if plain[field] is not None:
                plain[field] = {"name": getattr(self, field).name, **plain[field]}
        return plain


def setting_keys() -> list[str]:
    """Every setting of `CoMMITConfig`, the nested ones dotted: `probe`, `probe.interval`, `controller.name`."""
    parts: dict[str, tuple[Any, ...]] = {
        "controller": tuple(CONTROLLERS.values()),
        "probe": (Probe,),
        "regularizer": tuple(REGULARIZERS.values()),
        "switch": (Switch,),
    }
    keys = []
    for field in dataclasses.fields(CoMMITConfig):
        kinds = parts.get(field.name, ())
        named = ["name"] if len(kinds) > 1 else []
        nested = dict.fromkeys([*named, *(inner.name for kind in kinds for inner in dataclasses.fields(kind))])
        keys += [field.name, *(f"{field.name}.{inner}" for inner in nested)]
    return keys


def _shown(value: object) -> str:
    """A setting as Python writes it, shortened."""
    return one_line(repr(value), 60)
