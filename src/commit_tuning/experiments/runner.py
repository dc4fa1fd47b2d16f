"""One run from recipe to record: `train` reads top to bottom."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from commit_tuning.errors import UserError
from commit_tuning.experiments.checkpoint import FOLDER as CHECKPOINTS
from commit_tuning.experiments.checkpoint import Checkpoints
from commit_tuning.experiments.dataset import Questions, data_checksum, ensure_data, open_splits
from commit_tuning.experiments.evaluation import answer_loss, answer_questions, check_metric, evenly, save_images, score
from commit_tuning.experiments.model_setup import (
    build_model,
    count_parameters,
    precision,
    save_trainable,
)
from commit_tuning.experiments.optimizers import show_evaluated
from commit_tuning.experiments.progress import Progress, counting, silent
from commit_tuning.experiments.record import (
    PREDICTIONS,
    RECORD,
    SKIPPED,
    RunRecord,
    hardware,
    json_line,
    package_versions,
    writable_folder,
    write_text,
)
from commit_tuning.experiments.schema import Recipe
from commit_tuning.experiments.tasks import TASKS
from commit_tuning.experiments.training import Training, questions_seen, train_steps
from commit_tuning.models.partition import partition_model

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
    questions = open_splits(root, recipe.data, recipe.model.name, device)
    _note_skipped(record, questions, progress)
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    model, processor = build_model(recipe.model, device, settings.gradient_checkpointing)
    partition = partition_model(model, recipe.model.projector)
    record.parameters = {module: count_parameters(partition[module]) for module in partition.names}
    training = Training(model, partition, recipe, record.folder)
    train_steps(training, questions, _checkpoints(recipe, record), progress)
    record.seconds["training"] = round(training.earlier_seconds + time.perf_counter() - started, 2)
    record.metrics |= training.metrics()

    show_evaluated(training.optimizer)
    if settings.save_weights:  # before the evaluation, whose failure would lose them
        save_trainable(model, record.folder)
    with precision(recipe.model, device):
        answers = _evaluate(model, processor, questions, recipe, record=record, progress=progress)
    write_text(record.folder / PREDICTIONS, "".join(map(json_line, answers)))
    _note_skipped(record, questions, progress)
    save_images(questions["test"], recipe.eval.images, record.folder / "images")
    record.status = "complete"
    record.write()
    shutil.rmtree(record.folder / CHECKPOINTS)  # not before the record, which takes their place


def _checkpoints(recipe: Recipe, record: RunRecord) -> Checkpoints:
    """Where the run is saved; what decides its numbers has to be the same in the run that goes on."""
    identity = {"recipe": record.recipe, "data": record.data_checksum, "versions": record.versions}
    return Checkpoints(record.folder, identity, recipe.train.checkpoint_interval)


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
    """Remove what an unfinished run left, its record first; history and checkpoints stay for the run to go on from."""
    for name in (RECORD, PREDICTIONS, SKIPPED, "tuned.safetensors"):
        (folder / name).unlink(missing_ok=True)
    for name in ("adapter", "images"):
        shutil.rmtree(folder / name, ignore_errors=True)
