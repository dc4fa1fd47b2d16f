"""DoG as its authors recommend it: with the polynomial average of the iterates at evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from dog import DoG, PolynomialDecayAverager
from torch import Tensor, nn


class AveragedDoG(DoG):  # type: ignore[misc]
    """Distance over Gradients (Ivgi et al. 2023, arXiv 2302.12022), a step size for each parameter group.

    It trains at the last iterate; `eval()` puts the average into the model and `train()` takes it out again. The
    averages cost a copy of the parameters, the starting point another.

    Args:
        groups: Parameter groups; each is one vector with one step size.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups)
        self._parameters = nn.ParameterList(p for group in self.param_groups for p in group["params"])
        self._trained: list[Tensor] | None = None

    @cached_property
    def _averager(self) -> Any:
        """The averages, from the first step on."""
        return PolynomialDecayAverager(self._parameters)

    def step(self, closure: None = None) -> None:
        """Take one step and add it to the average; a parameter without a gradient counts as one with a zero."""
        del closure
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        super().step()
        self._averager.step()

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average into the model."""
        if self._trained is None:
            self._trained = [parameter.detach().clone() for parameter in self._parameters]
            self._put(list(self._averager.averaged_model))

    @torch.no_grad()
    def train(self) -> None:
        """Put the last iterate back."""
        if self._trained is not None:
            self._put(self._trained)
            self._trained = None

    def _put(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(list(self._parameters), values)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of DoG, and the average."""
        return {**super().state_dict(), "average": self._averager.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "average"})
        self._averager.load_state_dict(state_dict["average"])
