"""What an optimizer does with a learning rate, found out on a throw-away copy of it."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.control.groups import StepRates, held_optimizers
from commit_tuning.control.step_watch import inner_optimizer
from commit_tuning.errors import ConfigError, UserError, name_and_line
from commit_tuning.partition.modules import ModulePartition

WARM_UP = 8  # steps before the one that is looked at: an optimizer that finds its own rate has begun to by then
SIZE = 2  # of a parameter of the copy, at most, along every dimension
LEAST_RATE = 1e-6  # of the copy: below it a step would drown in the rounding of the parameters
TOLERANCE = 0.1  # of the step: scaling by a parameter's own size is let through


def check_control(optimizer: Any, partition: ModulePartition, scales: bool = True) -> None:
    """Refuse to control an optimizer whose step is not its learning rate times something that no rate changes.

    Three copies of the optimizer take the same gradients: one at the rates that it has, one with other rates for the
    modules at the last step, and one with other rates at all steps but the last. Model, optimizer and random numbers
    stay as they are.

    Args:
        optimizer: Any optimizer with `param_groups`, or a wrapper around such.
        partition: The modules whose rates are to be set.
        scales: Whether multipliers other than zero and one are to come.

    Raises:
        ConfigError: A module's last step does not follow its rate, or depends on the rates before; the optimizer needs
            a closure, refuses different rates, or keeps values in a group that mixes modules.
    """
    own = inner_optimizer(optimizer)
    name = type(own).__name__
    if _needs_closure(own):
        raise _refusal(name, "it calls a closure in its step")
    ones = dict.fromkeys(partition, 1.0)
    try:
        plain = _last_step(own, partition, ones, ones)
    except Exception as error:  # whatever the optimizer needs, the copy does not have it
        if scales:
            _warn_of_failure(name, error)
        return
    factors = {module: 0.5 ** (index + 1) if scales else float(not index) for index, module in enumerate(partition)}
    try:
        slower = _last_step(own, partition, ones, factors)
        history = _last_step(own, partition, factors, ones)
    except UserError:
        raise
    except Exception as error:
        raise _refusal(name, f"it fails when modules have different rates ({name_and_line(error)})") from None
    for module, factor in factors.items() if scales else ():
        if _differ(slower[module], factor * plain[module]):
            raise _refusal(name, f"its step at {factor:g} times the rate is not {factor:g} times as long")
        if _differ(history[module], plain[module]):
            raise _refusal(name, "its step depends on the rates of the steps before, or it finds its own rate")


def _last_step(
    optimizer: Any, partition: ModulePartition, before: Mapping[str, float], last: Mapping[str, float]
) -> dict[str, Tensor]:
    """Module to what the last of some steps of a fresh copy did to it, as one vector.

    Args:
        optimizer: What to copy.
        partition: Its modules.
        before: Multipliers at all steps but the last.
        last: Multipliers at the last step.
    """
    for dtype in (torch.float64, torch.float32):  # not every optimizer knows the first
        try:
            return _run(optimizer, partition, [*[before] * WARM_UP, last], dtype)
        except Exception:
            if dtype == torch.float32:
                raise
    raise AssertionError


def _run(
    optimizer: Any, partition: ModulePartition, schedule: Sequence[Mapping[str, float]], dtype: torch.dtype
) -> dict[str, Tensor]:
    toys = {id(p): _toy(p, dtype) for group in _all_groups(optimizer) for p in group["params"]}
    owners = {id(toys[id(p)]): module for module in partition for p in partition[module] if id(p) in toys}
    twin = _twin(optimizer, toys)
    rates = StepRates(twin, lambda toy: owners.get(id(toy)))
    members = {module: [toys[id(p)] for p in partition[module] if id(p) in toys] for module in partition}
    devices = [toy.device for toy in toys.values() if toy.device.type == "cuda"]
    with torch.random.fork_rng(devices=[*{*devices}]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for multipliers in schedule:
            for toy in toys.values():
                toy.grad = _waves(toy, 1.0) if toy.requires_grad else None
            old = {module: [toy.detach().clone() for toy in own] for module, own in members.items()}
            rates.scale(multipliers)
            type(twin).step(twin)
            rates.restore()
    return {
        module: torch.cat([(toy.detach() - start).flatten() for toy, start in zip(own, old[module], strict=True)])
        for module, own in members.items()
    }


def _toy(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """A small parameter of the same number of dimensions."""
    kind = dtype if parameter.is_floating_point() else parameter.dtype
    empty = torch.empty([min(length, SIZE) for length in parameter.shape], dtype=kind, device=parameter.device)
    return nn.Parameter(_waves(empty, 0.0), requires_grad=parameter.requires_grad)


def _waves(like: Tensor, phase: float) -> Tensor:
    """Some numbers between -1 and 1."""
    return torch.arange(like.numel(), device=like.device).add(phase).sin().reshape(like.shape).to(like.dtype)


def _twin(optimizer: Any, toys: Mapping[int, nn.Parameter]) -> Any:
    """A copy of an optimizer, and of those that it holds, at its start: with toys for parameters and without hooks."""
    everyone = held_optimizers(optimizer)
    twins = {id(each): object.__new__(type(each)) for each in everyone}
    memo: dict[int, Any] = {**toys, **twins}
    for each in everyone:
        twin = twins[id(each)]
        twin.__dict__.update(copy.deepcopy(_own_attributes(each, toys), memo))
        twin.state = defaultdict(dict)
        if hasattr(twin, "__setstate__"):
            twin.__setstate__({})  # makes the hooks anew
        for group in twin.param_groups:
            _make_testable(group)
        if isinstance(twin, torch.optim.Adagrad):  # torch 2.6 makes its state when it is built, and never again
            twin.state = torch.optim.Adagrad(twin.param_groups).state
    return twins[id(optimizer)]


def _own_attributes(optimizer: Any, toys: Mapping[int, nn.Parameter]) -> dict[str, Any]:
    """All but its state, its hooks, and a `step` that somebody else has put there.

    Raises:
        TypeError: It holds a model, which would be copied.
    """
    own = {n: v for n, v in vars(optimizer).items() if n not in {"state", "step"} and "hook" not in n}
    for name, value in own.items():
        if isinstance(value, nn.Module) and any(id(p) not in toys for p in value.parameters()):
            raise TypeError(f"its attribute {name!r} is a model")
    return own


def _make_testable(group: dict[str, Any]) -> None:
    """Give a group of a copy a rate that shows in its steps, and no decay, which follows the rate in any case."""
    rate = float(group["lr"]) or float(group.get("initial_lr", 0.0))
    if rate < LEAST_RATE or isinstance(group["lr"], Tensor):
        group["lr"] = group["lr"] * 0 + max(rate, LEAST_RATE)
    if "weight_decay" in group:
        group["weight_decay"] = 0.0


def _all_groups(optimizer: Any) -> list[dict[str, Any]]:
    return [group for each in held_optimizers(optimizer) for group in each.param_groups]


def _needs_closure(optimizer: Any) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def _differ(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() > TOLERANCE * expected.norm())


def _refusal(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"the learning rates of {name} cannot be controlled: {why}; use an optimizer such as AdamW or SGD, or "
        "method='constant', which only measures"
    )


def _warn_of_failure(name: str, error: Exception) -> None:
    warnings.warn(
        f"whether a step of {name} follows its learning rate could not be tried out ({name_and_line(error)}); control "
        "takes for granted that it does",
        stacklevel=4,
    )
