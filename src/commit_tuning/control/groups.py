"""Learning rates as multipliers on an optimizer's parameter groups, for the length of one step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.errors import ConfigError, PartitionError
from commit_tuning.partition.modules import ModulePartition

Group = dict[str, Any]


def stepping_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers whose own groups are stepped: those that a wrapper holds, or else the optimizer itself.

    A wrapper is an optimizer whose attributes hold other optimizers that together have all of its parameters.
    """
    leaves = [each for each in held_optimizers(optimizer) if not _parts_of(each)]
    return leaves if _parameters_of([optimizer]) <= _parameters_of(leaves) else [optimizer]


def held_optimizers(optimizer: Any) -> list[Any]:
    """An optimizer, those that it holds, and those that they hold."""
    found = [optimizer]
    for each in found:
        found.extend(part for part in _parts_of(each) if not any(part is known for known in found))
    return found


def _parts_of(optimizer: Any) -> list[Any]:
    """Other optimizers in its attributes, or in lists, tuples and mappings there."""
    found: dict[int, Any] = {}
    for name, value in getattr(optimizer, "__dict__", {}).items():
        if name == "state":
            continue
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        found.update({id(v): v for v in inside if v is not optimizer and _is_optimizer(v)})
    return [*found.values()]


def _is_optimizer(value: Any) -> bool:
    return hasattr(value, "param_groups") and hasattr(value, "step")


def _parameters_of(optimizers: Iterable[Any]) -> set[int]:
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


class StepRates:
    """Sets the learning rates of modules for the length of one step.

    `scale` multiplies them and `restore` puts everything back: rates, groups and gradients. Nobody who looks at the
    optimizer between two steps, such as a scheduler or a checkpoint, sees a trace of it. Who changes a rate or the
    groups in between is told so by `restore`. A group that mixes modules with different multipliers stands in the
    optimizer's list as one group for each of them until then.

    Args:
        optimizer: Any optimizer with `param_groups`, or a wrapper around such.
        module_of: The module of a parameter; None where no module holds it.
    """

    def __init__(self, optimizer: Any, module_of: Callable[[nn.Parameter], str | None]) -> None:
        self._stepping = stepping_optimizers(optimizer)
        self._module_of = module_of
        self._undo = ExitStack()
        self._split: list[tuple[list[Group], list[Group]]] = []  # the optimizers' lists, and what is in them
        self._set: list[tuple[Group, float]] = []  # groups that are not as they were, and their rates
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []

    @property
    def groups(self) -> list[Group]:
        """The groups that are stepped, as they are now."""
        return [group for optimizer in self._stepping for group in optimizer.param_groups]

    def scale(self, multipliers: Mapping[str, float]) -> None:
        """Multiply the rates. The gradients of a module at zero are taken away, so that nothing at all moves it."""
        self.restore()
        for optimizer in self._stepping:
            groups = optimizer.param_groups
            scaled = [part for group in groups for part in self._scaled(group, multipliers, optimizer)]
            if len(scaled) > len(groups):
                self._undo.callback(groups.__setitem__, slice(None), [*groups])
                groups[:] = scaled
                self._split.append((groups, scaled))

    def rest(self) -> None:
        """Take the gradients of the modules at zero away again, which another backward pass has made."""
        self._gradients = [(parameter, parameter.grad) for parameter, _ in self._gradients]
        for parameter, _ in self._gradients:
            parameter.grad = None

    def restore(self, gradients: bool = True) -> None:
        """Put back what `scale` found.

        Args:
            gradients: Whether the gradients are still of use; they are not once another backward pass was made.

        Raises:
            ConfigError: The optimizer wrote different values into the parts of one group, which cannot be put together.
            ConfigError: A rate or the groups were changed since `scale`, which is undone.
        """
        taken, self._gradients = self._gradients, []
        for parameter, gradient in taken if gradients else ():
            parameter.grad = gradient
        changed = self._is_changed()
        self._split, self._set = [], []
        self._undo.close()
        if changed:
            raise ConfigError(
                "a learning rate or the parameter groups were changed between before_step() and after_step(), where "
                "CoMMIT has its own: call scheduler.step(), and add groups, after after_step(), and control no "
                "optimizer that sets its own rates"
            )

    def _is_changed(self) -> bool:
        others = any([*map(id, groups)] != [*map(id, scaled)] for groups, scaled in self._split)
        return others or any(_rate(group) != rate for group, rate in self._set)

    def _scaled(self, group: Group, multipliers: Mapping[str, float], optimizer: Any) -> list[Group]:
        owners = _with_neighbours([(self._module_of(p), p.requires_grad) for p in group["params"]])
        factors = [multipliers.get(owner or "", 1.0) for owner in owners]
        parts = [group]
        if len({*factors}) > 1:
            indices = _indices_by(factors).values()
            parts, before = ([part_of(group, own, optimizer) for own in indices] for _ in range(2))
            self._undo.callback(_take_over, group, parts, before, optimizer)
        for part, factor in zip(parts, dict.fromkeys(factors), strict=False):
            self._apply(part, factor)
        if {*factors} - {1.0}:
            self._set += [(part, _rate(part)) for part in parts]
        return parts

    def _apply(self, group: Group, factor: float) -> None:
        if factor != 1.0:
            self._undo.callback(group.__setitem__, "lr", group["lr"])
            group["lr"] = group["lr"] * factor
        if factor == 0.0:
            for parameter in group["params"]:
                self._gradients.append((parameter, parameter.grad))
                parameter.grad = None


