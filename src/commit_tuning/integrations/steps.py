"""What several trainers need: to measure the optimizer's steps in a loop that is not ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from commit_tuning.config import CoMMITConfig
from commit_tuning.control.step_watch import calls_hooks, inner_optimizer
from commit_tuning.coordinator import Coordinator
from commit_tuning.distributed import refuse_unsupported
from commit_tuning.errors import BatchError, ConfigError
from commit_tuning.measure.batches import Collector
from commit_tuning.measure.forward import Batch
from commit_tuning.partition.discover import unwrap
from commit_tuning.partition.modules import ModulePartition


class StepHooks:
    """Collects the micro-batches of a step, and calls the coordinator before and after the optimizer takes it.

    Args:
        config: Method and settings.
        partition: Makes the partition of a model.

    Attributes:
        coordinator: What measures and coordinates, from `begin` on.
    """

    def __init__(self, config: CoMMITConfig, partition: Callable[[nn.Module], ModulePartition]) -> None:
        self.coordinator: Coordinator | None = None
        self._config, self._partition = config, partition
        self._resumed: dict[str, Any] | None = None
        self._handles: list[Any] = []
        self._collected: Collector[tuple[Batch, dict[str, Any]]] = Collector(config.probe.samples)
        self._depth = 0  # of calls to the optimizer's step, which may call that of the class that it derives from

    @property
    def resumes(self) -> bool:
        """Whether training is to go on from a state."""
        return self._resumed is not None

    def resume(self, state: dict[str, Any] | None) -> None:
        """Take over a coordinator's `state_dict()`, once training begins."""
        self._resumed = state

    def begin(self, model: nn.Module, optimizer: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        """Model, optimizer and scheduler are what they will be: from here on the optimizer's steps are measured.

        Args:
            model: The model.
            optimizer: Its optimizer, in Accelerate's wrapper or not.
            autocast: Opens the context in which the trainer runs the model.

        Raises:
            ConfigError: The optimizer's steps cannot be seen.
        """
        resumed = self._resumed
        self.end()  # of a training that was broken off
        refuse_unsupported(model, optimizer)
        inner = inner_optimizer(optimizer)
        if not calls_hooks(inner):
            raise ConfigError(
                f"{type(inner).__name__} calls no hooks of torch.optim.Optimizer, by which its steps would be seen; "
                "give the trainer an optimizer of torch's kind, or call Coordinator.step in a loop of your own"
            )
        self.coordinator = Coordinator(model, optimizer, self._config, self._partition(model))
        if resumed is not None:
            self.coordinator.load_state_dict(resumed)
        self._autocast = autocast
        parameters = inspect.signature(unwrap(model).forward).parameters
        self._named = {"labels", *parameters}
        self._takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self._handles = [inner.register_step_pre_hook(self._before), inner.register_step_post_hook(self._after)]

    def forget(self) -> None:
        """Leave the optimizer alone, and keep nothing of the training that was."""
        self.end()
        self.coordinator = None

    def end(self) -> None:
        """Leave the optimizer alone, as it was before a step that an error has ended."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._resumed, self._depth = [], None, 0
        self._collected.take()
        if self.coordinator is not None:
            self.coordinator.abandon_step(late=True)

    def clear(self) -> None:
        """A new step begins; forget what one left that was skipped, or whose optimizer raised an error."""
        kept, _ = self._collected.take()
        self._depth = 0
        if kept and self.coordinator is not None:
            self.coordinator.skipped_step()

    def add(self, batch: Batch) -> None:
        """Keep a micro-batch, and what it holds now, unless there are enough samples."""
        self._collected.add(batch, (batch, dict(batch)))

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The optimizer is called, with the gradients there or with a closure that makes, and clips, them.

        An optimizer may call its closure several times, as SAM and LBFGS do. The step starts where the first call is.
        """
        self._depth += 1
        closure = kwargs.get("closure") or next(iter(args[1:]), None)
        if self._depth > 1:
            return None
        if closure is None:
            self._prepare()
            return None
        first = iter([True])

        def and_prepare() -> Any:
            loss = closure()
            if next(first, False):
                self._prepare()
            elif self.coordinator is not None:
                self.coordinator.gradients_made_anew()
            return loss

        return (optimizer,), {**kwargs, "closure": and_prepare}

    def _prepare(self) -> None:
        """The gradients are there: prepare the measurement, set the learning rates."""
        if self.coordinator is not None:
            kept, target_tokens = self._collected.take()
            batches = [self._for_the_model(*batch) for batch in kept]
            if not batches:
                raise BatchError(
                    "the optimizer steps and no batch was seen: a `training_step` of your own has to call "
                    "self._prepare_inputs(inputs), as Trainer's does"
                )
            with self._autocast():
                self.coordinator.before_step(batches, target_tokens)

    def _after(self, *_: Any) -> None:
        self._depth -= 1
        if self.coordinator is not None and self._depth == 0:
            with self._autocast():
                self.coordinator.after_step()

    def _for_the_model(self, now: Batch, then: dict[str, Any]) -> dict[str, Any]:
        """A batch less what its trainer keeps for the loss: what the model cannot take, or was taken out since."""
        return {key: value for key, value in then.items() if key in self._named or (self._takes_more and key in now)}
