"""Measurements of a model's steps, one at a time, in the memory that there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from commit_tuning.config import CoMMITConfig
from commit_tuning.distributed.ranks import several_ranks
from commit_tuning.measure.batches import take_samples
from commit_tuning.measure.displacement import Displacement
from commit_tuning.measure.forward import Batch
from commit_tuning.measure.memory import is_out_of_memory, release_memory
from commit_tuning.measure.probe import DriftProbe, Measurement
from commit_tuning.measure.step import Step
from commit_tuning.measure.transformers_forward import forward_pass
from commit_tuning.partition.modules import ModulePartition

TooLarge = Callable[[Step, int, int], None]


class Probe:
    """Measures the drift of each module at a step.

    A measurement that runs out of memory is left out, and half the samples are taken from then on.

    Args:
        model: As for `Coordinator`.
        partition: Its modules.
        config: Gives the samples, the displacement, and whether labels are shifted.
        too_large: Told of a step whose measurement ran out of memory, how many samples it was of, and how many the
            next ones will be of.

    Attributes:
        forward: The model as the probe sees it.
        shift: Whether the logits at position j predict the label at j + 1.
    """

    def __init__(self, model: nn.Module, partition: ModulePartition, config: CoMMITConfig, too_large: TooLarge) -> None:
        self.forward = forward_pass(model)
        self.shift: bool = self.forward.shifts_labels if config.shift_labels == "auto" else config.shift_labels
        self._partition, self._too_large = partition, too_large
        self._samples = config.probe_samples
        self._displacement = Displacement(config.drift_scale)

    def samples_of(self, batches: Sequence[Batch]) -> list[Batch]:
        """What is looked at of a step's micro-batches."""
        return take_samples(batches, self._samples, self.shift, self.forward.placeholder_tokens)

    def start(self, step: Step) -> None:
        """Keep in `step.probe` what the step overwrites.

        Raises:
            NoAnswerError: No sample has a target token, on any rank.
        """
        with self._sparing_memory(step):
            step.probe = DriftProbe(self.forward, self._partition, step.samples, self.shift, step.target_tokens)

    def finish(self, step: Step) -> Measurement | None:
        """Measure what the step did; None where that ran out of memory."""
        probe, step.probe = step.probe, None
        if probe is None:
            return None
        moving = [name for name in self._partition if name not in step.idle]
        with self._sparing_memory(step):
            measurement = probe.measure(self._displacement, moving or self._partition)
            step.norms.update({f"step_norm/{name}": norm for name, norm in probe.step_norms().items()})
            return measurement
        return None

    @contextlib.contextmanager
    def _sparing_memory(self, step: Step) -> Iterator[None]:
        """Leave the measurement of a step out if it runs out of memory.

        Several processes would have to agree on it, so with them the error is raised.
        """
        try:
            yield
            return
        except (RuntimeError, MemoryError) as error:
            if several_ranks() or not is_out_of_memory(error):
                raise
        release_memory()
        looked_at = sum(batch["labels"].shape[0] for batch in step.samples)
        samples = min(looked_at, self._samples or looked_at)
        self._samples = max(1, samples // 2)
        step.leave_out()
        self._too_large(step, samples, self._samples)

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"displacement": self._displacement.state_dict(), "probe_samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`.

        Raises:
            ValueError: The number of samples is none.
        """
        samples = state["probe_samples"]
        if not (samples is None or (type(samples) is int and samples > 0)):
            raise ValueError(f"probe_samples={samples!r}")
        self._displacement.load_state_dict(state["displacement"])
        self._samples = samples
