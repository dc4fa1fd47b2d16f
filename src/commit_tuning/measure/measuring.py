"""Which steps are measured, what is known of a step, and its measurement in the memory that there is."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from commit_tuning.config import SHORTEST_INTERVAL, Probe
from commit_tuning.distributed import full_tensor, local_shard, several_ranks, sum_over_ranks
from commit_tuning.measure.batches import take_samples
from commit_tuning.measure.displacement import Displacement
from commit_tuning.measure.forward import Batch, forward_pass
from commit_tuning.measure.probe import DriftProbe, Measurement
from commit_tuning.partition.modules import ModulePartition

GROWTH, LONGEST_INTERVAL = 16, 40
TURN = 0.25  # of the full rate
RECENT, FEWEST = 10, 5  # measurements that a new one is held against
JUMP, AGAIN = 4.0, 2.0  # standard deviations of a logarithm that are far above the mean, and that confirm it
LEAST_SPREAD = 0.25  # the least that such a standard deviation is taken for
_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")  # of devices without an error of their own


class ByNeed:
    """Decides how long the next measurement can wait.

    Measurements are 5 steps apart at first and after a change. From then on they are a sixteenth of the steps since the
    change apart, and 40 in the end. A change is a module that was never measured before, or a loss or a drift at the
    base rate that is far above the last ones twice in a row; the second look comes after 5 steps. Readings far below
    are common. A schedule that has moved a base rate by a quarter of the full rate has the next step measured, which
    then says whether anything changed.

    Attributes:
        interval: Steps that the next measurement waits, as of the last one.
        reason: Why it waits so long.
    """

    def __init__(self) -> None:
        self.interval, self.reason = SHORTEST_INTERVAL, "start"
        self._asked, self._last, self._next, self._since = 0, 0, 0, 0
        self._shares: dict[str, float] = {}  # at the last measurement
        self._recent: dict[str, list[float]] = {}
        self._suspected: list[str] = []

    def is_due(self, steps: int, shares: Mapping[str, float]) -> bool:
        """Whether the step after so many steps is measured.

        Args:
            steps: Finished optimizer steps.
            shares: Module to its base rate now over its full rate.
        """
        self._asked = steps
        turned = any(abs(share - self._shares.get(name, share)) >= TURN for name, share in shares.items())
        return steps >= self._next or (turned and steps >= self._last + SHORTEST_INTERVAL)

    def postpone(self) -> None:
        """The step that was asked for cannot be measured."""
        self._next = self._asked + SHORTEST_INTERVAL

    def measured(self, found: Measurement, in_force: Mapping[str, float], shares: Mapping[str, float]) -> None:
        """Take note of the measurement of the step that was last asked for."""
        steps = self._asked
        words, changed = self._change(found, in_force)
        if not (words or self.is_due(steps, shares)):
            return  # a debt, paid between two turns
        self._last, self._shares = steps, dict(shares)
        self._since = steps if changed else self._since
        rarer = 0 if self._suspected else (steps - self._since) // GROWTH
        self.interval = min(max(rarer, SHORTEST_INTERVAL), LONGEST_INTERVAL)
        self._next = steps + self.interval
        self.reason = words or f"no change since step {self._since + 1}"

    def _change(self, found: Measurement, in_force: Mapping[str, float]) -> tuple[str, bool]:
        """What is new or far above the last ones in a measurement, in words, and whether that is a change."""
        loss = found.loss or math.nan  # saturated samples have none, and say nothing
        drifts = {name: drift / loss for name, drift in found.at_base_rate(in_force).items()}
        values = {"loss": found.loss, **{f"drift of {name} over the loss": drift for name, drift in drifts.items()}}
        words, changed, first = [], False, not self._recent
        suspected = [name for name in self._suspected if name not in values]
        for name, value in values.items():
            if not (math.isfinite(value) and value > 0):
                continue
            recent, log = self._recent.setdefault(name, []), math.log(value)
            rise = log - statistics.fmean(recent or [log])
            spread = max(statistics.stdev(recent), LEAST_SPREAD) if len(recent) >= FEWEST else math.inf
            again = name in self._suspected
            if rise > spread * (AGAIN if again else JUMP):
                words.append(f"{name} {math.exp(rise):.2g} times what it was, {'again' if again else 'once'}")
                changed, recent = changed or again, [] if again else recent
                if not again:
                    suspected.append(name)
                    continue
            elif not recent and not first:
                words.append(f"first {name}")
                changed = True
            self._recent[name] = [*recent, log][-RECENT:]
        self._suspected = suspected
        return ", ".join(words), changed

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {name: copy.deepcopy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`."""
        for name in _STATE:
            setattr(self, name, copy.deepcopy(state[name]))


_STATE = ("interval", "reason", "_asked", "_last", "_next", "_since", "_shares", "_recent", "_suspected")


