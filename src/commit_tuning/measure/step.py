"""What is known of one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from commit_tuning.distributed.shards import whole
from commit_tuning.measure.forward import Batch
from commit_tuning.measure.probe import DriftProbe
from commit_tuning.partition.modules import ModulePartition


@dataclass
class Step:
    """One optimizer step, from the moment its gradients are there.

    Attributes:
        number: Counted from 1.
        measured: Whether it is measured.
        idle: Modules without a gradient; known where it is measured.
        target_tokens: Of the step's whole batch, on this process.
        samples: What is looked at of its micro-batches.
        rates: Module to its largest learning rate during the step.
        in_force: Module to what that is over its initial base rate; known where it is measured.
        norms: `grad_norm/<module>`, `theta_norm/<module>` and, after the step, `step_norm/<module>`: L2 norms.
        probe: What the step overwrites, where it is measured.
        unscaled: Whether the coordinator has divided the gradients by the loss scale.
    """

    number: int
    measured: bool = False
    idle: set[str] = field(default_factory=set)
    target_tokens: int | Tensor = 0
    samples: list[Batch] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    in_force: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    probe: DriftProbe | None = None
    unscaled: bool = False
    _versions: dict[int, int] = field(default_factory=dict)

    def leave_out(self) -> None:
        """Measure nothing at this step."""
        self.measured, self.probe, self.norms = False, None, {}

    def close(self) -> None:
        """Keep nothing but numbers."""
        self.probe, self.samples, self._versions = None, [], {}

    def remember_parameters(self, partition: ModulePartition) -> None:
        """From here on no parameter may change before the optimizer's step."""
        self._versions = {id(p): p._version for name in partition for p in partition[name]}

    def check_parameters(self, partition: ModulePartition) -> None:
        """Refuse a change since `remember_parameters`, which would count as the step's.

        In-place changes are seen. Those through `.data` are not: all values would have to be compared.

        Raises:
            RuntimeError: Names the parameter.
        """
        if not self._versions:
            return
        for module in partition:
            for name, parameter in partition.named_parameters(module).items():
                if parameter._version != self._versions[id(parameter)]:
                    raise RuntimeError(
                        f"parameter {name!r} changed between before_step() and optimizer.step(); change it before "
                        "before_step() or after after_step()"
                    )


def norms_before(partition: ModulePartition) -> dict[str, float]:
    """`grad_norm/<module>` and `theta_norm/<module>` before a step: L2 norms over all parameters of a module."""
    norms = {}
    for name in partition:
        gradients = [p.grad for p in partition[name] if p.grad is not None]
        norms[f"grad_norm/{name}"] = _norm(gradients) if gradients else 0.0
        norms[f"theta_norm/{name}"] = _norm([p.detach() for p in partition[name]])
    return norms


def _norm(tensors: list[Tensor]) -> float:
    return float(whole(torch.nn.utils.get_total_norm(tensors)))
