"""The training loop of a run: its steps, and their checkpoints."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from commit_tuning.coordinator import Coordinator
from commit_tuning.data.readers.base import Skipped
from commit_tuning.errors import UserError
from commit_tuning.partition.discover import partition_model
from commit_tuning.partition.modules import ModulePartition
from commit_tuning.processes import HeldBack, StoppedError
from commit_tuning.storage import append_text, explained, sync
from commit_tuning.train.checkpoint import Checkpoints, DamagedCheckpointError, State, newest
from commit_tuning.train.dataset import Questions, chunks, data_order
from commit_tuning.train.model_setup import precision
from commit_tuning.train.optimizers import build_optimizer, found_rates, show_evaluated
from commit_tuning.train.progress import Progress, Stopwatch
from commit_tuning.train.recipe.schema import Recipe, Train
from commit_tuning.train.record import HISTORY, RunFailedError, json_line

_FINAL_STEPS = 20
_AHEAD = 6  # steps whose questions are encoded together, which takes less time than one by one


class Training:
    """A model in training with everything that a step changes; all of it is in `state_dict`.

    Args:
        model: As `build_model` makes it.
        partition: Its modules.
        recipe: The run's.
        folder: The run's, where it leaves its history.

    Attributes:
        steps: Optimizer steps made.
        stepping: Wall time of the steps, batches and measurements included.
        measuring: Wall time of measuring, control and regulariser.
        earlier_seconds: Of `stepping`, what passed before the checkpoint from which this process goes on.
    """

    def __init__(self, model: nn.Module, partition: ModulePartition, recipe: Recipe, folder: Path) -> None:
        self.model, self.recipe, self.settings, self.folder = model, recipe, recipe.train, folder
        self.optimizer = build_optimizer(partition, self.settings)
        self.coordinator = Coordinator(model, self.optimizer, recipe.commit_config(), partition=partition)
        self._scheduler = build_scheduler(self.optimizer, self.settings)
        self._trainable = [parameter for module in partition.names for parameter in partition[module]]
        self._running = partial(precision, recipe.model, self.settings.device)
        self.steps, self._lowest = 0, math.inf
        self._losses: deque[float] = deque(maxlen=_FINAL_STEPS)
        self.stepping, self.measuring, self.earlier_seconds = Stopwatch(), Stopwatch(), 0.0

    def advance(self, micro_batches: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Make one optimizer step; returns its line in the history.

        Raises:
            RunFailedError: The loss is not finite.
        """
        loss = accumulate_gradients(self.model, micro_batches, self._running)
        if not math.isfinite(loss):
            raise RunFailedError(not_finite(self.steps + 1, loss, self.recipe, self.folder))
        norm = clip_gradients(self._trainable, self.settings.max_grad_norm)
        self._lowest = min([self._lowest, *filter(None, self.coordinator.multipliers.values())])  # zero is at rest
        with self.measuring, self._running():
            self.coordinator.before_step(micro_batches)
        self.optimizer.step()
        with self.measuring, self._running():
            self.coordinator.after_step()
        self.steps += 1
        self._losses.append(loss)
        found = found_rates(self.optimizer, self.coordinator.learning_rates)
        row = {"step": self.steps, "loss": loss, "grad_norm": norm, **self.coordinator.metrics(), **found}
        self._scheduler.step()
        self.optimizer.zero_grad()
        return row

    def metrics(self) -> dict[str, Any]:
        """What the record tells of the training: its last losses, its lowest multiplier, who starves, what it cost."""
        meaningless = math.isinf(self._lowest) or self.coordinator.config.sets_drift
        return {
            "overhead": self.measuring.seconds / (self.stepping.seconds - self.measuring.seconds),
            "train_loss": sum(self._losses) / len(self._losses),
            "lowest_multiplier": None if meaningless else self._lowest,
            "starving": self.coordinator.starving,
        }

    def state_dict(self) -> State:
        """What an exact resume needs."""
        return {
            "steps": self.steps,
            "losses": list(self._losses),
            "lowest": self._lowest,
            "seconds": [self.stepping.seconds, self.measuring.seconds],
            "weights": trained_tensors(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "coordinator": self.coordinator.state_dict(),
            "random": _random_state(self.settings.device),
        }

    def load_state_dict(self, state: State) -> None:
        """Take over a `state_dict()`."""
        self.steps, self._lowest = state["steps"], state["lowest"]
        self._losses.extend(state["losses"])
        self.stepping.seconds, self.measuring.seconds = state["seconds"]
        self.earlier_seconds = self.stepping.seconds
        load_tensors(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.coordinator.load_state_dict(state["coordinator"])
        _set_random_state(self.settings.device, state["random"])


def usable_checkpoint(checkpoints: Checkpoints, progress: Progress) -> State | None:
    """The newest checkpoint that is whole and whose steps are all in the history; None without one.

    Raises:
        UserError: It is of another run.
    """
    path = checkpoints.run / HISTORY

    def check(state: State) -> None:
        checkpoints.refuse_another(state)
        if _digest(path, state["history"]["bytes"]) != state["history"]:
            raise DamagedCheckpointError(f"{HISTORY} does not begin with its {state['steps']} steps")

    return newest(checkpoints.run, telling(progress), check)


def resume(training: Training, questions: dict[str, Questions], state: State, progress: Progress) -> None:
    """Take over a checkpoint, and cut the history to its length."""
    training.load_state_dict(state)
    path = training.folder / HISTORY
    with explained(path):
        os.truncate(path, state["history"]["bytes"])
    for split, entries in state["skipped"].items():
        for entry in entries:
            questions[split].skipped.note(Skipped(Path(entry["path"]), entry["reason"], entry["line"]))
    progress("training", training.steps, training.settings.steps, "goes on from the checkpoint")


def train_steps(
    training: Training, questions: dict[str, Questions], checkpoints: Checkpoints, progress: Progress
) -> None:
    """Make the steps that are missing; each leaves a line of history.

    Raises:
        RunFailedError: The loss is not finite.
        StoppedError: SIGTERM or Ctrl-C came; the state after the last step is saved.
        UserError: Nothing can be written.
    """
    total, path = training.settings.steps, training.folder / HISTORY
    batches = step_batches(questions["train"], training.settings, training.steps)
    training.model.train()
    with HeldBack() as signals:
        while training.steps < total:
            with training.stepping:
                row = training.advance(next(batches))
            append_text(path, json_line(row))
            starving = starvation_note(training.coordinator.starving)
            progress("training", training.steps, total, f"loss {row['loss']:.3f}{starving}")
            if signals.number is not None or checkpoints.due(training.steps, total):
                with explained(path):
                    sync(path)
                beside = {"history": _digest(path), "skipped": _skipped(questions)}
                checkpoints.save(training.steps, training.state_dict() | beside)
            if signals.number is not None:
                advice = f"the same command goes on after step {training.steps} of {total}, which is saved"
                raise StoppedError(signals.number, advice)


def build_scheduler(optimizer: torch.optim.Optimizer, settings: Train) -> Any:
    """The recipe's schedule of the base learning rates."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler
    return get_scheduler(name, optimizer, settings.warmup_steps, settings.steps)


def starvation_note(starving: dict[str, int]) -> str:
    """Which module starves and since which step, for the progress line; nothing where none does."""
    return "".join(f", {module} starves since step {since}" for module, since in starving.items())


def step_batches(questions: Questions, settings: Train, start: int = 0) -> Iterator[list[dict[str, Tensor]]]:
    """Endless optimizer steps, each a list of collated micro-batches; those before `start` are not even decoded."""
    size = settings.micro_batch_size or settings.batch_size
    order, left = (
        islice(data_order(len(questions), settings.batch_size, settings.seed), start, None),
        settings.steps - start,
    )
    while True:
        soon = list(islice(order, max(1, min(_AHEAD, left))))
        left -= len(soon)
        questions.expect([index for indices in soon for index in indices])
        for indices in soon:
            yield [questions.training(part) for part in chunks(indices, size)]


def refuse_large_batch(questions: Questions, settings: Train) -> None:
    """Make sure that no step would take a question twice.

    Raises:
        UserError: A batch is larger than the split.
    """
    if settings.batch_size > len(questions):
        raise UserError(
            f"train.batch_size is {settings.batch_size}, and there are {len(questions)} training questions; take a "
            "smaller batch, or more questions"
        )


def questions_seen(samples: int, settings: Train) -> list[int]:
    """Positions of the training questions that a run sees, each once, in the order of their first appearance."""
    order = data_order(samples, settings.batch_size, settings.seed)
    return list(dict.fromkeys(index for _ in range(settings.steps) for index in next(order)))


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> float:
    """Scale the gradients down to an L2 norm of `limit` together, if there is a limit; returns the norm they had."""
    if limit is None:
        return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    return float(nn.utils.clip_grad_norm_(parameters, limit))


def accumulate_gradients(
    model: nn.Module,
    micro_batches: list[dict[str, Tensor]],
    running: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Add the gradients of the step's loss: the mean over all answer tokens of all micro-batches, as transformers does.

    Args:
        model: The model.
        micro_batches: With labels.
        running: Opens the context of a forward pass, such as autocast.

    Returns:
        The loss, in nats per answer token.
    """
    tokens = [int((batch["labels"][:, 1:] != -100).sum()) for batch in micro_batches]
    total = 0.0
    for batch, count in zip(micro_batches, tokens, strict=True):
        with running():
            loss = model(**batch).loss * (count / sum(tokens))
        loss.backward()
        total += float(loss.detach())
    return total


def not_finite(step: int, loss: float, recipe: Recipe, folder: Path) -> str:
    """What to say of a loss that is not finite: where it was, and which setting helps."""
    rates = " and ".join(f"{rate:g}" for rate in sorted(set(recipe.train.rates.values())))
    lower = "commit.controller.drift_target" if recipe.commit_config().sets_drift else "train.learning_rate"
    return (
        f"the loss is {loss} at step {step} of {recipe.train.steps} (learning rate {rates}, {folder}); "
        f"lower {lower}, or set train.max_grad_norm"
    )


def _digest(path: Path, length: int | None = None) -> dict[str, Any]:
    """How long the beginning of a file is, all of it by default, and its SHA-256."""
    content = path.read_bytes()[:length] if path.is_file() else b""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _skipped(questions: dict[str, Questions]) -> dict[str, list[dict[str, object]]]:
    return {split: [entry.to_dict() for entry in asked.skipped] for split, asked in questions.items()}


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training may change in a model, by name: parameters that train, and buffers such as batch norm's.

    Integers in more than one dimension are left out: those are packed weights that stay fixed.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return trained | {n: b for n, b in model.named_buffers() if b.is_floating_point() or b.ndim == 0}


@torch.no_grad()
def load_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put `trained_tensors` back into the same kind of model.

    Raises:
        UserError: They are of another model.
    """
    own = trained_tensors(model)
    strange = [n for n in own.keys() | tensors if n not in own or n not in tensors or own[n].shape != tensors[n].shape]
    if strange:
        raise UserError(f"the checkpoint is of another model: {min(strange)!r} differs, {len(strange)} such in all")
    for name, value in tensors.items():
        own[name].copy_(value)


def load_newest(model: nn.Module, run: Path, recipe: Recipe, progress: Progress) -> int | None:
    """Give a model the weights that a run would evaluate if it ended at its newest checkpoint.

    Args:
        model: Built with the settings of the run's recipe.
        run: The run's folder.
        recipe: The run's.
        progress: Told of checkpoints that are damaged.

    Returns:
        The optimizer steps until there; None if there is no checkpoint.

    Raises:
        UserError: The checkpoint is of another model.
    """
    state = newest(run, telling(progress))
    if state is None:
        return None
    optimizer = build_optimizer(partition_model(model, recipe.model.projector), recipe.train)
    load_tensors(model, state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    show_evaluated(optimizer)
    return int(state["steps"])


def telling(progress: Progress) -> Callable[[str], None]:
    """What tells a progress about a checkpoint."""
    return lambda line: progress("checkpoint", 1, 1, line)  # 1 of 1, as a display may leave lines out before the end


def _random_state(device: str) -> dict[str, Any]:
    """The states of all generators that a step may draw from."""
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    state = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    return state if device == "cpu" else state | {"device": torch.get_device_module(device).get_rng_state()}


def _set_random_state(device: str, state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])
