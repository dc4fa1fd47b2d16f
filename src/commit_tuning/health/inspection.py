"""Who trains and who cannot: a model's parameters by module, their learning rates, and which get no gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from commit_tuning.errors import PartitionError
from commit_tuning.measure.batches import check_batches
from commit_tuning.measure.forward import Batch
from commit_tuning.partition.discover import multimodal_base, part_of_parameter, projector_parameters
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition

TRIAL_STEP = 1e-2  # of the norm of the parameters: far enough that what starts at zero, such as LoRA's B, is not zero
ADAPTER = "lora_"


@dataclass(frozen=True)
class ModuleReport:
    """The parameters of one module, counted in scalars.

    Attributes:
        name: `language_model`, `vision`, `audio`, or such an encoder's `projector`.
        trainable: With `requires_grad`.
        frozen: Without.
        adapters: Trainable ones of LoRA whose layer is frozen.
        without_optimizer: Trainable ones in no group of the optimizer; None without an optimizer.
        unreachable: Trainable ones at which no gradient can arrive; None if no batch was tried.
        zero_gradient: Trainable ones whose gradient is zero, at first and after a step; None if no batch was tried.
        learning_rates: Of the optimizer's groups that hold them.
        weight_decays: The same.
        examples: Names of those that cannot learn, the first few.
    """

    name: str
    trainable: int
    frozen: int
    adapters: int
    without_optimizer: int | None
    unreachable: int | None
    zero_gradient: int | None
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found."""

    modules: tuple[ModuleReport, ...]

    @property
    def faults(self) -> list[str]:
        """One line for every reason why something trainable cannot learn."""
        found = []
        for module in self.modules:
            for count, why in (
                (module.without_optimizer, "in no group of the optimizer"),
                (module.unreachable, "unreachable: no gradient can arrive"),
                (module.zero_gradient, "with a gradient of zero"),
            ):
                if count:
                    found.append(f"{module.name}: {count:,} trainable parameters {why} ({', '.join(module.examples)})")
            if module.trainable and module.learning_rates and not any(module.learning_rates):
                found.append(f"{module.name}: a learning rate of zero")
        if not any(module.trainable for module in self.modules if module.name == LANGUAGE_MODEL):
            found.append("nothing of the language model is trainable")
        if not any(module.trainable for module in self.modules if module.name != LANGUAGE_MODEL):
            found.append("nothing of any encoder is trainable")
        return found

    @property
    def notes(self) -> list[str]:
        """One line for everything that is seldom meant so."""
        return [
            f"{module.name}: {module.adapters:,} parameters of adapters are trained on layers that are frozen"
            for module in self.modules
            if module.adapters and module.name != LANGUAGE_MODEL
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"modules": [asdict(module) for module in self.modules], "faults": self.faults, "notes": self.notes}


def inspect_model(
    model: nn.Module,
    batch: Batch | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    partition: ModulePartition | None = None,
) -> Inspection:
    """Count a model's parameters by module, and find those that cannot learn. Changes nothing.

    Args:
        model: A transformers multimodal model, wrapped by PEFT or not; any module together with a partition.
        batch: With `labels`; two backward passes are made on it, with a small step in between.
        optimizer: Whose groups are looked at.
        partition: Which trainable parameters are whose, where `partition_model` does not know.

    Raises:
        PartitionError: No partition is given and the model is not such a model.
        BatchError: The batch has no labels.
    """
    if batch is not None:
        check_batches(batch)
    names = _module_names(model, partition)
    dead = {} if batch is None else _without_gradient(model, batch)
    groups = {id(p): group for group in (optimizer.param_groups if optimizer else ()) for p in group["params"]}
    found: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(names[id(parameter)], []).append((name, parameter))
    return Inspection(
        tuple(
            _report(module, members, dead if batch is not None else None, groups if optimizer else None)
            for module, members in found.items()
        )
    )


def _module_names(model: nn.Module, partition: ModulePartition | None) -> dict[int, str]:
    """`id` of every parameter, frozen ones included, to its module; the projector stands by itself."""
    if partition is not None:
        return {id(p): partition.module_of(p) or "frozen" for p in model.parameters()}
    multimodal_base(model)
    names = part_of_parameter(model)
    with suppress(PartitionError):  # no projector that stands by itself
        names.update(dict.fromkeys(projector_parameters(model), "projector"))
    return names


def _without_gradient(model: nn.Module, batch: Batch) -> dict[int, str]:
    """`id` of a trainable parameter to `"unreachable"` or `"zero"`, if it is one of them before and after a step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with _unchanged(model, trained):
        first = _state_of_gradients(model, batch, trained)
        gradients = [p.grad for p in trained if p.grad is not None]
        length = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        size = float(torch.nn.utils.get_total_norm([p.detach() for p in trained])) if trained else 0.0
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None and length > 0:
                    parameter.sub_(parameter.grad, alpha=TRIAL_STEP * size / length)
        second = _state_of_gradients(model, batch, trained)
    return {key: state for key, state in second.items() if first.get(key) is not None}


def _state_of_gradients(model: nn.Module, batch: Batch, trained: list[nn.Parameter]) -> dict[int, str]:
    for parameter in trained:
        parameter.grad = None
    with torch.enable_grad():
        loss = model(**batch).loss
        if loss.requires_grad:
            loss.backward()
    states = {}
    for parameter in trained:
        if parameter.grad is None:
            states[id(parameter)] = "unreachable"
        elif not parameter.grad.any():
            states[id(parameter)] = "zero"
    return states


@contextmanager
def _unchanged(model: nn.Module, trained: list[nn.Parameter]) -> Iterator[None]:
    """Put values, gradients and the training mode back."""
    values, gradients = [p.detach().clone() for p in trained], [p.grad for p in trained]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, gradient in zip(trained, values, gradients, strict=True):
                parameter.copy_(value)
                parameter.grad = gradient
        for module, training in modes:
            module.training = training


def _report(
    module: str,
    members: list[tuple[str, nn.Parameter]],
    dead: dict[int, str] | None,
    groups: dict[int, dict[str, Any]] | None,
) -> ModuleReport:
    trained = [(name, p) for name, p in members if p.requires_grad]
    frozen_layers = {name.removesuffix(".weight") for name, p in members if not p.requires_grad}
    outside = [(name, p) for name, p in trained if groups is not None and id(p) not in groups]
    states = dead or {}
    cannot = [name for name, p in trained if id(p) in states] + [name for name, _ in outside]
    of_groups = [groups[id(p)] for _, p in trained if id(p) in groups] if groups else []

    def count(state: str) -> int | None:
        return None if dead is None else _scalars(p for _, p in trained if states.get(id(p)) == state)

    return ModuleReport(
        name=module,
        trainable=_scalars(p for _, p in trained),
        frozen=_scalars(p for _, p in members) - _scalars(p for _, p in trained),
        adapters=_scalars(p for name, p in trained if _layer_of_adapter(name) in frozen_layers),
        without_optimizer=None if groups is None else _scalars(p for _, p in outside),
        unreachable=count("unreachable"),
        zero_gradient=count("zero"),
        learning_rates=tuple(sorted({float(group["lr"]) for group in of_groups})),
        weight_decays=tuple(sorted({float(group.get("weight_decay", 0.0)) for group in of_groups})),
        examples=tuple(dict.fromkeys(cannot))[:3],
    )


def _layer_of_adapter(name: str) -> str | None:
    """The base layer, as PEFT calls it, of an adapter's parameter."""
    layer, found, _ = name.partition(f".{ADAPTER}")
    return f"{layer}.base_layer" if found else None


def _scalars(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
