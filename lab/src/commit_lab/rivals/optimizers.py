"""Optimizers that find their own step size, one for each module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch.optim import Optimizer

from commit_tuning.errors import UserError
from commit_tuning.partition.modules import ModulePartition


class ModuleOptimizers(Optimizer):
    """Several optimizers as one: each steps on its own parameter groups and knows nothing of the others.

    The groups are the same objects as those of the parts, so a rate that is set here applies there.

    Args:
        parts: Optimizers without a parameter in common.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step of every part; a closure is not supported."""
        del closure
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups[:] = self._groups()


def prodigy(partition: ModulePartition, rates: Mapping[str, float], weight_decay: float) -> Optimizer:
    """Make Prodigy (Mishchenko & Defazio 2024, arXiv 2306.06101), with a step size for each module."""
    make, groups = _package("prodigyopt", "prodigy").Prodigy, partition.param_groups(rates, weight_decay)
    return ModuleOptimizers([make([g for g in groups if g["module"] == module]) for module in partition])


def dog(partition: ModulePartition, rates: Mapping[str, float], weight_decay: float) -> Optimizer:
    """Make DoG (Ivgi et al. 2023, arXiv 2302.12022), with a step size for each module; its average is evaluated."""
    _package("dog", "dog")
    from commit_lab.rivals.averaged_dog import AveragedDoG

    return AveragedDoG(
        {"params": partition[m], "lr": rates[m], "weight_decay": weight_decay, "module": m} for m in partition
    )


def schedule_free(partition: ModulePartition, rates: Mapping[str, float], weight_decay: float) -> Optimizer:
    """Make schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682), ready to train."""
    groups = partition.param_groups(rates, weight_decay)
    optimizer: Optimizer = _package("schedulefree", "schedule-free").AdamWScheduleFree(groups)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _package(name: str, optimizer: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"train.optimizer {optimizer!r} is in a package that is not installed; run pip install 'commit-lab[rivals]'"
        ) from None
