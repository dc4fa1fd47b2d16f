"""A method that a plugin might add: it looks at gradients before a step, and keeps tensors."""

import torch

from commit_tuning.control.base import Controller
from commit_tuning.methods import add_method

ADDED = "gradient-signs"


class GradientSigns(Controller):
    """Raises a module's rate by a tenth after each step whose gradient sums to more than that of the step before."""

    def __init__(self, partition):
        super().__init__(partition)
        self._partition, self._now = partition, {}
        self._last = {name: torch.zeros_like(partition[name][0]) for name in partition}
        self._found = dict.fromkeys(partition, 1.0)

    def before_step(self):
        found = {name: self._partition[name][0].grad for name in self._partition}
        self._now = {name: gradient.clone() for name, gradient in found.items() if gradient is not None}

    def after_step(self):
        for name, gradient in self._now.items():
            self._found[name] *= 1.1 if gradient.sum() > self._last[name].sum() else 1.0
        self._last, self._now = {**self._last, **self._now}, {}

    def multipliers(self, step):
        return dict(self._found)

    def state_dict(self):
        return {"multipliers": dict(self._found), "last": {name: value.clone() for name, value in self._last.items()}}

    def load_state_dict(self, state):
        self._found = dict(state["multipliers"])
        self._last = {name: value.to(self._partition[name][0]) for name, value in state["last"].items()}


add_method(ADDED, GradientSigns)
