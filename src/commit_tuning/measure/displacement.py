"""How the drift of one step is taken, so that rounding does not answer instead.

A drift is quadratic in the displacement: d(s), at theta_t + s (theta_{t+1} - theta_t), is s^2 d(1) while it is small.
Rounding adds a floor to it that is not. In bfloat16 that floor is often ten times the drift of one step, and then every
module seems to move the same. So the floor is measured: half a step should give a quarter of the drift, and what it
gives more is rounding, within what the number format allows. A drift that is not clear of the floor is taken as the
limit of d(s) / s^2 by forward-mode differentiation, which has no floor; where the model does not support that, from
displacements by +s and -s (their mean has no cubic term), less the floor, over s^2.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from commit_tuning.measure.divergence import by_rows, widened

CLEAR = 25.0  # a drift below so many times the floor is never taken as it is
EVEN = 0.2  # nor one below so many times the root of the floor: there forward mode errs less
LEAST = 1.25  # displacement of a drift that is not clear, in steps
AIM, AIM_LIMIT = 30.0, 0.03  # a displaced drift should be so many times the floor, and so many nats at most
TOO_FAR = 3.0  # times the aim: out of the quadratic range
FLOOR_LIMIT = 10.0  # times the rounding of the logits; what exceeds that is a step out of the quadratic range
TRIES, GROWTH = 6, 30.0
CALIBRATION_INTERVAL = 20  # measurements between two looks at the floor


@dataclass(frozen=True)
class Reading:
    """A module's drift as it was measured.

    Attributes:
        drift: In nats, of the whole step; NaN where it drowns in the floor at every displacement tried, or where the
            model's outputs are not finite.
        floor: What rounding alone adds to a drift of this model on these samples, in nats; NaN if never measured.
        scale: s, the displacement at which the drift was taken, in optimizer steps; 0 is forward mode.
    """

    drift: float
    floor: float
    scale: float

    @property
    def fault(self) -> str | None:
        """Why no kappa can be taken from this drift, as the end of a sentence; None where one can."""
        if math.isfinite(self.drift) and self.drift > 0:
            return None
        if math.isnan(self.drift) and self.floor > 0 and self.scale >= LEAST:
            return f"drowns in the rounding noise of {self.floor:.1e} nats even at {self.scale:g} times its step"
        return f"is {self.drift:g}"


@dataclass
class _State:
    floor: float = math.nan
    scale: float = 1.0
    measurements: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the next reading looks at the floor."""
        return self.measurements % CALIBRATION_INTERVAL == 0