class Schedule:
    """Decides which steps are measured.

    From a step on that is due, every module owes a measurement until the first step at which it has a gradient. Else
    batches of one kind that come in step with the interval would hide a module for ever.

    Args:
        partition: The modules.
        interval: Optimizer steps between two measurements, `"auto"` by need; None never measures.

    Attributes:
        need: What decides by need; None where the interval is fixed.
    """

    def __init__(self, partition: ModulePartition, interval: int | Literal["auto"] | None) -> None:
        self._partition, self._interval = partition, interval
        self.need = ByNeed() if interval == "auto" else None
        self._shares: dict[str, float] = {}
        self._owed: set[str] = set()
        self._owed_before: set[str] = set()  # what a step that is not made leaves

    def is_due(self, steps: int, out_of_turn: bool, shares: Callable[[], dict[str, float]]) -> bool:
        """Whether the next step is measured; asked once a step, with its gradients there.

        Args:
            steps: Finished optimizer steps.
            out_of_turn: Whether a measurement is wanted as soon as can be.
            shares: Gives each module's base rate over its full rate.
        """
        turn = self._interval is not None and (self._is_turn(steps, shares) or out_of_turn)
        self._owed_before, self._owed = self._owed, self._owed | set(self._partition if turn else ())
        return turn or bool(with_gradient(self._partition, self._owed))

    def _is_turn(self, steps: int, shares: Callable[[], dict[str, float]]) -> bool:
        if not isinstance(self._interval, int):
            assert self.need
            self._shares = shares()
            return self.need.is_due(steps, self._shares)
        return steps % self._interval == 0

    def paid(self, idle: set[str], found: Measurement, in_force: Mapping[str, float]) -> None:
        """The step was measured; `idle` modules had no gradient and still owe.

        Args:
            idle: Modules.
            found: The measurement.
            in_force: Module to what its rate was over its full base rate; empty where nothing controls rates.
        """
        self._owed &= idle
        if self.need:
            self.need.measured(found, in_force or self._shares, self._shares)

    def missed(self) -> None:
        """The step was not made."""
        self._owed = self._owed_before

    def give_up(self) -> None:
        """Nothing is owed until the next step that is due."""
        self._owed = set()
        if self.need:
            self.need.postpone()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"owed": sorted(self._owed), "need": self.need and self.need.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`."""
        self._owed = set(state["owed"])
        if self.need and state.get("need"):
            self.need.load_state_dict(state["need"])


def with_gradient(partition: ModulePartition, names: Iterable[str]) -> set[str]:
    """Those of some modules at which a gradient arrives, on any rank; every rank asks for the same modules."""
    asked = sorted(names)
    if not asked:
        return set()
    arrives = [float(any(map(_is_not_zero, partition[name]))) for name in asked]
    ranks = sum_over_ranks(arrives, partition[asked[0]][0].device)
    return {name for name, count in zip(asked, ranks, strict=True) if count}


def _is_not_zero(parameter: nn.Parameter) -> bool:
    """Whether a parameter has a gradient; under FSDP2, in this rank's part of it."""
    return parameter.grad is not None and bool(local_shard(parameter.grad).any())


@dataclass
class Step:
    """One optimizer step, from the moment its gradients are there.

    Attributes:
        number: Counted from 1.
        measured: Whether it is measured.
        idle: Modules without a gradient; known where it is measured.
        target_tokens: Of the step's whole batch, on this process.
        samples: What is looked at of its micro-batches, until the step is prepared.
        looked_at: How many samples that are.
        too_large: Of a measurement that ran out of memory: how many samples it was of, and the next ones will be of.
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
    looked_at: int = 0
    too_large: tuple[int, int] | None = None
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
    return float(full_tensor(torch.nn.utils.get_total_norm(tensors)))


class Meter:
    """Measures the drift of each module at a step.

    A measurement that runs out of memory is left out, and half the samples are taken from then on.

    Args:
        model: As for `Coordinator`.
        partition: Its modules.
        settings: The samples, the displacement, and whether labels are shifted.

    Attributes:
        forward: The model as the probe sees it.
        shift: Whether the logits at position j predict the label at j + 1.
    """

    def __init__(self, model: nn.Module, partition: ModulePartition, settings: Probe) -> None:
        self.forward = forward_pass(model)
        self.shift: bool = self.forward.shifts_labels if settings.shift_labels == "auto" else settings.shift_labels
        self._partition, self._samples = partition, settings.samples
        self._displacement = Displacement(settings.drift_scale)

    def choose(self, step: Step, batches: Sequence[Batch]) -> None:
        """Keep in `step.samples` what is looked at of a step's micro-batches."""
        step.samples = take_samples(batches, self._samples, self.shift, self.forward.placeholder_tokens)
        step.looked_at = sum(batch["labels"].shape[0] for batch in step.samples)

    def start(self, step: Step) -> None:
        """Keep in `step.probe` what the step overwrites; where memory runs out, half the samples are left.

        Raises:
            NoTargetError: No sample has a target token, on any rank.
        """
        with self._sparing_memory(step):
            step.probe = DriftProbe(self.forward, self._partition, step.samples, self.shift, step.target_tokens)
        if step.too_large:
            self.choose(step, step.samples)

    def finish(self, step: Step) -> Measurement | None:
        """Measure what the step did; None where it is not measured, or where that ran out of memory."""
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
        samples = min(step.looked_at, self._samples or step.looked_at)
        self._samples = max(1, samples // 2)
        step.leave_out()
        step.too_large = samples, self._samples

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"displacement": self._displacement.state_dict(), "probe_samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()`."""
        self._displacement.load_state_dict(state["displacement"])
        self._samples = state["probe_samples"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is one of memory: PyTorch's own, its CPU allocator's, Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


def release_memory() -> None:
    """Give back what is no longer held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
