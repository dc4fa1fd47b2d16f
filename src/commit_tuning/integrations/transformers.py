"""CoMMIT in transformers' `Trainer`, and in any subclass of it.

The trainer's own loop stays as it is. Its inputs are watched for the micro-batches, its optimizer for the step (so that
one skipped under loss scaling is not measured), its log for a place to write, and its checkpoints for a resume.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from commit_tuning.config import CoMMITConfig
from commit_tuning.control.base_rates import set_base_rates
from commit_tuning.coordinator import Coordinator
from commit_tuning.distributed import refuse_unsupported
from commit_tuning.errors import ConfigError, UserError, one_line
from commit_tuning.integrations.steps import StepHooks
from commit_tuning.partition.discover import partition_model, unwrap
from commit_tuning.storage import replacing

STATE = "commit.pt"


class CoMMITTrainerMixin:
    """Puts CoMMIT into a subclass of transformers' `Trainer`: `class MyTrainer(CoMMITTrainerMixin, Trainer)`.

    Args:
        *args: The trainer's own.
        commit: Method and settings; `CoMMITConfig()` by default. `CoMMITConfig(method="constant")` only measures, and
            changes not one bit of the training.
        learning_rates: Base learning rates beside `args.learning_rate`, by name (`vision_lr`, `projector_lr`, and their
            aliases) or by a regular expression on parameter names: see `commit_tuning.control.base_rates.base_rates`.
        partition: Makes the partition of a model; `partition_model` by default.
        **kwargs: The trainer's own.

    Raises:
        UserError: The trainer is one of TRL's that has no labels, such as DPO's and GRPO's.
        UserError: When training begins: the model cannot be partitioned, DeepSpeed owns the optimizer's step, or a
            checkpoint to resume from was made without CoMMIT or with another method, or holds only a part of what is
            trained.

    Example:
        Two lines of a script change::

            from commit_tuning.integrations.transformers import CoMMITTrainer
            trainer = CoMMITTrainer(model=model, args=args, train_dataset=dataset)  # kappa is in the log
    """

    def __init__(
        self,
        *args: Any,
        commit: CoMMITConfig | None = None,
        learning_rates: Mapping[str, float] | None = None,
        partition: Any = partition_model,
        **kwargs: Any,
    ) -> None:
        _refuse_without_labels(type(self))
        self._learning_rates = dict(learning_rates or {})
        self._make_partition = partition
        self._step_hooks = StepHooks(commit or CoMMITConfig(), partition)
        super().__init__(*args, **kwargs)
        self._given_optimizer = self.optimizer is not None  # type: ignore[attr-defined]
        self.add_callback(_Start(self))  # type: ignore[attr-defined]

    @property
    def coordinator(self) -> Coordinator | None:
        """What measures and coordinates, from the beginning of training on."""
        return self._step_hooks.coordinator

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The trainer's own optimizer, its groups split where `learning_rates` asks for it."""
        if self._given_optimizer and self._learning_rates:
            raise ConfigError("learning_rates has no effect on an optimizer of your own; set the rates in its groups")
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)  # type: ignore[misc]
        owner: nn.Module = self.model if model is None else model  # type: ignore[attr-defined]
        refuse_unsupported(owner, optimizer)
        partition = self._make_partition(owner)
        if self._learning_rates:
            set_base_rates(optimizer, owner, partition, self._learning_rates)
        return optimizer

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Leave the optimizer as it was before a step that an error ends, which Trainer may begin anew after."""
        try:
            return super()._inner_training_loop(*args, **kwargs)  # type: ignore[misc]
        except BaseException:
            self._step_hooks.end()
            raise

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Keep the micro-batch for the measurement, when it is one of the training."""
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)  # type: ignore[misc]
        if self.model.training:  # type: ignore[attr-defined]
            self._step_hooks.add(prepared)
        return prepared

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Write kappa, and every module's drift and learning rate, beside the training loss."""
        if self.coordinator is not None and "loss" in logs:
            logs.update(self.coordinator.summary())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._renamed = False
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if self._renamed:
            self._load_renamed(resume_from_checkpoint, self.model if model is None else model)  # type: ignore[attr-defined]

    def _load_best_model(self) -> None:
        self._renamed = False
        super()._load_best_model()  # type: ignore[misc]
        if self._renamed:
            self._load_renamed(self.state.best_model_checkpoint, self.model)  # type: ignore[attr-defined]

    @staticmethod
    def _load_renamed(checkpoint: str, model: nn.Module) -> None:
        model.load_state_dict(type(unwrap(model)).from_pretrained(checkpoint).state_dict())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Note that a checkpoint holds older names than the model: Trainer does not translate (transformers#43701)."""
        self._renamed = bool(load_result.missing_keys and load_result.unexpected_keys)
        if not self._renamed:
            super()._issue_warnings_after_load(load_result)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.coordinator is not None and self.args.should_save:  # type: ignore[attr-defined]
            _save_state(self.coordinator.state_dict(), Path(output_dir, STATE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._step_hooks.resume(_saved_state(Path(checkpoint)))
        try:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise ConfigError(
                f"{checkpoint} is of an optimizer with other parameter groups ({one_line(error)}): resume with the "
                "learning_rates, and with the parameters frozen, that made it"
            ) from None


class _Start(TrainerCallback):  # type: ignore[misc]
    """Says when everything is prepared, and when a new step begins."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        trainer = self._trainer
        _look_for_unsaved(trainer.model, trainer._step_hooks.resumes)
        trainer._step_hooks.begin(trainer.model, trainer.optimizer, trainer.accelerator.autocast)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        self._trainer._step_hooks.clear()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        self._trainer._step_hooks.end()


def _refuse_without_labels(trainer: type) -> None:
    """Refuse a trainer of TRL's whose loss is not that of the labels in a batch: only SFT's is.

    Raises:
        UserError: Names the trainer.
    """
    of_trl = [cls.__name__ for cls in trainer.__mro__ if cls.__module__.partition(".")[0] == "trl"]
    if of_trl and "SFTTrainer" not in of_trl:
        raise UserError(
            f"{of_trl[0]} trains on preferences or on answers that it samples, and drift is measured at the labels of "
            "a batch, which it does not have; use CoMMIT with SFTTrainer"
        )


def _save_state(state: dict[str, Any], path: Path) -> None:
    """Write a state, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _saved_state(checkpoint: Path) -> dict[str, Any] | None:
    """The coordinator's state; None, as Trainer leaves its optimizer, where only the model was saved.

    Raises:
        UserError: The optimizer's state is there and the coordinator's is not, or is damaged.
    """
    path = checkpoint / STATE
    if path.is_file():
        return _load_state(path)
    if any(checkpoint.glob("optimizer*")):
        raise UserError(
            f"{path} does not exist, so a trainer without CoMMIT made this checkpoint: resume with that one, "
            "or begin a new training from the checkpoint's weights"
        )
    warnings.warn(
        f"{checkpoint} holds the model only (save_only_model=True): optimizer and CoMMIT begin anew", stacklevel=2
    )
    return None


def _load_state(path: Path) -> dict[str, Any]:
    """What `_save_state` wrote; nothing in it is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): resume from an earlier checkpoint, or begin a new training "
            "from this one's weights"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state of CoMMIT: resume from an earlier checkpoint")
    return state


def _look_for_unsaved(model: nn.Module, resumes: bool) -> None:
    """Tell of parameters that PEFT leaves out of checkpoints: trained, and neither adapter nor in `modules_to_save`.

    Raises:
        UserError: Training resumes from such a checkpoint.
    """
    adapters: Any = getattr(model, "peft_config", {})
    if not adapters or any(adapter.is_prompt_learning for adapter in adapters.values()):
        return
    from peft import get_peft_model_state_dict

    state = model.state_dict(keep_vars=True)
    kept = [get_peft_model_state_dict(model, state, adapter, save_embedding_layers=False) for adapter in adapters]
    saved = {id(p) for part in kept for p in part.values()}
    prefix = getattr(model.base_model, "prefix", "lora_")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and prefix not in name}
    lost = [name for name, p in trained.items() if id(p) not in saved]
    if lost:
        fault = (
            f"{len(lost)} trained tensors are outside the adapter, and PEFT saves none of them (first: {lost[0]!r}); "
            "name their modules in modules_to_save of the adapter's configuration"
        )
        if resumes:
            raise UserError(f"cannot resume from this checkpoint: {fault}")
        warnings.warn(fault, stacklevel=2)


class CoMMITTrainer(CoMMITTrainerMixin, Trainer):  # type: ignore[misc]
    """transformers' `Trainer` with CoMMIT: see `CoMMITTrainerMixin`."""
