"""Which trainable parameters are the language model's, and which each feature encoder's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from commit_tuning.errors import PartitionError

LANGUAGE_MODEL = "language_model"


class ModulePartition:
    """Named modules that share out the trainable parameters of a model; one of them is `language_model`.

    In the paper's notation `language_model` is X and every other module is a feature encoder S.

    Args:
        modules: Module name to its parameters, or to `(parameter name, parameter)` pairs as `named_parameters()` gives
            them. Frozen parameters are left out.

    Raises:
        PartitionError: No `language_model`, no feature encoder, a module without a trainable parameter, or a parameter
            in two modules.

    Example:
        >>> tower, head = nn.Linear(2, 3), nn.Linear(3, 4)
        >>> partition = ModulePartition({"vision": tower.parameters(), "language_model": head.parameters()})
        >>> partition.encoders
        ('vision',)
    """

    def __init__(self, modules: Mapping[str, Iterable[nn.Parameter] | Iterable[tuple[str, nn.Parameter]]]) -> None:
        self._modules: dict[str, dict[str, nn.Parameter]] = {}
        self._owner: dict[int, str] = {}
        for module, parameters in modules.items():
            self._modules[module] = self._claim(module, parameters)
        self._check_modules()

    def _claim(self, module: str, parameters: Iterable[Any]) -> dict[str, nn.Parameter]:
        """The trainable parameters of one module by name; refuses a parameter that another module has."""
        claimed: dict[str, nn.Parameter] = {}
        for index, entry in enumerate(parameters):
            name, parameter = entry if isinstance(entry, tuple) else (f"{module}[{index}]", entry)
            if not parameter.requires_grad:
                continue
            owner = self._owner.setdefault(id(parameter), module)
            if owner != module:
                raise PartitionError(
                    f"parameter {name!r} {tuple(parameter.shape)} is in two modules, {owner!r} and {module!r}; "
                    "give it to one of them"
                )
            if not any(parameter is known for known in claimed.values()):
                claimed[name] = parameter
        return claimed

    def _check_modules(self) -> None:
        if LANGUAGE_MODEL not in self._modules:
            found = ", ".join(map(repr, self._modules)) or "none"
            raise PartitionError(
                f"no module is named {LANGUAGE_MODEL!r} (found: {found}); name the LLM's parameters so"
            )
        if len(self._modules) < 2:
            raise PartitionError(
                f"the only module is {LANGUAGE_MODEL!r}; balance needs at least one feature encoder beside it"
            )
        for module, parameters in self._modules.items():
            if not parameters:
                raise PartitionError(
                    f"module {module!r} has no trainable parameter; unfreeze some of it or leave the module out"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """All module names, `language_model` included."""
        return tuple(self._modules)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The names of the feature encoders."""
        return tuple(name for name in self._modules if name != LANGUAGE_MODEL)

    @property
    def low_precision(self) -> tuple[str, ...]:
        """The modules with parameters in half precision, in which most small updates round away."""
        halves = {torch.bfloat16, torch.float16}
        return tuple(name for name in self if any(parameter.dtype in halves for parameter in self[name]))

    def __getitem__(self, module: str) -> list[nn.Parameter]:
        """The trainable parameters of a module."""
        return list(self._modules[module].values())

    def __iter__(self) -> Iterator[str]:
        """Iterate over the module names."""
        return iter(self._modules)

    def named_parameters(self, module: str) -> dict[str, nn.Parameter]:
        """The trainable parameters of a module by name."""
        return dict(self._modules[module])

    def module_of(self, parameter: nn.Parameter) -> str | None:
        """The module that a parameter belongs to, or None."""
        return self._owner.get(id(parameter))

    def check(self, model: nn.Module) -> None:
        """Refuse a model of which a trainable parameter is in no module.

        Raises:
            PartitionError: Names the first such parameter and counts the others.
        """
        if missing := self._unowned(model):
            raise PartitionError(
                f"trainable parameter {missing} is in no module of the partition ({', '.join(self.names)}); add it to "
                "one or freeze it"
            )

    def check_unchanged(self, model: nn.Module) -> None:
        """Refuse a model of which a parameter was unfrozen since `check`.

        Raises:
            PartitionError: Names the first such parameter and counts the others.
        """
        if unfrozen := self._unowned(model):
            raise PartitionError(
                f"parameter {unfrozen} was unfrozen after the start and is in no module, so nothing measures it: "
                "unfreeze it before training begins, or make a new Coordinator or BalanceMonitor then"
            )

    def _unowned(self, model: nn.Module) -> str:
        """The first trainable parameter that no module has, and how many more; empty where there is none."""
        names = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in self._owner]
        return f"{names[0]!r}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "") if names else ""

    def param_groups(
        self, lr: float | Mapping[str, float], weight_decay: float | Mapping[str, float] = 0.0
    ) -> list[dict[str, Any]]:
        """Optimizer groups per module; biases, norms and other one-dimensional parameters get no weight decay.

        Args:
            lr: Base learning rate, one for all or per module.
            weight_decay: Weight decay, one for all or per module.

        Returns:
            Groups with `params`, `lr`, `weight_decay`, and the key `module` that names the module.

        Raises:
            PartitionError: `lr` or `weight_decay` is per module and lacks one, or names one that does not exist.
        """
        rates = self._per_module("lr", lr)
        decays = self._per_module("weight_decay", weight_decay)
        groups = []
        for module, parameters in self._modules.items():
            matrices = [p for p in parameters.values() if p.ndim > 1]
            vectors = [p for p in parameters.values() if p.ndim <= 1]
            for params, decay in ((matrices, decays[module]), (vectors, 0.0)):
                if params:
                    groups.append({"params": params, "lr": rates[module], "weight_decay": decay, "module": module})
        return groups

    def _per_module(self, name: str, value: float | Mapping[str, float]) -> dict[str, float]:
        if not isinstance(value, Mapping):
            return dict.fromkeys(self._modules, value)
        for wrong in (*(set(value) - set(self._modules)), *(set(self._modules) - set(value))):
            raise PartitionError(f"{name} must name the modules {', '.join(self.names)} and no other; see {wrong!r}")
        return dict(value)

    def __repr__(self) -> str:
        """Modules with the number of their trainable parameters."""
        counts = (f"{m}={sum(p.numel() for p in ps.values()):,}" for m, ps in self._modules.items())
        return f"ModulePartition({', '.join(counts)})"
