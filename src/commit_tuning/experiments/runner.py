"""One run from recipe to record: `train` reads top to bottom."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from commit_tuning.coordinator import Coordinator
from commit_tuning.errors import UserError
from commit_tuning.experiments.dataset import Questions, chunks, data_checksum, data_order, ensure_data, open_splits
from commit_tuning.experiments.evaluation import answer_loss, answer_questions, check_metric, evenly, save_images, score
from commit_tuning.experiments.model_setup import (
    build_model,
    count_parameters,
    precision,
    save_trainable,
)
from commit_tuning.experiments.optimizers import build_optimizer, found_rates, show_evaluated
from commit_tuning.experiments.progress import Progress, Stopwatch, counting, silent
from commit_tuning.experiments.record import (
    HISTORY,
    PREDICTIONS,
    RECORD,
    SKIPPED,
    RunFailedError,
    RunRecord,
    hardware,
    json_line,
    package_versions,
    writable_folder,
    write_text,
)
from commit_tuning.experiments.schema import Recipe, Train
from commit_tuning.experiments.tasks import TASKS
from commit_tuning.models.partition import partition_model

_FINAL_STEPS = 20
_LOSS_QUESTIONS = 600


def train(recipe: Recipe, output: str | Path, *, progress: Progress = silent) -> RunRecord:
    """Tune a model as the recipe says, evaluate it, and leave everything in `output`.

    `output` holds then: `run.json` (the `RunRecord`), `history.jsonl` (one flat object per optimizer step: `step`,
    `loss`, `grad_norm` of all gradients before clipping, and the columns of `BalanceMonitor.metrics`),
    `predictions.jsonl` (the test questions), `images/` (some of their pictures), `skipped.jsonl` (what could not be
    read, if anything), and with `train.save_weights` the tuned parameters in `adapter/` and `tuned.safetensors`. Two
    runs with the same seed start from the same weights and see the same batches, whatever the method.

    Args:
        recipe: The experiment.
        output: Folder of the run; created. A complete run of the same recipe there is returned as it is, one that
            did not finish is done again.
        progress: Told about every step.

    Raises:
        UserError: The recipe cannot be run, `output` cannot be written or holds a complete run of another recipe.
        RunFailedError: The loss stopped being finite.
    """
    folder = writable_folder(output)
    finished = _finished_run(folder, recipe)
    if finished is not None:
        return finished
    _clear(folder)
    record = RunRecord(recipe=recipe.for_record(), seed=recipe.train.seed, folder=folder)
    record.versions, record.hardware = package_versions(), hardware(torch.get_num_threads())
    record.write()
    try:
        check_metric(TASKS[recipe.data.dataset].metric)
        _run(recipe, record, progress)
    except Exception as error:
        record.status, record.error = "failed", " ".join(f"{type(error).__name__}: {error}".split())
        record.write()
        raise
    return record


def _run(recipe: Recipe, record: RunRecord, progress: Progress) -> None:
    settings, device, started = recipe.train, recipe.train.device, time.perf_counter()
    root = _find_data(recipe, record, progress)
    questions = open_splits(root, recipe.data, recipe.model.name, device, recipe.model.trust_remote_code)
    _note_skipped(record, questions, progress)
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    model, processor = build_model(recipe.model, device, settings.gradient_checkpointing)
    running = partial(precision, recipe.model, device)
    partition = partition_model(model, recipe.model.projector)
    record.parameters = {module: count_parameters(partition[module]) for module in partition.names}
    optimizer = build_optimizer(partition, settings)
    coordinator = Coordinator(model, optimizer, recipe.commit_config(), partition=partition)
    scheduler = build_scheduler(optimizer, settings)
    trainable = [parameter for module in partition.names for parameter in partition[module]]

    batches = step_batches(questions["train"], settings)
    losses, lowest, measuring = [], math.inf, Stopwatch()
    model.train()
    loop_started = time.perf_counter()
    with (record.folder / HISTORY).open("w", encoding="utf-8", buffering=1) as history:
        for step in range(1, settings.steps + 1):
            micro_batches = next(batches)
            loss = accumulate_gradients(model, micro_batches, running)
            if not math.isfinite(loss):
                raise RunFailedError(_not_finite(step, loss, recipe, record.folder))
            norm = clip_gradients(trainable, settings.max_grad_norm)
            lowest = min([lowest, *filter(None, coordinator.multipliers.values())])  # zero: a module at rest
            with measuring, running():
                coordinator.before_step(micro_batches)
            optimizer.step()
            with measuring, running():
                coordinator.after_step()
            history.write(
                json_line(
                    {
                        "step": step,
                        "loss": loss,
                        "grad_norm": norm,
                        **coordinator.metrics(),
                        **found_rates(optimizer, coordinator.learning_rates),
                    }
                )
            )
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss)
            progress("training", step, settings.steps, f"loss {loss:.3f}{starvation_note(coordinator.starving)}")
    record.seconds["training"] = round(time.perf_counter() - started, 2)

    record.metrics["overhead"] = measuring.seconds / (time.perf_counter() - loop_started - measuring.seconds)
    record.metrics |= _of_training(losses, lowest, coordinator)

    show_evaluated(optimizer)
    if settings.save_weights:  # before the evaluation, whose failure would lose them
        save_trainable(model, record.folder)
    with running():
        answers = _evaluate(model, processor, questions, recipe, record=record, progress=progress)
    write_text(record.folder / PREDICTIONS, "".join(map(json_line, answers)))
    _note_skipped(record, questions, progress)
    save_images(questions["test"], recipe.eval.images, record.folder / "images")
    record.status = "complete"
    record.write()


def _find_data(recipe: Recipe, record: RunRecord, progress: Progress) -> Path:
    """The dataset's folder, made first where it is built here."""
    progress("data", 0, 1, "built on first use")
    root = ensure_data(recipe.data)
    record.data_checksum = data_checksum(root)
    progress("data", 1, 1)
    return root


