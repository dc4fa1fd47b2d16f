"""The measurement around an optimizer step.

The journey of a step: `before_step` keeps what the step will overwrite; whoever trains does the step; `after_step` asks
for the distributions in which one module moved and the others did not, and takes drift and kappa from them.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.config import CoMMITConfig
from commit_tuning.core.alarms import Alarms
from commit_tuning.core.balance import KappaWindow, balance_coefficient
from commit_tuning.core.displacement import Displacement
from commit_tuning.core.forward import Batch
from commit_tuning.core.groups import GroupRates
from commit_tuning.core.hooks import GradientWatch, StepWatch, scale_again, unscale
from commit_tuning.core.memory import is_out_of_memory, release_memory
from commit_tuning.core.partition import LANGUAGE_MODEL, ModulePartition
from commit_tuning.core.probe import DriftProbe, Measurement
from commit_tuning.core.ranks import several_ranks, sum_over_ranks
from commit_tuning.core.samples import Collector, answer_tokens, check_batches, take_samples
from commit_tuning.core.shards import local, refuse_unsupported, whole
from commit_tuning.errors import ConfigError, NoAnswerError, UserError, name_and_line
from commit_tuning.models.forward import forward_pass
from commit_tuning.models.partition import partition_model


class BalanceMonitor:
    """Measures the balance of learning and changes nothing: neither the training trajectory nor the optimizer.

    Args:
        model: `model(**batch)` returns something with `logits` [batch, length, vocabulary]; a batch holds `labels`,
            -100 where nothing is predicted. transformers models get a fast path.
        optimizer: The optimizer of the loop: any object with `param_groups` and `step`, or a wrapper around such.
        config: Settings; only those of the measurement matter here.
        partition: Which parameters are whose; None asks `partition_model(model)`.

    Raises:
        PartitionError: A trainable parameter is in no module, in two, or in no optimizer group; a module has none.
        ShardingError: Parameters are sharded in a way that cannot be measured.

    Example:
        A loop with the monitor, or the coordinator, in it::

            monitor = BalanceMonitor(model, optimizer)
            for batch in loader:
                model(**batch).loss.backward()
                monitor.step(batch)  # optimizer.step() and the measurement
                optimizer.zero_grad()
                print(monitor.kappa)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: CoMMITConfig | None = None,
        partition: ModulePartition | None = None,
    ) -> None:
        refuse_unsupported(model, optimizer)
        self.config = config or CoMMITConfig()
        self.partition = partition or partition_model(model)
        self.partition.check(model)
        self._optimizer = optimizer
        self._collected: Collector[Batch] = Collector(self.config.probe_samples)
        self._gradient_watch: GradientWatch | None = None
        self._watch = StepWatch(optimizer, self._step_begins, self._step_ended, self.abandon_step)
        self._groups = GroupRates(optimizer, self.partition)  # once whoever watched before has put it right
        self._probe_samples = self.config.probe_samples
        self._forward = forward_pass(model)
        shift = self.config.shift_labels
        self._shift = self._forward.shifts_labels if shift == "auto" else shift
        self._windows = {
            name: KappaWindow(self.config.kappa_window, self.config.kappa_estimator) for name in self.partition.encoders
        }
        self._displacement = Displacement(self.config.drift_scale)
        self._steps = 0
        self._measurement: Measurement | None = None
        self._measured_now = False
        self._answers: int | Tensor = 0
        self._idle: set[str] = set()
        self._owed: set[str] = set()
        self._owed_before: set[str] = set()  # what a step that is skipped leaves
        self._overflowed = False
        self._probe: DriftProbe | None = None
        self._in_step = False  # between before_step and after_step
        self._unscaled = False  # by this object
        self._depth = 0  # of calls to the optimizer's own step, which may call that of the class that it derives from
        self._looked_at = 0
        self._rates = self._groups.by_module()
        self._norms: dict[str, float] = {}
        self._multipliers = dict.fromkeys(self.partition, 1.0)
        self._alarms = Alarms(self.config)
        self._versions: dict[int, int] = {}
        if coarse := self.partition.coarse:
            warnings.warn(
                f"trained in half precision: {', '.join(coarse)}. Updates below a rounding step of a weight are lost, "
                "and kappa sees what is left; keep trained parameters in float32 and use autocast",
                stacklevel=2,
            )

    @property
    def kappas(self) -> dict[str, float]:
        """Encoder to the balance coefficient of the last measurement (Eq. 4); NaN where a module was not in it."""
        drift = self.drift
        return {
            name: balance_coefficient(drift.get(LANGUAGE_MODEL, math.nan), drift.get(name, math.nan))
            for name in self.partition.encoders
        }

    @property
    def kappa(self) -> float:
        """The language model's drift over the mean drift of the encoders that moved; NaN where there is none."""
        drift = self.drift
        moved = [drift[name] for name in self.partition.encoders if drift.get(name, 0) != 0]
        mean = sum(moved) / len(moved) if moved else math.nan
        return balance_coefficient(drift.get(LANGUAGE_MODEL, math.nan), mean)

    @property
    def smoothed_kappas(self) -> dict[str, float]:
        """Encoder to the moving average of its balance coefficient (Eq. 7); NaN before the first measurement."""
        return {name: window.value for name, window in self._windows.items()}

    @property
    def smoothed_kappa(self) -> float:
        """The harmonic mean of the smoothed kappas that there are, as `kappa` has the encoders' mean below."""
        values = [value for value in self.smoothed_kappas.values() if not math.isnan(value)]
        return len(values) / sum(1 / value for value in values) if values else math.nan

    @property
    def drift(self) -> dict[str, float]:
        """Module to its drift in nats at the last measurement (Eq. 2-3); a module without a gradient is left out."""
        return dict(self._measurement.drift) if self._measurement else {}

    @property
    def noise_floor(self) -> dict[str, float]:
        """Module to what rounding alone adds to its drift, in nats, at the last look; empty before the first."""
        return {m: r.floor for m, r in self._measurement.readings.items()} if self._measurement else {}

    @property
    def learning_rates(self) -> dict[str, float]:
        """Module to the largest learning rate of its parameter groups at the last step."""
        return dict(self._rates)

    @property
    def starving(self) -> dict[str, int]:
        """Module that learns next to nothing, to the optimizer step (counted from 1) since which it does.

        Its drift is below 1/2500 of another's, or its learning rate below a fiftieth or held back by the controller's
        bound, for `starvation_patience` measurements or more. Under `"trust-region"`, which sets rates by drift, its
        rate says nothing.
        """
        return self._alarms.starvation.starving

    def before_step(self, micro_batches: Batch | Sequence[Batch], answers: int | Tensor | None = None) -> None:
        """Prepare for an optimizer step; call it after the last backward pass, after unscaling and after clipping.

        Gradients whose unscaling is left to Accelerate's optimizer, or to a fused one, are unscaled.

        Args:
            micro_batches: The batch of this step, or the list of its micro-batches.
            answers: How many answer tokens (labels that are not -100) this step's gradient is of, on this process; None
                where `micro_batches` are all of the step's, to count them.

        Raises:
            BatchError: No labels, or no answer in any of the first `starvation_patience` batches that were looked at.
                A batch without an answer is not measured else, and made up for at the next.
            PartitionError: Parameters were unfrozen, or given to the optimizer, since this object was made.
            RuntimeError: `after_step` of the step before was not called. An optimizer's step that an error ended is put
                right instead, as by `abandon_step`.
        """
        self._end_broken_step()
        batches = check_batches(micro_batches)
        self._unscaled = unscale(self._optimizer)
        try:
            self._decide_to_measure()
            if self._measured_now:
                self._answers = sum(map(answer_tokens, batches)) if answers is None else answers
            looks = self._measured_now or self.config.regularizer is not None
            samples = self._samples_of(batches) if looks else []
            self._looked_at = sum(batch["labels"].shape[0] for batch in samples)
            self._before(samples)
        except BaseException:
            self._abandon()
            raise
        self._rates = self._groups.by_module()
        self._versions = {id(p): p._version for name in self.partition for p in self.partition[name] if looks}
        self._in_step = True

    def after_step(self, skipped: bool = False) -> None:
        """Measure what the step did; call it after the optimizer's step.

        Args:
            skipped: The optimizer did not step after all, as under loss scaling when a gradient overflows. Nothing is
                measured then, and the step does not count. A fused optimizer, which is called all the same, is seen to
                skip.

        Raises:
            RuntimeError: `before_step` was not called.
        """
        if not self._in_step:
            raise RuntimeError("after_step() was called without before_step()")
        self._in_step, self._depth = False, 0
        skipped = skipped or self._overflowed
        probe, self._probe = self._probe, None
        self._watch.go_last()
        self._alarms.skipped(self._steps + 1, skipped)
        if skipped:
            self._measured_now, self._norms, self._owed = False, {}, self._owed_before
            self._after(skipped)
            return
        try:
            self._after(skipped)
            if probe is not None:
                with self._sparing_memory():
                    self._measure(probe)
        except BaseException:
            self._measured_now = False
            raise
        finally:
            self._steps += 1
        self._counted()

    def abandon_step(self, late: bool = False) -> None:
        """Forget a step that an error has ended between `before_step` and `after_step`: it counts as never made.

        Rates, groups and gradients are those that `before_step` found. Call it where the error is caught, before a
        checkpoint is written or a scheduler steps. Without such a step it does nothing.

        Args:
            late: Gradients were made or dropped since: they stay as they are.
        """
        if self._in_step:
            self._abandon(late)

    def gradients_made_anew(self) -> None:
        """Do to gradients what `before_step` did; call it after a closure that the optimizer's step calls."""

    def skipped_step(self) -> None:
        """Count a step that was skipped, as under loss scaling, before `before_step` was called."""
        self._alarms.skipped(self._steps + 1, True)

    def step(self, batches: Batch | Sequence[Batch], closure: Callable[[], Any] | None = None) -> None:
        """`before_step(batches)`, `optimizer.step()`, `after_step()`.

        Inside `accelerator.accumulate`, where Accelerate's optimizer steps on the last micro-batch only, the others are
        kept for that step; a step that it skips under loss scaling is not measured. After an error in the optimizer's
        step, the rates are those of before, and the next call works.

        Args:
            batches: As for `before_step`.
            closure: For an optimizer that computes the loss again, as often as it likes: LBFGS, SAM. Gradients of the
                batch have to be there all the same. What it makes of gradients is treated as they were.
        """
        accumulation = getattr(self._optimizer, "gradient_state", None)
        micro_batches = check_batches(batches)
        self._forget_dropped()
        for batch in micro_batches:
            self._collected.add(batch, batch)
        if accumulation is not None and not accumulation.sync_gradients:
            self._watch_gradient()
            return
        self.before_step(*self._collected.take())

        def and_prepare() -> Any:
            loss = closure() if closure else None
            self.gradients_made_anew()
            return loss

        try:
            self._optimizer.step(*(() if closure is None else (and_prepare,)))
        except BaseException:
            self.abandon_step()
            raise
        self.after_step(skipped=getattr(self._optimizer, "step_was_skipped", False))

    def _forget_dropped(self) -> None:
        """Forget kept micro-batches whose gradients are gone: a loop that skips a step drops them by `zero_grad()`."""
        watch, self._gradient_watch = self._gradient_watch, None
        if watch is not None and watch.end():
            self._collected.take()

    def _watch_gradient(self) -> None:
        parameters = (p for name in self.partition for p in self.partition[name] if p.grad is not None)
        parameter = next(parameters, None)
        self._gradient_watch = None if parameter is None else GradientWatch(parameter)

    def summary(self) -> dict[str, float]:
        """The last measurement as one flat record, for a log or a progress line: only what there is, all finite.

        Returns:
            `kappa` and `smoothed_kappa` (with several encoders also those of each, as `kappa/<encoder>`), and for every
            module `drift` in nats, `lr`, and, while it starves, the step `starving` since which it does. A module that
            had no gradient at the last measurement has no `drift` and no `kappa`.
        """
        record = {"kappa": self.kappa, "smoothed_kappa": self.smoothed_kappa}
        if len(self._windows) > 1:
            record.update({f"kappa/{name}": kappa for name, kappa in self.kappas.items()})
            record.update({f"smoothed_kappa/{name}": kappa for name, kappa in self.smoothed_kappas.items()})
        for kind, values in (("drift", self.drift), ("lr", self._rates), ("starving", self.starving)):
            record.update({f"{kind}/{name}": value for name, value in values.items()})
        return {name: float(value) for name, value in record.items() if math.isfinite(value)}

    def metrics(self) -> dict[str, float | None]:
        """One flat record of the last step, for a log; None where nothing was measured at this step.

        Returns:
            `kappa`, `smoothed_kappa` (with several encoders also those of each), and for every module `drift` and
            `noise_floor` in nats, `drift_scale` (steps that the drift was taken over), `starving` (since which step),
            `lr`, `h` (Eq. 6), and the L2 norms over all its parameters `grad_norm` (of the loss gradient that
            `before_step` found, so clipped where the loop clips), `step_norm` (of theta_{t+1} - theta_t, regulariser
            included) and `theta_norm` (before the step).
        """
        measured = self._measurement if self._measured_now else None
        readings, h = (measured.readings, measured.h) if measured else ({}, {})
        record: dict[str, float | None] = {
            "kappa": _finite(self.kappa) if self._measured_now else None,
            "smoothed_kappa": _finite(self.smoothed_kappa),
        }
        if len(self._windows) > 1:
            record.update({f"kappa/{n}": _finite(k) if self._measured_now else None for n, k in self.kappas.items()})
            record.update({f"smoothed_kappa/{n}": _finite(k) for n, k in self.smoothed_kappas.items()})
        starving = self.starving
        for name in self.partition:
            reading = readings.get(name)
            record[f"drift/{name}"] = _finite(reading.drift) if reading else None
            record[f"drift_scale/{name}"] = reading.scale if reading else None
            record[f"noise_floor/{name}"] = _finite(reading.floor) if reading else None
            record[f"starving/{name}"] = starving.get(name)
            record[f"lr/{name}"] = _finite(self._rates[name])
            record[f"grad_norm/{name}"] = self._norms.get(f"grad_norm/{name}")
            record[f"step_norm/{name}"] = self._norms.get(f"step_norm/{name}")
            record[f"theta_norm/{name}"] = self._norms.get(f"theta_norm/{name}")
            record[f"h/{name}"] = h.get(name)
        return record

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {
            "steps": self._steps,
            "owed": sorted(self._owed),
            "windows": {name: window.state_dict() for name, window in self._windows.items()},
            "displacement": self._displacement.state_dict(),
            "probe_samples": self._probe_samples,
            **self._alarms.state_dict(),
            "measurement": self._measurement and asdict(self._measurement),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`.

        Raises:
            ConfigError: It is damaged, or of other modules, another method, or an optimizer with other groups.
        """
        with reading_state():
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        saved = set(state["windows"])
        if saved != set(self._windows):
            raise ConfigError(
                f"the state is of the encoders {', '.join(sorted(saved))}, and the model has "
                f"{', '.join(self._windows)}: resume with the same model and partition"
            )
        steps, samples = state["steps"], state["probe_samples"]
        if type(steps) is not int or steps < 0 or not (samples is None or (type(samples) is int and samples > 0)):
            raise ValueError(f"steps={steps!r}, probe_samples={samples!r}")
        measurement = state["measurement"]
        self._measurement = measurement and Measurement.of(**measurement)
        self._alarms.load_state_dict(state)
        for name, window in self._windows.items():
            window.load_state_dict(state["windows"][name])
        self._displacement.load_state_dict(state["displacement"])
        self._steps, self._owed, self._probe_samples = steps, set(state["owed"]), samples

    def _step_begins(self, optimizer: Any) -> None:
        """Called when the optimizer's step begins; of a step that calls its base class's, for both."""
        found = getattr(optimizer, "found_inf", None)  # which a scaler gives to a fused optimizer, for it to skip
        self._overflowed = found is not None and bool(found)
        self._depth += 1
        if self._depth == 1:
            self._check_untouched()

    def _step_ended(self, optimizer: Any) -> None:
        """Called when the optimizer's step has raised no error."""
        del optimizer
        self._depth = max(0, self._depth - 1)  # zero where a hook of this step has called `after_step` already

    def _end_broken_step(self) -> None:
        """Put right what a step left that an error has ended and the loop has gone on from.

        Raises:
            RuntimeError: No step was begun, or one was ended: `after_step` is missing.
        """
        if not self._in_step:
            return
        broken = self._depth > 0
        self._abandon(late=True)
        if not broken:
            raise RuntimeError("before_step() was called twice; call after_step() once optimizer.step() is done")

    def _abandon(self, late: bool = False) -> None:
        """Put back what `before_step` changed, and forget it; `late` is as for `abandon_step`."""
        self._in_step, self._depth = False, 0
        self._measured_now, self._probe, self._norms = False, None, {}
        self._owed = self._owed_before
        if self._unscaled:
            self._unscaled = False
            scale_again(self._optimizer, late)

    def _check_untouched(self) -> None:
        """Between `before_step` and the optimizer's step no parameter may change: that would count as the step's.

        Looked for where it would: at measured steps, and at all with a regulariser. In-place changes are seen, those
        through `.data` are not, for which all values would have to be compared.
        """
        if not self._in_step or not self._versions:
            return
        for module in self.partition:
            for name, parameter in self.partition.named_parameters(module).items():
                if parameter._version != self._versions[id(parameter)]:
                    raise RuntimeError(
                        f"parameter {name!r} changed between before_step() and optimizer.step(); change it before "
                        "before_step() or after after_step()"
                    )

    def _decide_to_measure(self) -> None:
        """Whether this step is measured, and which modules are idle: no gradient arrives, as from text to an encoder.

        Every module owes a measurement from a step on that is due until the first step at which it has a gradient, or
        else batches of one kind that come in step with `probe_interval` would hide a module for ever.
        """
        interval = self.config.probe_interval
        due = interval is not None and (self._steps % interval == 0 or self._starting())
        self._owed_before, self._owed = self._owed, self._owed | set(self.partition if due else ())
        self._measured_now = due or bool(self._with_gradient(self._owed))
        self._norms = {}
        if self._measured_now:
            self._groups.check_unchanged()
            self.partition.check_unchanged(self._forward.model)
            self._idle = set(self.partition) - self._with_gradient(self.partition)
            self._norms = self._parameter_norms()

    def _before(self, batches: list[Batch]) -> None:
        """What happens before the step; last comes the probe, which keeps the values that the step overwrites."""
        if not self._measured_now:
            return
        try:
            with self._sparing_memory():
                self._probe = DriftProbe(self._forward, self.partition, batches, self._shift, self._answers)
        except NoAnswerError as error:  # on all ranks alike
            self._measured_now, self._norms = False, {}
            self._alarms.unanswered(self._steps + 1, error, before_the_first=self._measurement is None)

    def _samples_of(self, batches: list[Batch]) -> list[Batch]:
        """What is looked at of a step's micro-batches."""
        return take_samples(batches, self._probe_samples, self._shift, self._forward.placeholder_tokens)

    def _after(self, skipped: bool) -> None:
        """What happens after the step and before the measurement."""

    def _counted(self) -> None:
        """What happens once a step was made, and measured if it was its turn."""

    def _starting(self) -> bool:
        """Whether a measurement is wanted out of turn."""
        return False

    def _parameter_norms(self) -> dict[str, float]:
        norms = {}
        for name in self.partition:
            parameters = self.partition[name]
            gradients = [p.grad for p in parameters if p.grad is not None]
            norms[f"grad_norm/{name}"] = _norm(gradients) if gradients else 0.0
            norms[f"theta_norm/{name}"] = _norm([p.detach() for p in parameters])
        return norms

    def _with_gradient(self, names: Iterable[str]) -> set[str]:
        """Those of some modules at which a gradient arrives, on any rank; every rank asks for the same modules."""
        asked = sorted(names)
        if not asked:
            return set()
        arrives = [float(any(map(_is_not_zero, self.partition[name]))) for name in asked]
        ranks = sum_over_ranks(arrives, self.partition[asked[0]][0].device)
        return {name for name, count in zip(asked, ranks, strict=True) if count}

    def _measure(self, probe: DriftProbe) -> None:
        moving = [name for name in self.partition if name not in self._idle]
        self._measurement = probe.measure(self._displacement, moving or self.partition)
        self._norms.update({f"step_norm/{name}": norm for name, norm in probe.step_norms().items()})
        drift = self._measurement.drift
        for name, window in self._windows.items():
            window.push(drift.get(LANGUAGE_MODEL, math.nan), drift.get(name, math.nan))
        self._owed = self._owed & self._idle
        self._look_for_faults(self._measurement)

    @contextlib.contextmanager
    def _sparing_memory(self) -> Iterator[None]:
        """Leave a measurement out that runs out of memory, and take half the samples from then on.

        Several processes would have to agree on it, so with them the error is raised.
        """
        try:
            yield
            return
        except (RuntimeError, MemoryError) as error:
            if several_ranks() or not is_out_of_memory(error):
                raise
        release_memory()
        samples = min(self._looked_at, self._probe_samples or self._looked_at)
        self._probe_samples = max(1, samples // 2)
        self._probe, self._measured_now, self._norms = None, False, {}
        if samples == 1:
            self._owed = set()  # made up for at no other step than the next that is due
        self._alarms.out_of_memory(self._steps + 1, samples, self._probe_samples)

    def _look_for_faults(self, found: Measurement) -> None:
        moved = {name for name in self.partition if self._norms[f"step_norm/{name}"] > 0}
        self._alarms.measured(self._steps + 1, found, self._idle, moved, rates=self._rates, norms=self._norms)
        self._alarms.resting(self._steps + 1, self._rates, self._multipliers)
        trained = {name: self._multipliers[name] for name in self.partition if self._rates[name] != 0}  # or NaN
        self._alarms.learning(self._steps + 1, found.drift, trained)


@contextlib.contextmanager
def reading_state() -> Iterator[None]:
    """Say in one line that a state cannot be taken over.

    Raises:
        ConfigError: What is inside has raised an error that damaged values cause.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the saved state of CoMMIT is damaged or of another version ({name_and_line(error)}); resume from an "
            "earlier checkpoint, or begin a new training from the weights"
        ) from None


def _is_not_zero(parameter: nn.Parameter) -> bool:
    """Whether a parameter has a gradient; under FSDP2, in this rank's part of it."""
    return parameter.grad is not None and bool(local(parameter.grad).any())


def _norm(tensors: list[Tensor]) -> float:
    return float(whole(torch.nn.utils.get_total_norm(tensors)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