class GroupRates:
    """The learning rates of an optimizer's groups, by module.

    Args:
        optimizer: Any optimizer with `param_groups`, or a wrapper around such.
        partition: Which parameters are whose.

    Attributes:
        step: Sets rates for the length of a step.
        full_rates: The highest rate of every group so far, from which a schedule that is set by hand takes its share.

    Raises:
        PartitionError: A trainable parameter of a module is in no group of the optimizer.
    """

    def __init__(self, optimizer: Any, partition: ModulePartition) -> None:
        self._optimizer, self._partition = optimizer, partition
        self.step = StepRates(optimizer, partition.module_of)
        self.full_rates = [_rate(group) for group in self.step.groups]
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

    def check_rates(self) -> None:
        """Refuse an optimizer without a learning rate.

        Raises:
            ConfigError: The optimizer chooses its learning rate itself, as Adafactor with `relative_step`.
        """
        if any(math.isnan(_rate(group)) for group in self.step.groups):
            raise ConfigError(
                f"{type(self._optimizer).__name__} has no learning rate to coordinate (lr=None); give it one, and "
                "relative_step=False if it is Adafactor"
            )

    def _unowned(self) -> Iterator[nn.Parameter]:
        """What the optimizer trains and no module holds."""
        for group in self.step.groups:
            yield from (p for p in group["params"] if p.requires_grad and self._partition.module_of(p) is None)

    def _modules_of(self, group: Group) -> list[str]:
        return [*dict.fromkeys(filter(None, map(self._partition.module_of, group["params"])))]

    def by_module(self) -> dict[str, float]:
        """Module to the largest learning rate of its groups, as they are now; NaN where the optimizer has none."""
        rates: dict[str, float] = {}
        for group in self.step.groups:
            rate = _rate(group)
            for module in self._modules_of(group):
                rates[module] = max(rates.get(module, rate), rate)
        return rates

    def by_parameter(self) -> dict[int, float]:
        """`id` of a parameter to its learning rate, as it is now."""
        groups = ((_rate(group), group["params"]) for group in self.step.groups)
        return {id(parameter): rate for rate, parameters in groups for parameter in parameters}

    def schedule(self) -> dict[str, float]:
        """Module to what a schedule makes of the full rate of its groups, the largest of them; 1 without a schedule.

        A group's full rate is what a scheduler keeps as `max_lr` or `initial_lr`, or else the highest so far.
        """
        factors: dict[str, float] = {}
        groups = self.step.groups
        self.full_rates += map(_rate, groups[len(self.full_rates) :])  # of groups that were added since
        self.full_rates = [max(_rate(group), r) for group, r in zip(groups, self.full_rates, strict=True)]
        for group, highest in zip(groups, self.full_rates, strict=True):
            full = float(group.get("max_lr", group.get("initial_lr", highest)) or 0.0)
            share = _rate(group) / full if full else 0.0
            for module in self._modules_of(group):
                factors[module] = max(factors.get(module, 0.0), share)
        return {module: factors[module] for module in self._partition}


