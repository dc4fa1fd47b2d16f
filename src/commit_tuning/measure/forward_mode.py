"""Forward-mode differentiation of a model along an update of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from commit_tuning.measure.divergence import by_rows, widened


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
