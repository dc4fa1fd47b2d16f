"""From a recipe's `train` section to an optimizer; those that find their own step size find one for each module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch.optim import Optimizer

from commit_tuning.core.partition import LANGUAGE_MODEL, ModulePartition
from commit_tuning.errors import UserError
from commit_tuning.experiments.schema import Train

_TORCH: dict[str, Callable[..., Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


class ModuleOptimizers(Optimizer):
    """Several optimizers as one: each steps on its own parameter groups and knows nothing of the others.

    The groups are the very objects that the parts hold, so whoever sets a rate here sets it there.

    Args:
        parts: Optimizers without a parameter in common.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every part; a closure is not supported."""
        del closure
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups[:] = self._groups()


def build_optimizer(partition: ModulePartition, settings: Train) -> Optimizer:
    """The recipe's optimizer, with the language model's rate and the encoders' rate, ready to train.

    Raises:
        UserError: The optimizer is in a package that is not installed.
    """
    rates = {module: settings.rates["language_model" if module == LANGUAGE_MODEL else "vision"] for module in partition}
    groups = partition.param_groups(lr=rates, weight_decay=settings.weight_decay)
    match settings.optimizer:
        case "prodigy":
            prodigy = _package("prodigyopt", "prodigy").Prodigy
            return ModuleOptimizers([prodigy([g for g in groups if g["module"] == module]) for module in partition])
        case "dog":
            _package("dog", "dog")
            from commit_tuning.experiments.averaged_dog import AveragedDoG

            decay = settings.weight_decay
            return AveragedDoG(
                {"params": partition[m], "lr": rates[m], "weight_decay": decay, "module": m} for m in partition
            )
        case "schedule-free":
            optimizer: Optimizer = _package("schedulefree", "schedule-free").AdamWScheduleFree(groups)
            optimizer.train()  # type: ignore[attr-defined]
            return optimizer
        case name:
            return _TORCH[name](groups)


def show_evaluated(optimizer: Optimizer) -> None:
    """Give the model the weights to evaluate, where they are not those that train (schedule-free, DoG: averages)."""
    getattr(optimizer, "eval", lambda: None)()


def found_rates(optimizer: Optimizer, rates: Mapping[str, float]) -> dict[str, float]:
    """`found_lr/<module>`: the step size that Prodigy or DoG has found times the rate of the last step.

    Args:
        optimizer: After its step. Prodigy's is the step size that its next step will take.
        rates: Module to the learning rate that was in force, the controller's multiplier included; 0 is at rest.

    Returns:
        Empty for optimizers that find none.
    """
    found = {}
    for group in optimizer.param_groups:
        module = group["module"]
        if "d" in group:  # Prodigy
            found[f"found_lr/{module}"] = float(rates[module] * group["d"])
        elif "rbar" in group:  # DoG
            found[f"found_lr/{module}"] = float(rates[module] * group["rbar"] / group["G"].sqrt())
    return found


def _package(name: str, optimizer: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"train.optimizer {optimizer!r} is in a package that is not installed; "
            "run pip install 'commit-tuning[optimizers]'"
        ) from None