class Displacement:
    """Chooses the displacement of each module from what it measured before.

    Args:
        scale: `"auto"`, or a number of steps to keep to; 1 is the drift of Eq. 2-3 to the letter.

    Example:
        >>> noisy = lambda s: 1e-6 * s**2 + 1e-4  # a drift of 1e-6 under a floor of 1e-4
        >>> reading = Displacement("auto").read("vision", noisy, rounding=1e-5)
        >>> round(reading.drift, 9), round(reading.floor, 9)
        (1e-06, 0.0001)
    """

    def __init__(self, scale: Literal["auto"] | float) -> None:
        self._fixed = None if scale == "auto" else float(scale)
        self._states: dict[str, _State] = {}

    def read(
        self,
        module: str,
        drift_at: Callable[[float], float],
        rounding: float,
        limit: Callable[[], float | None] = lambda: None,
    ) -> Reading:
        """Measure one module.

        Args:
            module: Its name; what was learnt about it helps the next reading.
            drift_at: Drift in nats at a displacement of so many steps.
            rounding: What the rounding of the logits alone adds to a drift, in nats: the least that the floor can be.
                It is used where `looks_at_floor`.
            limit: d(s) / s^2 as s goes to zero, in nats; None where that cannot be had.
        """
        if self._fixed is not None:
            return Reading(drift_at(self._fixed) / self._fixed**2, math.nan, self._fixed)
        state = self._states.setdefault(module, _State())
        calibrate = state.is_due
        if calibrate or state.scale == 1.0:
            whole = drift_at(1.0)
            if not (math.isfinite(whole) and whole > 0):
                return Reading(whole, state.floor, 1.0)
            if calibrate:
                excess = (4 * drift_at(0.5) - whole) / 3
                state.floor = min(max(excess, rounding), FLOOR_LIMIT * rounding)
            state.scale = _next_scale(1.0, whole, state.floor)
        state.measurements += 1
        if state.scale == 1.0:
            return Reading(whole, state.floor, 1.0)
        drift = limit()
        if drift is None:
            return _displaced(state, drift_at)
        state.scale = _next_scale(1.0, drift + state.floor, state.floor)
        return Reading(drift, state.floor, 0.0)

    def looks_at_floor(self, modules: Iterable[str]) -> bool:
        """Whether the next reading of any of these modules asks for `rounding`."""
        return self._fixed is None and any(self._states.get(name, _State()).is_due for name in modules)

    def state_dict(self) -> dict[str, Any]:
        """What was learnt about each module."""
        return {module: asdict(state) for module, state in self._states.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`."""
        self._states = {module: _State(**values) for module, values in state.items()}


def _displaced(state: _State, drift_at: Callable[[float], float]) -> Reading:
    """Move the module to and fro until its drift is near the aim; the next reading begins where this one ends."""
    low, high = min(CLEAR / 2 * state.floor, AIM_LIMIT / 2), TOO_FAR * _aim(state.floor)
    overflow, finite = math.inf, False
    for _ in range(TRIES):
        scale = state.scale
        drift = (drift_at(scale) + drift_at(-scale)) / 2
        if not math.isfinite(drift):
            overflow, state.scale = scale, max(LEAST, scale / math.sqrt(GROWTH))
            continue
        finite = True
        state.scale = min(_next_scale(scale, drift, state.floor), math.sqrt(scale * overflow))
        if low <= drift and (drift <= high or scale <= LEAST):
            return Reading((drift - state.floor) / scale**2, state.floor, scale)
    return Reading(math.nan if finite else math.inf, state.floor, scale)


def _clear(floor: float) -> float:
    """The drift from which a whole step is measured as it is.

    Rounding and step add as vectors, so rounding errs by about the root of floor / drift; forward mode leaves out the
    curvature and errs by about the root of the drift. The two are even at some drift near the root of the floor.
    """
    return min(max(CLEAR * floor, EVEN * math.sqrt(floor)), AIM_LIMIT)


def _aim(floor: float) -> float:
    return min(AIM * floor, AIM_LIMIT)


def _next_scale(scale: float, drift: float, floor: float) -> float:
    """The displacement for the next reading, from a drift measured at this one; 1 where a whole step is clear."""
    risen = max(drift - floor, 0.1 * floor)  # what the step itself did, or little
    whole = risen / scale**2
    if whole >= _clear(floor):
        return 1.0
    return max(LEAST, scale * min(GROWTH, math.sqrt(_aim(floor) / risen)))


@contextlib.contextmanager
def moving(model: nn.Module, velocities: Mapping[int, Tensor]) -> Iterator[None]:
    """Give parameters a velocity: whatever the model computes inside carries its derivative along them.

    Args:
        model: Any module; a parameter that is shared moves everywhere.
        velocities: `id` of a parameter to a tensor of its shape.

    Raises:
        RuntimeError: Inside, from an operation without a forward-mode derivative (fused or quantised kernels).
    """
    places: list[tuple[dict[str, Any], str, nn.Parameter]] = [
        (module._parameters, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in velocities
    ]
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no derivative of this kind
        try:
            for parameters, name, parameter in places:
                parameters[name] = forward_ad.make_dual(  # type: ignore[no-untyped-call]
                    parameter.detach(), velocities[id(parameter)]
                )
            yield
        finally:
            for parameters, name, parameter in places:
                parameters[name] = parameter


def quadratic_drift(logits: Tensor) -> Tensor | None:
    """KL(P || P moved) to second order in the movement: half the variance under P of the logits' derivative.

    Args:
        logits: [answers, vocabulary], computed inside `moving`.

    Returns:
        [answers] in nats, float32 or float64; None if the logits carry no derivative.
    """
    value, velocity = forward_ad.unpack_dual(logits)  # type: ignore[no-untyped-call]
    if velocity is None:
        return None
    return by_rows(_half_variance, value, velocity)


def _half_variance(logits: Tensor, velocity: Tensor) -> Tensor:
    p = widened(logits).softmax(-1)
    velocity = velocity.to(p.dtype).masked_fill(p == 0, 0)
    mean = (p * velocity).sum(-1, keepdim=True)
    return 0.5 * (p * (velocity - mean).square()).sum(-1)
