"""Learning rates as multipliers on an optimizer's parameter groups, for the length of one step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.core.partition import ModulePartition
from commit_tuning.errors import ConfigError, PartitionError

Group = dict[str, Any]


class GroupRates:
    """The learning rates of an optimizer's groups, by module.

    `scale` multiplies them and `restore` puts back what was there, so a learning-rate scheduler always finds its own
    values: nothing compounds, whether it computes from base rates or reads the current ones.

    Args:
        optimizer: Any optimizer with `param_groups`.
        partition: Which parameters are whose.

    Attributes:
        full_rates: The highest rate of every group so far, from which a schedule that is set by hand takes its share.

    Raises:
        PartitionError: A trainable parameter of a module is in no group of the optimizer.
        ConfigError: The optimizer chooses its learning rate itself, as Adafactor with `relative_step`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, partition: ModulePartition) -> None:
        self._optimizer, self._partition = optimizer, partition
        self._unscaled: list[float | Tensor] = []
        if any(group["lr"] is None for group in optimizer.param_groups):
            raise ConfigError(
                f"{type(optimizer).__name__} has no learning rate to coordinate (lr=None); give it one, and "
                "relative_step=False if it is Adafactor"
            )
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # torch gives all groups the same one
                group["lr"] = group["lr"].clone()
        self.full_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._outside = {id(p) for p in self._unowned()}  # of a loss, say, which is no part of the model
        self._check_complete()

    def _check_complete(self) -> None:
        known, found = self.by_parameter(), self.by_module()
        for module in self._partition:
            if module not in found:
                raise PartitionError(f"no parameter of module {module!r} is in the optimizer; add its parameter group")
            named = self._partition.named_parameters(module)
            missing = [name for name, p in named.items() if p.requires_grad and id(p) not in known]
            if missing:
                others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                raise PartitionError(
                    f"trainable parameter {missing[0]!r}{others} of module {module!r} is in no group of the optimizer; "
                    "add it to one, or freeze it: one optimizer has to step all that is trained, not one by shape each"
                )

    def check_unchanged(self) -> None:
        """Refuse parameters that were unfrozen, or given to the optimizer, after this was made.

        Raises:
            PartitionError: Names the shape of the first.
        """
        for parameter in self._unowned():
            if id(parameter) not in self._outside:
                raise PartitionError(
                    f"a parameter {tuple(parameter.shape)} of the optimizer was unfrozen or added after the start "
                    "and is in no module; make a new Coordinator or BalanceMonitor when what is trained changes"
                )

    def _unowned(self) -> Iterator[nn.Parameter]:
        """What the optimizer trains and no module holds."""
        for group in self._optimizer.param_groups:
            yield from (p for p in group["params"] if p.requires_grad and self._partition.module_of(p) is None)

    def by_module(self) -> dict[str, float]:
        """Module to the largest learning rate of its groups, as they are now."""
        rates: dict[str, float] = {}
        for group in self._optimizer.param_groups:
            rate = float(group["lr"])
            for module in filter(None, map(self._partition.module_of, group["params"])):
                rates[module] = max(rates.get(module, 0.0), rate)
        return rates

    def by_parameter(self) -> dict[int, float]:
        """`id` of a parameter to its learning rate, as it is now."""
        groups = ((float(group["lr"]), group["params"]) for group in self._optimizer.param_groups)
        return {id(parameter): rate for rate, parameters in groups for parameter in parameters}

    def schedule(self) -> dict[str, float]:
        """Module to what a schedule makes of the full rate of its groups, the largest of them; 1 without a schedule.

        A group's full rate is what a scheduler keeps as `max_lr` or `initial_lr`, or else the highest so far.
        """
        factors: dict[str, float] = {}
        groups = self._optimizer.param_groups
        self.full_rates = [max(float(group["lr"]), r) for group, r in zip(groups, self.full_rates, strict=True)]
        for group, highest in zip(groups, self.full_rates, strict=True):
            module = _module_of(group, self._partition) or ""
            full = float(group.get("max_lr", group.get("initial_lr", highest)))
            factors[module] = max(factors.get(module, 0.0), float(group["lr"]) / full if full else 0.0)
        return {module: factors[module] for module in self._partition}

    def scale(self, multipliers: Mapping[str, float]) -> None:
        """Multiply the rates. The gradients of a module at zero are dropped, so that nothing at all moves it."""
        self._unscaled = []
        for group in self._optimizer.param_groups:
            rate = group["lr"]
            self._unscaled.append(rate.clone() if isinstance(rate, Tensor) else rate)
            multiplier = multipliers.get(_module_of(group, self._partition) or "", 1.0)
            if multiplier != 1.0:
                _set_rate(group, rate * multiplier)
            if multiplier == 0.0:
                for parameter in group["params"]:
                    parameter.grad = None

    def restore(self) -> None:
        """Put back the rates that `scale` found."""
        for group, rate in zip(self._optimizer.param_groups, self._unscaled, strict=True):
            _set_rate(group, rate)


def split_mixed_groups(optimizer: torch.optim.Optimizer, partition: ModulePartition) -> None:
    """Split every parameter group that holds parameters of several modules, in place, options kept.

    Raises:
        PartitionError: A scheduler already knows the groups.
    """
    split_groups(optimizer, partition.module_of)


def split_groups(optimizer: torch.optim.Optimizer, kind_of: Callable[[nn.Parameter], Hashable | None]) -> None:
    """Split every parameter group that holds several kinds of parameters, in place, options kept.

    Args:
        optimizer: Whose groups.
        kind_of: The kind of a parameter; None where it does not matter, as for a frozen one.

    Raises:
        PartitionError: A scheduler already knows the groups.
    """
    groups: list[Group] = []
    for group in optimizer.param_groups:
        parts: dict[Hashable | None, list[int]] = {}
        for index, parameter in enumerate(group["params"]):
            parts.setdefault(kind_of(parameter), []).append(index)
        if len(parts.keys() - {None}) <= 1:
            groups.append(group)
            continue
        if "initial_lr" in group:
            raise PartitionError(
                "a parameter group holds several modules and a learning-rate scheduler already uses it; build the "
                "groups with partition_model(model).param_groups(lr=...), or make the Coordinator before the scheduler"
            )
        lists = {key: group[key] for key in ("params", "param_names") if key in group}
        for indices in parts.values():
            groups.append({**group, **{key: [values[index] for index in indices] for key, values in lists.items()}})
    optimizer.param_groups[:] = groups


def _module_of(group: Group, partition: ModulePartition) -> str | None:
    """The module that a parameter group belongs to; None for a group of frozen parameters."""
    return next((module for p in group["params"] if (module := partition.module_of(p)) is not None), None)


def _set_rate(group: Group, rate: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].copy_(torch.as_tensor(rate))
    else:
        group["lr"] = rate
