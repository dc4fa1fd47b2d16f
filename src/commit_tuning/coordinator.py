"""The object that a training loop talks to: measured balance turned into learning rates.

One step, in order: `before_step` decides whether it is measured, keeps what the step will overwrite and sets the rates;
whoever trains does the step; `after_step` puts the rates back, measures what the step did, and asks the controller for
the next rates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from commit_tuning.config import CoMMITConfig
from commit_tuning.control.base import LooksAtSteps
from commit_tuning.control.groups import GroupRates
from commit_tuning.control.stability import instability
from commit_tuning.control.step_watch import GradientWatch, StepWatch, scale_again, unscale
from commit_tuning.control.trial import check_control
from commit_tuning.distributed import is_sharded, refuse_unsupported
from commit_tuning.errors import ConfigError, NoTargetError, ShardingError, UserError, name_and_line, warn
from commit_tuning.health.alarms import Alarms
from commit_tuning.measure.balance import Balance
from commit_tuning.measure.batches import Collector, check_batches, count_target_tokens
from commit_tuning.measure.forward import Batch
from commit_tuning.measure.measuring import Meter, Schedule, Step, is_out_of_memory, norms_before, with_gradient
from commit_tuning.measure.probe import Measurement
from commit_tuning.methods import make_controller
from commit_tuning.paper.regularizer import make_effects
from commit_tuning.partition.discover import partition_model
from commit_tuning.partition.modules import ModulePartition

LARGEST_MULTIPLIER = 1e12  # a base rate of 1e-15 is raised to that of an ordinary training by it


class Coordinator:
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
        model: `model(**batch)` returns something with `logits` [batch, length, vocabulary]; a batch holds `labels`,
            -100 where nothing is predicted. transformers models get a fast path.
        optimizer: The optimizer of the loop: any object with `param_groups` and `step`, or a wrapper around such.
        config: Method and settings; `CoMMITConfig()` by default.
        partition: Which parameters are whose; None asks `partition_model(model)`.

    Raises:
        ConfigError: The optimizer's learning rates cannot be controlled: it finds its own rate (Prodigy, DoG), its
            step depends on earlier rates (ASGD, Rprop, schedule-free), or it needs a closure (LBFGS).
        PartitionError: A trainable parameter is in no module, in two, or in no optimizer group; a module has none.
        ShardingError: Parameters are sharded in a way that cannot be measured, or that the method does not know.

    Example:
        A loop with the coordinator in it::

            coordinator = Coordinator(model, optimizer)
            for batch in loader:
                model(**batch).loss.backward()
                coordinator.step(batch)  # optimizer.step(), the measurement, the learning rates
                optimizer.zero_grad()
                print(coordinator.kappa)
    """

    _resumes_any_method: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: CoMMITConfig | None = None,
        partition: ModulePartition | None = None,
    ) -> None:
        refuse_unsupported(model, optimizer)  # before anything is asked of parameters that are not there in full
        self.config = config or CoMMITConfig()
        self.partition = partition or partition_model(model)
        self._refuse_sharded(model)
        self.partition.check(model)
        self._step: Step | None = None  # between before_step and after_step
        self._optimizer = optimizer
        self._collected: Collector[Batch] = Collector(self.config.probe.samples)
        self._gradient_watch: GradientWatch | None = None
        self._watch = StepWatch(optimizer, self._check_parameters, self.abandon_step)
        self._sets_rates = self.config.sets_rates
        self._groups = GroupRates(optimizer, self.partition)  # once whoever watched before has put it right
        if self._sets_rates or self.config.regularizer is not None:
            self._groups.check_rates()
        if self._sets_rates:
            check_control(optimizer, self.partition, scales=self.config.scales_rates)
        self._meter = Meter(model, self.partition, self.config.probe)
        self._schedule = Schedule(self.partition, self.config.interval)
        by_need = self._schedule.need is not None
        self._balance = Balance(self.partition.encoders, self.config.kappa_window, self.config.kappa_estimator, by_need)
        self._alarms = Alarms(self.config)
        self._effects = make_effects(self.config.regularizer, self._meter, self.partition, self._groups)
        self._controller = make_controller(self.config, self.partition)
        self._steps = 0
        self._last = Step(0, rates=self._groups.by_module())
        self._multipliers = self._controller.multipliers(0)
        self._warn_of_settings()

    def _refuse_sharded(self, model: nn.Module) -> None:
        if not is_sharded(model):
            return
        if self.config.regularizer is not None:
            raise ShardingError(
                f"regularizer={self.config.regularizer.name!r} needs gradients of its own, which FSDP2 does not give; "
                "use DDP, or method='commit-clr' without a regularizer"
            )

    def _warn_of_settings(self) -> None:
        if modules := self.partition.low_precision:
            warn(
                f"trained in half precision: {', '.join(modules)}. Updates below a rounding step of a weight are lost, "
                "and kappa sees what is left; keep trained parameters in float32 and use autocast"
            )
        if self.config.coordinated and (fault := instability(self.config)):
            warn(fault)

    @property
    def kappas(self) -> dict[str, float]:
        """Encoder to the balance coefficient of the last measurement (Eq. 4); NaN where a module was not in it."""
        return self._balance.kappas

    @property
    def kappa(self) -> float:
        """The language model's drift over the mean drift of the encoders that moved; NaN where there is none."""
        return self._balance.kappa

    @property
    def smoothed_kappas(self) -> dict[str, float]:
        """Encoder to the moving average of its balance coefficient (Eq. 7); NaN before the first measurement."""
        return self._balance.smoothed_kappas

    @property
    def smoothed_kappa(self) -> float:
        """The harmonic mean of the smoothed kappas that there are, as `kappa` has the encoders' mean below."""
        return self._balance.smoothed_kappa

    @property
    def drift(self) -> dict[str, float]:
        """Module to its drift in nats at the last measurement (Eq. 2-3); a module without a gradient is left out."""
        return self._balance.drift

    @property
    def noise_floor(self) -> dict[str, float]:
        """Module to what rounding alone adds to its drift, in nats, at the last look; empty before the first."""
        return self._balance.noise_floor

    @property
    def learning_rates(self) -> dict[str, float]:
        """Module to the largest learning rate of its parameter groups at the last step."""
        return dict(self._last.rates)

    @property
    def multipliers(self) -> dict[str, float]:
        """Module to the factor on its base learning rate at the next step; 0 leaves the module as it is."""
        return dict(self._multipliers)

    @property
    def starving(self) -> dict[str, int]:
        """Module that learns next to nothing, to the optimizer step (counted from 1) since which it does.

        Its drift is below 1/2500 of another's, or its learning rate below a fiftieth or held back by the controller's
        bound, for `starvation_patience` measurements or more. Under `"trust-region"`, which sets rates by drift, its
        rate says nothing.
        """
        return self._alarms.starvation.starving

    @property
    def probe_reason(self) -> str:
        """Why the next measurement waits as long as it does: what changed at the last one, or since when nothing."""
        need = self._schedule.need
        return need.reason if need else f"probe.interval={self.config.interval}"

    def before_step(self, micro_batches: Batch | Sequence[Batch], target_tokens: int | Tensor | None = None) -> None:
        """Prepare for an optimizer step; call it after the last backward pass, after unscaling and after clipping.

        Gradients whose unscaling is left to Accelerate's optimizer, or to a fused one, are unscaled.

        Args:
            micro_batches: The batch of this step, or the list of its micro-batches.
            target_tokens: How many labels that are not -100 this step's gradient is of, on this process; None
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
        step = Step(self._steps + 1, rates=self._last.rates, unscaled=unscale(self._optimizer))
        self._step = self._last = step
        try:
            step.measured = self._schedule.is_due(self._steps, self._controller.starting, self._groups.schedule)
            if step.measured:
                step.target_tokens = sum(map(count_target_tokens, batches)) if target_tokens is None else target_tokens
                self._look(step)
            looks = step.measured or bool(self._effects)
            if looks:
                self._meter.choose(step, batches)
            if isinstance(self._controller, LooksAtSteps):
                self._controller.before_step()
            for effect in self._effects:
                effect.before(step)
            self._start_probe(step)
            for effect in self._effects:
                effect.started(step)
            step.samples = []
            if self._sets_rates:
                self._set_rates(step)
            step.rates = self._groups.by_module()
            if looks:
                step.remember_parameters(self.partition)
        except BaseException:
            self._abandon(step)
            raise

    def after_step(self, skipped: bool = False) -> None:
        """Measure what the step did; call it after the optimizer's step.

        Args:
            skipped: The optimizer did not step after all, as under loss scaling when a gradient overflows. Nothing is
                measured then, and the step does not count. A fused optimizer, which is called all the same, is seen to
                skip.

        Raises:
            RuntimeError: `before_step` was not called.
        """
        if self._step is None:
            raise RuntimeError("after_step() was called without before_step()")
        step, self._step = self._step, None
        skipped = skipped or self._watch.overflowed
        self._watch.reset()
        if skipped:
            step.leave_out()
            step.close()
            self._schedule.missed()
            self._put_back()
        self._watch.go_last()
        self._alarms.skipped(step.number, skipped)
        if skipped:
            return
        try:
            self._made()
            measurement = self._meter.finish(step)
            self._notice_memory(step)
            if measurement is not None:
                self._schedule.paid(step.idle, measurement, step.in_force)
                self._balance.add(measurement)
                self._look_for_faults(step, measurement)
                self._controller.observe(measurement, step.in_force)
        except BaseException:
            step.measured = False
            raise
        finally:
            step.close()
            self._steps += 1
        if self._controller.settling or self._steps % self.config.lr_update_interval == 0:
            self._multipliers = self._controller.multipliers(self._steps)

    def abandon_step(self, late: bool = False) -> None:
        """Forget a step that an error has ended between `before_step` and `after_step`: it counts as never made.

        Rates, groups and gradients are those that `before_step` found. Call it where the error is caught, before a
        checkpoint is written or a scheduler steps. Without such a step it does nothing.

        Args:
            late: Gradients were made or dropped since: they stay as they are.
        """
        if self._step is not None:
            self._abandon(self._step, late)

    def gradients_made_anew(self) -> None:
        """Do to gradients what `before_step` did; call it after a closure that the optimizer's step calls."""
        for effect in self._effects:
            effect.gradients_made_anew()
        self._groups.step.rest()

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
            had no gradient at the last measurement has no `drift` and no `kappa`. Where measurements are taken by need,
            `probe_interval` is how many steps the next one waits; `probe_reason` says why.
        """
        return {**self._balance.summary(self._last.rates, self.starving), **self._interval()}

    def metrics(self) -> dict[str, float | None]:
        """One flat record of the last step, for a log; None where nothing was measured at this step.

        Returns:
            `kappa`, `smoothed_kappa` (with several encoders also those of each), and for every module `drift` and
            `noise_floor` in nats, `drift_scale` (steps that the drift was taken over), `starving` (since which step),
            `lr`, `h` (Eq. 6), and the L2 norms over all its parameters `grad_norm` (of the loss gradient that
            `before_step` found, so clipped where the loop clips), `step_norm` (of theta_{t+1} - theta_t, regulariser
            included) and `theta_norm` (before the step). `probe_interval` is as for `summary`.
        """
        return {**self._balance.metrics(self.partition, self._last, self.starving), **self._interval()}

    def _interval(self) -> dict[str, float]:
        return {"probe_interval": float(self._schedule.need.interval)} if self._schedule.need else {}

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {
            "steps": self._steps,
            **self._schedule.state_dict(),
            **self._meter.state_dict(),
            **self._balance.state_dict(),
            **self._alarms.state_dict(),
            "previous": None,  # what a regularizer may know of the step before
            **{key: value for effect in self._effects for key, value in effect.state_dict().items()},
            "multipliers": dict(self._multipliers),
            "method": [self.config.method, self.config.controller.name],
            "controller": self._controller.state_dict(),
            "full_rates": self._groups.full_rates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`.

        Raises:
            ConfigError: It is damaged, or of other modules, another method, or an optimizer with other groups.
        """
        with reading_state():
            self._check_state(state)
            self._balance.load_state_dict(state)
            self._alarms.load_state_dict(state)
            self._meter.load_state_dict(state)
            self._schedule.load_state_dict(state)
            for effect in self._effects:
                effect.load_state_dict(state)
            self._steps = state["steps"]
            if not self._resumes_any_method:
                self._controller.load_state_dict(state["controller"])
                self._groups.full_rates = list(state["full_rates"])
                self._multipliers = dict(state["multipliers"])

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that is not of this training, or that no training can have led to."""
        if not self._resumes_any_method:
            self._check_control(state)
        encoders = set(state["windows"])
        if encoders != set(self.partition.encoders):
            raise ConfigError(
                f"the state is of the encoders {', '.join(sorted(encoders))}, and the model has "
                f"{', '.join(self.partition.encoders)}: resume with the same model and partition"
            )
        steps, samples = state["steps"], state["probe_samples"]
        if type(steps) is not int or steps < 0 or not (samples is None or (type(samples) is int and samples > 0)):
            raise ValueError(f"steps={steps!r}, probe_samples={samples!r}")

    def _check_control(self, state: Mapping[str, Any]) -> None:
        """Refuse a state whose rates were set in another way, or cannot have been set."""
        saved, own = list(state["method"]), [self.config.method, self.config.controller.name]
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

    def _look(self, step: Step) -> None:
        """Find what a measured step has to know of the modules before it."""
        self._groups.check_unchanged()
        self.partition.check_unchanged(self._meter.forward.model)
        step.idle = set(self.partition) - with_gradient(self.partition, self.partition)
        step.norms = norms_before(self.partition)

    def _start_probe(self, step: Step) -> None:
        if not step.measured:
            return
        try:
            self._meter.start(step)
            self._notice_memory(step)
        except NoTargetError as error:  # on all ranks alike
            step.leave_out()
            self._alarms.unanswered(step.number, error, before_the_first=self._balance.measurement is None)

    def _notice_memory(self, step: Step) -> None:
        """Say it where a measurement ran out of memory."""
        if step.too_large is None:
            return
        (samples, fewer), step.too_large = step.too_large, None
        if samples == 1:
            self._schedule.give_up()
        self._alarms.out_of_memory(step.number, samples, fewer)

    def _set_rates(self, step: Step) -> None:
        if step.measured:
            schedule = self._groups.schedule()
            step.in_force = {name: factor * schedule[name] for name, factor in self._multipliers.items()}
        self._groups.step.scale(self._multipliers)

    def _made(self) -> None:
        """Take over what is only so if the step was made."""
        try:
            if isinstance(self._controller, LooksAtSteps):
                self._controller.after_step()
            for effect in self._effects:
                effect.after()
        finally:
            self._put_back()

    def _put_back(self) -> None:
        for effect in self._effects:
            effect.forget()
        self._groups.step.restore()

    def _end_broken_step(self) -> None:
        """Put right what a step left that an error has ended and the loop has gone on from.

        Raises:
            RuntimeError: No step was begun, or one was ended: `after_step` is missing.
        """
        if self._step is None:
            return
        broken = self._watch.inside
        self._abandon(self._step, late=True)
        if not broken:
            raise RuntimeError("before_step() was called twice; call after_step() once optimizer.step() is done")

    def _abandon(self, step: Step, late: bool = False) -> None:
        """Put back what `before_step` changed, and forget it; `late` is as for `abandon_step`."""
        self._step = None
        self._watch.reset()
        step.leave_out()
        step.close()
        self._schedule.missed()
        try:
            for effect in self._effects:
                effect.forget(undo=not late)
            self._groups.step.restore(gradients=not late)
        finally:
            if step.unscaled:
                step.unscaled = False
                scale_again(self._optimizer, late)

    def _check_parameters(self) -> None:
        """Between `before_step` and the optimizer's step no parameter may change: that would count as the step's."""
        if self._step is not None:
            self._step.check_parameters(self.partition)

    def _look_for_faults(self, step: Step, found: Measurement) -> None:
        moved = {name for name in self.partition if step.norms[f"step_norm/{name}"] > 0}
        self._alarms.measured(step.number, found, step.idle, moved, rates=step.rates, norms=step.norms)
        self._alarms.resting(step.number, step.rates, self._multipliers)
        trained = {name: self._multipliers[name] for name in self.partition if step.rates[name] != 0}  # or NaN
        self._alarms.learning(step.number, found.drift, trained)


class BalanceMonitor(Coordinator):
    """Measures the balance of learning and changes nothing: neither the training trajectory nor the optimizer.

    It is a `Coordinator` of method `"constant"`, which goes on from the state of any method.

    Args:
        model: As for `Coordinator`.
        optimizer: As for `Coordinator`.
        config: Settings; only those of the measurement matter here.
        partition: As for `Coordinator`.

    Raises:
        PartitionError: As for `Coordinator`.
        ShardingError: As for `Coordinator`.
    """

    _resumes_any_method: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: CoMMITConfig | None = None,
        partition: ModulePartition | None = None,
    ) -> None:
        measuring = replace(config or CoMMITConfig(), method="constant", regularizer=None)
        super().__init__(model, optimizer, measuring, partition)


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
