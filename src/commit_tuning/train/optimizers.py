"""From a recipe's `train` section to an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.optim import Optimizer

from commit_tuning.errors import UserError, one_line
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition
from commit_tuning.plugins import load_plugins
from commit_tuning.train.recipe.schema import Train

MakeOptimizer = Callable[[ModulePartition, Mapping[str, float], float], Optimizer]
"""Makes an optimizer of a partition, its modules' base learning rates, and the weight decay."""


def _of_torch(kind: Callable[..., Optimizer]) -> MakeOptimizer:
    return lambda partition, rates, weight_decay: kind(partition.param_groups(lr=rates, weight_decay=weight_decay))


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adamw": _of_torch(torch.optim.AdamW),
    "adam": _of_torch(torch.optim.Adam),
    "sgd": _of_torch(torch.optim.SGD),
}
"""Optimizers by name; plugins add theirs. Every parameter group has a key `module`."""


def optimizers() -> Mapping[str, MakeOptimizer]:
    """The optimizers by name, with those of plugins."""
    load_plugins()
    return OPTIMIZERS


def check_optimizer(settings: Train) -> None:
    """Refuse an optimizer that nobody knows.

    Raises:
        UserError: Names those that there are.
    """
    if settings.optimizer not in optimizers():
        known = ", ".join(optimizers())
        raise UserError(f"train.optimizer: {one_line(repr(settings.optimizer), 60)} is not one of {known}")


def build_optimizer(partition: ModulePartition, settings: Train) -> Optimizer:
    """The recipe's optimizer, with the language model's rate and the encoders' rate, ready to train.

    Raises:
        UserError: There is no such optimizer, or it is in a package that is not installed.
    """
    check_optimizer(settings)
    rates = {module: settings.rates["language_model" if module == LANGUAGE_MODEL else "vision"] for module in partition}
    return OPTIMIZERS[settings.optimizer](partition, rates, settings.weight_decay)


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
