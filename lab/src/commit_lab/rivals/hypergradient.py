"""Learning rates from the sign of the hypergradient, module by module: a rival of CoMMIT, not a part of it.

The derivative of the loss with respect to a module's learning rate is g_m(t) . s_m / lr_m, where s_m is the module's
last step and g_m(t) the gradient after it (Baydin et al. 2018, arXiv 1703.04782). Below zero the loss still falls along
that step, so a longer one would have been better; above zero it went too far. Only the sign is used: the size depends
on the scale of the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.control.base import Controller
from commit_tuning.errors import ShardingError
from commit_tuning.measure.divergence import exact_sum
from commit_tuning.partition.modules import ModulePartition

FACTOR = 1.25  # per update in which all signs agree; our choice


class HypergradientController(Controller):
    """Multiplies a module's rate by up to 5/4 where its gradients go on along its last steps, by 4/5 where they turn.

    Every update takes the mean sign of -g . s over the steps since the one before, so up and down weigh the same. Keeps
    a copy of all trainable parameters, a second one during a step, and costs no forward pass.

    Args:
        partition: The modules; gradients are read from their parameters.
        bound: A multiplier stays in [1/bound, bound].

    Raises:
        ShardingError: Parameters are sharded over processes, as FSDP2 does.
    """

    def __init__(self, partition: ModulePartition, bound: float = 100.0) -> None:
        super().__init__(partition)
        if any(hasattr(parameter, "full_tensor") for name in partition for parameter in partition[name]):
            raise ShardingError("method='hypergradient' does not know FSDP2's parameters; use DDP, or another method")
        self._partition, self._bound = partition, bound
        self._multipliers = dict.fromkeys(partition, 1.0)
        self._last: dict[str, list[Tensor]] = {}  # parameters before the last step
        self._signs: dict[str, list[int]] = {name: [] for name in partition}
        self._now: dict[str, list[Tensor]] = {}  # parameters before the step that is being made
        self._signs_now: dict[str, int] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        """Take note of the sign of -g . s of every module; call it with gradients at hand, before the step."""
        self._signs_now = {name: -_sign_along(self._partition[name], last) for name, last in self._last.items()}
        self._now = {name: [parameter.clone() for parameter in self._partition[name]] for name in self._partition}

    def after_step(self) -> None:
        """Count the signs of the step that was made."""
        for name, sign in self._signs_now.items():
            self._signs[name].append(sign)
        self._last, self._now, self._signs_now = self._now, {}, {}

    def multipliers(self, step: int) -> dict[str, float]:
        """Return the multipliers after the signs since the last call, and forget these signs."""
        del step
        for name, signs in self._signs.items():
            if signs:
                wanted = self._multipliers[name] * FACTOR ** (sum(signs) / len(signs))
                self._multipliers[name] = min(max(wanted, 1 / self._bound), self._bound)
                signs.clear()
        return dict(self._multipliers)

    def state_dict(self) -> dict[str, Any]:
        """Return the multipliers, the signs since the last update and the parameters before the last step."""
        return {
            "multipliers": dict(self._multipliers),
            "signs": {name: list(signs) for name, signs in self._signs.items()},
            "last": {name: [value.clone() for value in values] for name, values in self._last.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`, whatever device it was loaded on."""
        self._multipliers = dict(state["multipliers"])
        self._signs = {name: list(signs) for name, signs in state["signs"].items()}
        self._last = {
            name: [value.to(p, copy=True) for value, p in zip(values, self._partition[name], strict=True)]
            for name, values in state["last"].items()
        }


def _sign_along(parameters: list[nn.Parameter], last: list[Tensor]) -> int:
    """Return the sign of gradient . (parameters - last): 1, -1, or 0 if it is zero, NaN or without a gradient."""
    dots = [
        exact_sum(parameter.grad * (parameter - old))
        for parameter, old in zip(parameters, last, strict=True)
        if parameter.grad is not None
    ]
    dot = float(sum(dots)) if dots else 0.0
    return (dot > 0) - (dot < 0)