def split_groups(optimizer: torch.optim.Optimizer, kind_of: Callable[[nn.Parameter], Hashable | None]) -> None:
    """Split every parameter group that holds several kinds of parameters, in place, options kept.

    The first kind keeps the group's own dictionary, so that whoever holds it still reaches the optimizer.

    Args:
        optimizer: Whose groups.
        kind_of: The kind of a parameter; None where it does not matter, as for a frozen one.

    Raises:
        PartitionError: A scheduler already knows the groups.
    """
    groups: list[Group] = []
    for group in optimizer.param_groups:
        parts = _indices_by([kind_of(parameter) for parameter in group["params"]])
        groups.append(group)
        if len(parts.keys() - {None}) <= 1:
            continue
        if "initial_lr" in group:
            raise PartitionError(
                "a parameter group holds several modules and a learning-rate scheduler already uses it; build the "
                "groups with partition_model(model).param_groups(lr=...) before the scheduler is made"
            )
        first, *others = [part_of(group, indices, optimizer) for indices in parts.values()]
        group.update(first)
        groups.extend(others)
    optimizer.param_groups[:] = groups


def part_of(group: Group, indices: Sequence[int], optimizer: Any) -> Group:
    """A group of some of a group's parameters, with what its lists hold for them and options of its own.

    What an optimizer can change in place is copied, or else it would count a step once for each part.
    """
    lists = {key: group[key] for key in ("params", *_lists_by_parameter(group, optimizer))}
    options = {key: _copy(value) for key, value in group.items() if key not in lists}
    return {**group, **options, **{key: [values[index] for index in indices] for key, values in lists.items()}}


def _copy(value: Any) -> Any:
    """A value that can be changed without the first."""
    if isinstance(value, Tensor) and not value.requires_grad:
        return value.clone()
    return copy.copy(value) if isinstance(value, list | dict | set) else value


def _lists_by_parameter(group: Group, optimizer: Any) -> list[str]:
    """The keys of lists with a value for each parameter, such as their names; an option of the optimizer is none."""
    options, size = getattr(optimizer, "defaults", {}), len(group["params"])
    return [
        key
        for key, value in group.items()
        if key != "params" and key not in options and isinstance(value, list) and len(value) == size
    ]


def _indices_by(kinds: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    found: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        found.setdefault(kind, []).append(index)
    return found


def _with_neighbours(owners: Sequence[tuple[str | None, bool]]) -> list[str | None]:
    """The module of every parameter; a frozen one is its neighbour's, as an optimizer that steps pairs needs it.

    Args:
        owners: The module of each parameter, and whether it is trained, in their order.
    """
    modules = [module for module, _ in owners]
    frozen = [index for index, (module, trained) in enumerate(owners) if module is None and not trained]
    for index in reversed(frozen):
        modules[index] = modules[index + 1] if index + 1 < len(modules) else None
    for index in frozen:
        modules[index] = modules[index] or (modules[index - 1] if index else None)
    return modules


def _take_over(group: Group, parts: list[Group], before: list[Group], optimizer: Any) -> None:
    """What the optimizer wrote into the parts of a group is written into the group.

    Raises:
        ConfigError: It wrote different values, so that the group would need one of its own for each module.
    """
    for key in {*group, *(key for part in parts for key in part)} - {"lr", "params"}:
        values = [part.get(key) for part in parts]
        if all(_equal(value, old.get(key)) for value, old in zip(values, before, strict=True)):
            continue
        if not all(_equal(value, values[0]) for value in values):
            raise ConfigError(
                f"{type(optimizer).__name__} keeps {key!r} in its parameter groups, and a group holds several modules; "
                "build the groups with partition_model(model).param_groups(lr=...)"
            )
        group[key] = values[0]


def _equal(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, dict):
        return _equal([*first.items()], [*second.items()])
    return bool(first == second)


def _rate(group: Group) -> float:
    rate = group.get("lr")
    return math.nan if rate is None else float(rate)
