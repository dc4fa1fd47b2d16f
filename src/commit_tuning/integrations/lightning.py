"""CoMMIT in Lightning: a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from commit_tuning.config import CoMMITConfig
from commit_tuning.coordinator import Coordinator
from commit_tuning.distributed import refuse_unsupported
from commit_tuning.errors import UserError
from commit_tuning.integrations.steps import StepHooks
from commit_tuning.measure.forward import Batch
from commit_tuning.partition.discover import partition_model
from commit_tuning.partition.modules import ModulePartition

_STARTED = "started"


def _attribute_model(module: LightningModule) -> nn.Module:
    model = getattr(module, "model", None)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{type(module).__name__} has no module `model`; say where its model is with "
            "CoMMITCallback(model=lambda module: module.my_model)"
        )
    return model


class CoMMITCallback(Callback):  # type: ignore[misc]
    """Measures, and coordinates the learning rates of, a model inside a `LightningModule` (automatic optimization).

    Args:
        commit: Method and settings; `CoMMITConfig()` by default.
        model: Finds the model in the `LightningModule`; its attribute `model` by default.
        inputs: Makes the model's keyword arguments from what the data loader gives; they need `labels`.
        partition: Makes the partition of a model; `partition_model` by default.

    Raises:
        UserError: When training begins: there are several optimizers, optimization is manual, the model is not found,
            the optimizer's rates cannot be controlled, or a checkpoint to resume from was made without CoMMIT or with
            another method.

    Example:
        One line of a script changes::

            trainer = Trainer(callbacks=[CoMMITCallback()])
    """

    def __init__(
        self,
        commit: CoMMITConfig | None = None,
        model: Callable[[LightningModule], nn.Module] = _attribute_model,
        inputs: Callable[[Any], Batch] = lambda batch: batch,
        partition: Callable[[nn.Module], ModulePartition] = partition_model,
    ) -> None:
        self._model, self._inputs = model, inputs
        self._step_hooks = StepHooks(commit or CoMMITConfig(), partition)

    @property
    def coordinator(self) -> Coordinator | None:
        """What measures and coordinates, from the beginning of training on."""
        return self._step_hooks.coordinator

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a training before this one, whose state a checkpoint of Lightning's tuners would hold."""
        del trainer, pl_module
        if stage == TrainerFn.FITTING:
            self._step_hooks.forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured, before a checkpoint is loaded."""
        found = f"{len(trainer.optimizers)} optimizers" if pl_module.automatic_optimization else "manual optimization"
        if found != "1 optimizers":
            raise UserError(
                f"CoMMITCallback needs automatic optimization with one optimizer, and {type(pl_module).__name__} has "
                f"{found}; call Coordinator.step in training_step instead"
            )
        refuse_unsupported(self._model(pl_module), trainer.optimizers[0])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is prepared: watch the optimizer."""
        self._step_hooks.begin(self._model(pl_module), trainer.optimizers[0], trainer.precision_plugin.forward_context)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the micro-batch."""
        del pl_module
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step_hooks.clear()
        self._step_hooks.add(self._inputs(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the last measurement."""
        del trainer, outputs, batch, batch_idx
        if self.coordinator is not None:
            pl_module.log_dict(self.coordinator.summary())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizer as it was before the step, for a checkpoint that is written now."""
        del trainer, pl_module, exception
        self._step_hooks.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimizer alone."""
        del trainer, pl_module
        self._step_hooks.end()

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs; Lightning keeps it in its checkpoints.

        A checkpoint from before training, as Lightning's tuners make one, says that there is nothing to take over.
        """
        return {_STARTED: False} if self.coordinator is None else {_STARTED: True, **self.coordinator.state_dict()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over a `state_dict()`, once training starts; validation, too, loads checkpoints."""
        del pl_module
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = checkpoint["callbacks"].get(self.state_key)
        if not state:
            raise UserError(
                f"{trainer.ckpt_path} has no state of CoMMIT, so a trainer without it made this checkpoint: resume "
                "with that one, or begin a new training from the checkpoint's weights"
            )
        self._step_hooks.resume(state if state[_STARTED] else None)