def _note_skipped(record: RunRecord, questions: dict[str, Questions], progress: Progress) -> None:
    """Count and list what could not be read so far."""
    told, record.skipped = record.skipped, {}
    for split, asked in questions.items():
        if asked.skipped:
            record.skipped[split] = f"{len(asked.skipped)}, first {asked.skipped[0]}"
            if record.skipped[split] != told.get(split):
                progress("data", 1, 1, f"{split}: skipped {record.skipped[split]}")
    lines = [json_line({"split": name, **entry.to_dict()}) for name, q in questions.items() for entry in q.skipped]
    if lines:
        write_text(record.folder / SKIPPED, "".join(lines))


def _of_training(losses: list[float], lowest: float, coordinator: Coordinator) -> dict[str, Any]:
    """The metrics of a training loop: its last losses, its lowest multiplier, and who starves at its end."""
    meaningless = math.isinf(lowest) or coordinator.config.sets_drift
    return {
        "train_loss": sum(losses[-_FINAL_STEPS:]) / len(losses[-_FINAL_STEPS:]),
        "lowest_multiplier": None if meaningless else lowest,
        "starving": coordinator.starving,
    }


def _evaluate(
    model: Any,
    processor: Any,
    questions: dict[str, Questions],
    recipe: Recipe,
    *,
    record: RunRecord,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Score validation and test questions into the record; returns the answers to the test questions."""
    started = time.perf_counter()
    answers: list[dict[str, Any]] = []
    for split, task in (("val", "validation questions"), ("test", "test questions")):
        asked = questions[split]
        answers = answer_questions(
            model,
            processor,
            asked,
            recipe.generation(),
            on_batch=counting(progress, task, len(asked)),
        )
        record.metrics[split] = score(answers, TASKS[recipe.data.dataset].metric)
    record.metrics |= _losses(model, questions, recipe)
    record.seconds["evaluation"] = round(time.perf_counter() - started, 2)
    return answers


def _losses(model: Any, questions: dict[str, Questions], recipe: Recipe) -> dict[str, float]:
    """The loss on validation questions, and on as many that the model was tuned on: the train-validation gap."""
    unseen = evenly(range(len(questions["val"])), _LOSS_QUESTIONS)
    seen = evenly(questions_seen(len(questions["train"]), recipe.train), len(unseen))
    size = recipe.eval.batch_size
    return {
        "val_loss": answer_loss(model, questions["val"], unseen, size),
        "seen_loss": answer_loss(model, questions["train"], seen, size),
    }


def build_scheduler(optimizer: torch.optim.Optimizer, settings: Train) -> Any:
    """The recipe's schedule of the base learning rates."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler
    return get_scheduler(name, optimizer, settings.warmup_steps, settings.steps)


def starvation_note(starving: dict[str, int]) -> str:
    """Which module starves and since which step, for the progress line; nothing where none does."""
    return "".join(f", {module} starves since step {since}" for module, since in starving.items())


def step_batches(questions: Questions, settings: Train) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Endless optimizer steps, each a list of collated micro-batches."""
    size = settings.micro_batch_size or settings.batch_size
    for indices in data_order(len(questions), settings.batch_size, settings.seed):
        yield [questions.training(part) for part in chunks(indices, size)]


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
    micro_batches: list[dict[str, torch.Tensor]],
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


def _finished_run(folder: Path, recipe: Recipe) -> RunRecord | None:
    if not (folder / RECORD).exists():
        return None
    record = RunRecord.read(folder)
    if not record.complete:
        return None
    if record.recipe != recipe.for_record():
        raise UserError(f"{folder} holds a complete run of another recipe; choose another --output or remove it")
    return record


def _clear(folder: Path) -> None:
    """Remove what an unfinished run left, its record first."""
    for name in (RECORD, HISTORY, PREDICTIONS, SKIPPED, "tuned.safetensors"):
        (folder / name).unlink(missing_ok=True)
    for name in ("adapter", "images"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _not_finite(step: int, loss: float, recipe: Recipe, folder: Path) -> str:
    rates = " and ".join(f"{rate:g}" for rate in sorted(set(recipe.train.rates.values())))
    lower = "commit.drift_target" if recipe.commit_config().sets_drift else "train.learning_rate"
    return (
        f"the loss is {loss} at step {step} of {recipe.train.steps} (learning rate {rates}, {folder}); "
        f"lower {lower}, or set train.max_grad_norm"
    )
