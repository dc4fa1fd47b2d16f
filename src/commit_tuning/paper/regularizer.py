"""The drift regulariser (Eq. 9-10): theta <- theta - lr grad L + lr weight grad d, per module.

As printed, d(P_t || P_{t+1}) is differentiated at theta_t, where its gradient is exactly zero: a KL divergence at its
minimum. The gradient has to be taken at a displaced point, and there are two readings of that:

- lookahead: take the plain step, differentiate d_X at (X_{t+1}, S_t) and d_S at (X_t, S_{t+1}), and add the ascent.
  `DriftProbe.gradients` is that gradient.
- previous-step: d_X is between (X_{t-1}, S_t) and (X_t, S_t) on the current batch, d_S between (X_t, S_{t-1}) and
  (X_t, S_t), both differentiated at (X_t, S_t). `previous_step_gradients` is that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from commit_tuning.config import DriftPenalty, PreviousStep
from commit_tuning.config import Regularizer as Reading
from commit_tuning.control.groups import GroupRates
from commit_tuning.errors import NoTargetError
from commit_tuning.measure.forward import Batch
from commit_tuning.measure.measuring import Meter, Step
from commit_tuning.measure.probe import DriftProbe, Snapshot
from commit_tuning.paper.previous_step import Gradients, previous_step_gradients
from commit_tuning.paper.sampled_answers import sample_answers
from commit_tuning.partition.modules import ModulePartition


class Regularizer:
    """What adds the gradient of the drift to a step; a reading of Eq. 9-10 says when it takes it.

    Args:
        reading: Its settings.
        meter: Sees the model.
        partition: The modules.
        rates: The learning rates of this step.
    """

    def __init__(self, reading: Reading, meter: Meter, partition: ModulePartition, rates: GroupRates) -> None:
        self._reading, self._meter, self._partition, self._rates = reading, meter, partition, rates
        self._ascent: Gradients = {}

    def before(self, step: Step) -> None:
        """The gradients are there, and the measurement has not begun."""

    def started(self, step: Step) -> None:
        """The measurement has kept what the step overwrites."""

    def gradients_made_anew(self) -> None:
        """A closure that the optimizer's step calls has made the gradients again."""

    def after(self) -> None:
        """The step was made; the learning rates are still its own."""

    def forget(self, undo: bool = False) -> None:
        """Keep nothing of the step.

        Args:
            undo: Whether gradients are put back as they were found.
        """
        del undo
        self._ascent = {}

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`."""

    @property
    def _weight(self) -> float:
        """Weight of the drift's gradient: above zero rewards drift, below penalises it."""
        return -self._reading.weight if isinstance(self._reading, DriftPenalty) else self._reading.weight

    def _batches(self, step: Step) -> list[Batch]:
        if self._reading.labels == "given":
            return step.samples
        return sample_answers(self._meter.forward, step.samples, self._meter.shift, seed=step.number - 1)

    @torch.no_grad()
    def _ascend(self) -> None:
        """Add lr x weight x gradient of the drift to the parameters, with each module's learning rate of this step."""
        rates = self._rates.by_parameter()
        for name, gradients in self._ascent.items():
            for parameter, gradient in zip(self._partition[name], gradients, strict=True):
                parameter.add_(gradient, alpha=rates.get(id(parameter), 0.0) * self._weight)


class LookaheadRegularizer(Regularizer):
    """The gradient is taken where the plain step has led, and added after it."""

    _drift: DriftProbe | None = None

    def started(self, step: Step) -> None:
        """Share the probe of the measurement, if that looks at the same labels; None where there are none."""
        if step.probe is not None and self._reading.labels == "given":
            self._drift = step.probe
            return
        try:
            self._drift = DriftProbe(self._meter.forward, self._partition, self._batches(step), self._meter.shift)
        except NoTargetError:
            self._drift = None

    def after(self) -> None:
        """Add the ascent to the parameters."""
        if self._drift is not None:
            self._ascent = {name: self._drift.gradients(name) for name in self._partition}
        self._ascend()

    def forget(self, undo: bool = False) -> None:
        """Keep nothing of the step."""
        super().forget(undo)
        self._drift = None


class PreviousStepRegularizer(Regularizer):
    """The gradient of the drift since the step before is known before the step; `drift-penalty` has the other sign."""

    _previous: Snapshot | None = None
    _now: Snapshot | None = None  # the next `_previous`, if the step is made

    def __init__(self, reading: Reading, meter: Meter, partition: ModulePartition, rates: GroupRates) -> None:
        super().__init__(reading, meter, partition, rates)
        self._added: Gradients = {}  # to the optimizer's gradients
        self._plain: list[tuple[Tensor, Tensor]] = []  # those gradients, and copies of them without it

    def before(self, step: Step) -> None:
        """Take the gradient, and where it acts through the optimizer, add it to the gradients."""
        if self._previous is not None:
            seen = self._meter
            self._ascent = previous_step_gradients(
                seen.forward, self._partition, self._batches(step), self._previous, seen.shift
            )
        self._now = Snapshot(self._partition, self._partition)
        if isinstance(self._reading, PreviousStep) and self._reading.step == "optimizer":
            self._added, self._ascent = self._ascent, {}
            found = [p.grad for name in self._added for p in self._partition[name] if p.grad is not None]
            self._plain = [(gradient, gradient.clone()) for gradient in found]
            self.gradients_made_anew()

    def gradients_made_anew(self) -> None:
        """Add the drift's gradient to the optimizer's."""
        for name, gradients in self._added.items():
            for parameter, gradient in zip(self._partition[name], gradients, strict=True):
                if parameter.grad is not None:
                    parameter.grad.sub_(gradient, alpha=self._weight)

    def after(self) -> None:
        """Add the ascent to the parameters, where it does not act through the optimizer."""
        self._previous, self._now = self._now or self._previous, None
        self._ascend()

    def forget(self, undo: bool = False) -> None:
        """Keep nothing of the step."""
        for gradient, plain in self._plain if undo else ():
            gradient.copy_(plain)
        super().forget(undo)
        self._now, self._added, self._plain = None, {}, []

    def state_dict(self) -> dict[str, Any]:
        """The parameters before the last step."""
        previous = self._previous
        return {"previous": previous and {name: previous.values(name) for name in self._partition}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`."""
        previous = state["previous"]
        self._previous = None if previous is None else Snapshot.of(self._partition, previous)


def make_effects(
    reading: Reading | None, meter: Meter, partition: ModulePartition, rates: GroupRates
) -> list[Regularizer]:
    """Make what acts on a step besides its learning rates: by a reading of Eq. 9-10, or nothing."""
    if reading is None:
        return []
    kind = PreviousStepRegularizer if isinstance(reading, PreviousStep) else LookaheadRegularizer
    return [kind(reading, meter, partition, rates)]
