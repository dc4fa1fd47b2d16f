"""Measured balance turned into learning rates: the object that a training loop talks to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.config import CoMMITConfig
from commit_tuning.core.controllers import make_controller
from commit_tuning.core.forward import Batch
from commit_tuning.core.partition import ModulePartition
from commit_tuning.core.probe import DriftProbe, Snapshot
from commit_tuning.core.regularizer import Gradients, previous_step_gradients
from commit_tuning.core.shards import is_sharded, refuse_unsupported
from commit_tuning.core.stability import instability
from commit_tuning.core.trial import check_control
from commit_tuning.core.unlabelled import sample_answers
from commit_tuning.errors import ConfigError, NoAnswerError, ShardingError
from commit_tuning.models.partition import partition_model
from commit_tuning.monitor import BalanceMonitor

LARGEST_MULTIPLIER = 1e12  # a base rate of 1e-15 is raised to that of an ordinary training by it


class Coordinator(BalanceMonitor):
    """Measures the balance of learning and sets the modules' learning rates from it (CoMMIT).

    The learning rates are multipliers on what the optimizer's groups hold, set just for the optimizer's step and taken
    back after it: any learning-rate scheduler works, and nothing compounds. The default's budget is that of a group's
    `max_lr` or `initial_lr`: a schedule that goes above it (CyclicLR) goes above the budget by the square. A parameter
    group that mixes modules is split for the length of a step, so that schedulers, wrappers and checkpoints find the
    groups as they were made.

    Control needs an optimizer whose step is its learning rate times something that no rate changes, such as AdamW, SGD
    or Lion; what it does is tried out on a copy with small parameters. `method="constant"` needs nothing and changes
    nothing of the optimizer.

    Args:
        model: As for `BalanceMonitor`.
        optimizer: As for `BalanceMonitor`.
        config: Method and settings; `CoMMITConfig()` by default.
        partition: As for `BalanceMonitor`.

    Raises:
        ConfigError: The optimizer's learning rates cannot be controlled: it finds its own rate (Prodigy, DoG), its
            step depends on earlier rates (ASGD, Rprop, schedule-free), or it needs a closure (LBFGS).
        PartitionError: As for `BalanceMonitor`.
        ShardingError: As for `BalanceMonitor`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: CoMMITConfig | None = None,
        partition: ModulePartition | None = None,
    ) -> None:
        refuse_unsupported(model, optimizer)  # before anything is asked of parameters that are not there in full
        partition = partition or partition_model(model)
        if config is not None and config.regularizer is not None and is_sharded(model):
            raise ShardingError(
                f"regularizer={config.regularizer!r} needs gradients of its own, which FSDP2 does not give; use DDP, "
                "or method='commit-clr' without a regularizer"
            )
        if config is not None and config.method == "hypergradient" and is_sharded(model):
            raise ShardingError("method='hypergradient' does not know FSDP2's parameters; use DDP, or another method")
        super().__init__(model, optimizer, config, partition)
        if self.config.sets_rates or self.config.regularizer is not None:
            self._groups.check_rates()
        if self.config.sets_rates:
            check_control(optimizer, partition, scales=self.config.scales_rates)
        self._controller = make_controller(self.config, self.partition)
        self._previous: Snapshot | None = None
        self._now: Snapshot | None = None  # the next `_previous`, if the step is made
        self._lookahead: DriftProbe | None = None
        self._ascent: Gradients = {}
        self._added: Gradients = {}  # to the optimizer's gradients
        self._plain: list[tuple[Tensor, Tensor]] = []  # those gradients, and copies of them without it
        self._factors: dict[str, float] = {}
        self._update_multipliers()
        fault = instability(self.config) if self.config.coordinated else None
        if fault:
            warnings.warn(fault, stacklevel=2)

    @property
    def multipliers(self) -> dict[str, float]:
        """Module to the factor on its base learning rate at the next step; 0 leaves the module as it is."""
        return dict(self._multipliers)

    def _before(self, batches: list[Batch]) -> None:
        self._controller.before_step()
        self._regularize_before(batches)
        super()._before(batches)
        if self.config.regularizer == "lookahead":
            self._lookahead = self._lookahead_probe(batches)
        if self._measured_now:
            schedule = self._groups.schedule()
            self._factors = {name: factor * schedule[name] for name, factor in self._multipliers.items()}
        self._groups.step.scale(self._multipliers)

    def _after(self, skipped: bool) -> None:
        lookahead, self._lookahead = self._lookahead, None
        try:
            if not skipped:
                self._made()
                if lookahead is not None:
                    self._ascent = {name: lookahead.gradients(name) for name in self.partition}
                self._ascend()
        finally:
            self._forget_regularizer()
            self._groups.step.restore()

    def _made(self) -> None:
        """Take over what is only so if the step was made."""
        self._controller.after_step()
        self._previous, self._now = self._now or self._previous, None

    def _forget_regularizer(self) -> None:
        self._now, self._lookahead, self._ascent, self._added, self._plain = None, None, {}, {}, []

    def _abandon(self, late: bool = False) -> None:
        for gradient, plain in () if late else self._plain:
            gradient.copy_(plain)
        self._forget_regularizer()
        try:
            self._groups.step.restore(gradients=not late)
        finally:
            super()._abandon(late)

    def gradients_made_anew(self) -> None:
        """As for `BalanceMonitor`: the regularizer's are added, and those of a module at rest taken away."""
        self._add_to_gradients()
        self._groups.step.rest()

    def _counted(self) -> None:
        """Take the next rates from what was measured: every `lr_update_interval` steps, at first whenever it was."""
        if self._measured_now and self._measurement:
            self._controller.observe(self.drift, self._factors, self._measurement.loss, self._measurement.answers)
        if self._controller.settling or self._steps % self.config.lr_update_interval == 0:
            self._update_multipliers()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        previous = None if self._previous is None else {n: self._previous.values(n) for n in self.partition}
        return {
            **super().state_dict(),
            "multipliers": dict(self._multipliers),
            "method": [self.config.method, self.config.controller],
            "controller": self._controller.state_dict(),
            "full_rates": self._groups.full_rates,
            "previous": previous,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        saved, own = list(state["method"]), [self.config.method, self.config.controller]
        if saved != own:
            raise ConfigError(f"the state is of method and controller {saved}, not {own}: resume with those settings")
        groups, found = len(state["full_rates"]), len(self._groups.full_rates)
        if groups != found:
            raise ConfigError(
                f"the state is of an optimizer with {groups} parameter groups, and this one has {found}: make them as "
                "they were when the state was saved"
            )
        for multipliers in (state["multipliers"], *_multipliers_in(state["controller"])):
            _check_multipliers(multipliers, self.partition)
        super()._load(state)
        self._multipliers = dict(state["multipliers"])
        self._controller.load_state_dict(state["controller"])
        self._groups.full_rates = list(state["full_rates"])
        previous = state["previous"]
        self._previous = None if previous is None else Snapshot.of(self.partition, previous)

    def _starting(self) -> bool:
        return self._controller.starting

    def _update_multipliers(self) -> None:
        measurements = {name: len(window) for name, window in self._windows.items()}
        self._multipliers = self._controller.multipliers(self._steps, self.smoothed_kappas, measurements)

    @property
    def _drift_weight(self) -> float:
        """Weight of the drift's gradient: above zero rewards drift, below penalises it."""
        sign = -1.0 if self.config.regularizer == "drift-penalty" else 1.0
        return sign * self.config.regularizer_weight

    def _regularizer_batches(self, batches: list[Batch]) -> list[Batch]:
        if self.config.regularizer_labels == "given":
            return batches
        return sample_answers(self._forward, batches, self._shift, seed=self._steps)

    def _lookahead_probe(self, batches: list[Batch]) -> DriftProbe | None:
        """The probe that the measurement uses too, if it looks at the same answers; None where there are none."""
        if self._probe is not None and self.config.regularizer_labels == "given":
            return self._probe
        batches = self._regularizer_batches(batches)
        try:
            return DriftProbe(self._forward, self.partition, batches, self._shift)
        except NoAnswerError:
            return None

    def _regularize_before(self, batches: list[Batch]) -> None:
        """The previous-step reading of Eq. 9-10, or its penalty: the gradient is known before the step."""
        if self.config.regularizer not in {"previous-step", "drift-penalty"}:
            return
        if self._previous is not None:
            batches, shift = self._regularizer_batches(batches), self._shift
            self._ascent = previous_step_gradients(self._forward, self.partition, batches, self._previous, shift)
        self._now = Snapshot(self.partition, self.partition)
        if self.config.regularizer_step == "optimizer":
            self._added, self._ascent = self._ascent, {}
            found = [p.grad for name in self._added for p in self.partition[name] if p.grad is not None]
            self._plain = [(gradient, gradient.clone()) for gradient in found]
            self._add_to_gradients()

    def _add_to_gradients(self) -> None:
        for name, gradients in self._added.items():
            for parameter, gradient in zip(self.partition[name], gradients, strict=True):
                if parameter.grad is not None:
                    parameter.grad.sub_(gradient, alpha=self._drift_weight)

    @torch.no_grad()
    def _ascend(self) -> None:
        """Add lr x weight x gradient of the drift to the parameters, with each module's learning rate of this step."""
        rates = self._groups.by_parameter()
        for name, gradients in self._ascent.items():
            for parameter, gradient in zip(self.partition[name], gradients, strict=True):
                rate = rates.get(id(parameter), 0.0)
                parameter.add_(gradient, alpha=rate * self._drift_weight)
        self._ascent = {}


def _multipliers_in(controller: Mapping[str, Any]) -> list[Any]:
    return [controller[key] for key in ("first", "multipliers") if key in controller]


def _check_multipliers(multipliers: Mapping[str, float], partition: ModulePartition) -> None:
    """Refuse multipliers that no training can have led to.

    Raises:
        ValueError: Names the first of them.
    """
    for name, value in multipliers.items():
        if name not in partition.names or isinstance(value, bool) or not 0 <= value <= LARGEST_MULTIPLIER:
            raise ValueError(f"the multiplier of module {name!r} is {value!r}")
