"""One run from recipe to record: `train` reads top to bottom."""

from __future__ import annotations

import os
import random
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from commit_tuning.data.files import user_path
from commit_tuning.data.tasks import tasks
from commit_tuning.errors import UserError
from commit_tuning.models.load import model_checksum, refuse_output
from commit_tuning.partition.discover import partition_model
from commit_tuning.train.checkpoint import Checkpoints, clear_up, remove_checkpoints, stored
from commit_tuning.train.dataset import Questions, ensure_data, open_splits
from commit_tuning.train.model_setup import (
    build_model,
    count_parameters,
    precision,
    save_trainable,
    weight_files,
)
from commit_tuning.train.optimizers import check_optimizer, show_evaluated
from commit_tuning.train.origin import Origin, refuse_changed
from commit_tuning.train.ownership import foreign_files, refuse_foreign, start_over
from commit_tuning.train.progress import Progress, counting, silent
from commit_tuning.train.recipe.schema import Data, Recipe
from commit_tuning.train.record import (
    HISTORY,
    PREDICTIONS,
    RECORD,
    SKIPPED,
    RunRecord,
    alone_in,
    hardware,
    json_line,
    package_versions,
    writable_folder,
)
from commit_tuning.train.scoring import (
    answer_loss,
    answer_questions,
    check_metric,
    evenly,
    picture_name,
    pictures_of,
    score,
)
from commit_tuning.train.training import (
    Training,
    questions_seen,
    refuse_large_batch,
    resume,
    train_steps,
    usable_checkpoint,
)

_LOSS_QUESTIONS = 600


def train(
    recipe: Recipe, output: str | Path, *, progress: Progress = silent, force: bool = False, beside: bool = False
) -> RunRecord:
    """Tune a model as the recipe says, evaluate it, and leave everything in `output`.

    `output` holds then: `run.json` (the `RunRecord`, which names every other file of the run), `history.jsonl` (one
    flat object per optimizer step: `step`, `loss`, `grad_norm` of all gradients before clipping, and the columns of
    `BalanceMonitor.metrics`), `predictions.jsonl` (the test questions), `images/` (some of their pictures),
    `skipped.jsonl` (what could not be read, if anything), and with `train.save_weights` the tuned parameters in
    `adapter/` and `tuned.safetensors`. Two runs with the same seed start from the same weights and see the same
    batches, whatever the method.

    Files that no record of a run names are neither overwritten nor removed.

    Args:
        recipe: The experiment.
        output: Folder of the run; created. A complete run of the same recipe there is returned as it is, one that
            did not finish goes on from its last checkpoint, bit for bit as if it had not stopped.
        progress: Told about every step.
        force: Start again whatever run is there, and write beside files that are no run's.
        beside: Write beside files that are no run's; where a run has begun, it goes on.

    Raises:
        UserError: The recipe cannot be run, or `output` cannot be written, is in use by another process, holds files
            that are no run's, or a run of another recipe, of other data, of another model, or with damaged files.
        RunFailedError: The loss stopped being finite.
        StoppedError: SIGTERM or Ctrl-C came during the training steps; the state after the last step is saved.
    """
    refuse_output(recipe.model.name, Path(output))
    folder = writable_folder(output)
    if not (force or beside):
        refuse_foreign(folder, RECORD)
    with alone_in(folder):
        before = RunRecord.read(folder) if os.path.lexists(folder / RECORD) else None
        if before is not None and not force and _is_finished(before, recipe):
            clear_up(before)
            return before
        record = RunRecord(recipe=recipe.for_record(), seed=recipe.train.seed, folder=folder)
        record.versions, record.hardware = package_versions(), hardware(torch.get_num_threads())
        try:
            check_metric(tasks()[recipe.data.dataset].metric)
            check_optimizer(recipe.train)
            _run(recipe, record, before, progress, force)
        except Exception as error:
            if record.files is not None or (before is None and not foreign_files(folder)):
                _note_failure(record, error)  # else what is there stays as it is until a run has taken the folder
            raise
        return record


def _is_finished(before: RunRecord, recipe: Recipe) -> bool:
    """Whether the run that is there is complete and what the recipe, the data and the model give now.

    Raises:
        UserError: It is of something else, or its files are damaged.
    """
    differing = recipe.differences(before.recipe)
    if differing and (before.status != "failed" or stored(before.folder)):
        raise UserError(
            f"{before.folder} holds a {'complete' if before.status == 'complete' else 'begun'} run of another recipe "
            f"(it differs in {', '.join(differing[:5])}); choose another --output, or give --force to start again"
        )
    if before.status != "complete":
        return False
    before.refuse_damage()
    if before.files is not None:
        refuse_changed(before, Origin.of(recipe))
    return True


def _note_failure(record: RunRecord, error: Exception) -> None:
    """Store why a run failed, where that can be stored."""
    record.status, record.error = "failed", " ".join(f"{type(error).__name__}: {error}".split())
    record.files = record.files or {}
    with suppress(UserError):
        record.write()


def _run(recipe: Recipe, record: RunRecord, before: RunRecord | None, progress: Progress, force: bool) -> None:
    settings, device, started = recipe.train, recipe.train.device, time.perf_counter()
    root = _find_data(recipe, progress)
    questions = open_splits(root, recipe.data, recipe.model.name, device, recipe.model.trust_remote_code)
    refuse_large_batch(questions["train"], settings)
    Origin({split: asked.checksum for split, asked in questions.items()}, model_checksum(recipe.model.name)).note(
        record
    )
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    model, processor = build_model(recipe.model, device, settings.gradient_checkpointing)
    partition = partition_model(model, recipe.model.projector)
    record.parameters = {module: count_parameters(partition[module]) for module in partition.names}
    training = Training(model, partition, recipe, record.folder)
    checkpoints = Checkpoints(record.folder, _identity(record), settings.checkpoint_interval)
    saved = None if force else usable_checkpoint(checkpoints, progress)

    with _kept_features(model, recipe.data):
        start_over(record, before, _planned(recipe, len(questions["test"])), resumes=saved is not None)
        if saved is not None:
            resume(training, questions, saved, progress)
        _note_skipped(record, questions, progress)
        train_steps(training, questions, checkpoints, progress)
        record.seal(HISTORY)
        record.seconds["training"] = round(training.earlier_seconds + time.perf_counter() - started, 2)
        record.metrics |= training.metrics()

        show_evaluated(training.optimizer)
        if settings.save_weights:  # before the evaluation, whose failure would lose them
            _store_weights(model, recipe, record)
        with precision(recipe.model, device):
            answers = _evaluate(model, processor, questions, recipe, record=record, progress=progress)
        _store_answers(answers, questions["test"], recipe, record)
        _note_skipped(record, questions, progress)
        record.finish()
        remove_checkpoints(record.folder)  # not before the record is complete


def _kept_features(model: Any, settings: Data) -> AbstractContextManager[Any]:
    """The context in which frozen towers' outputs are kept in the folder that the recipe names, if it names one.

    Raises:
        UserError: No tower is frozen.
    """
    if settings.cache_features is None:
        return nullcontext()
    from commit_tuning.features.frozen import FrozenFeatures

    try:
        return FrozenFeatures(model, user_path(settings.cache_features), int(settings.cache_gigabytes * 10**9))
    except UserError as error:
        raise UserError(f"data.cache_features: {error}") from None


def _identity(record: RunRecord) -> dict[str, Any]:
    """What decides the numbers of a run; it has to be the same in a process that goes on with the run."""
    return {name: getattr(record, name) for name in ("recipe", "data", "model", "versions")}


def _store_weights(model: Any, recipe: Recipe, record: RunRecord) -> None:
    save_trainable(model, record.folder)
    for name in weight_files(recipe.model):
        record.seal(name)
    record.write()


def _store_answers(answers: list[dict[str, Any]], asked: Questions, recipe: Recipe, record: RunRecord) -> None:
    """Keep the answers, and the pictures of the first questions."""
    pictures = _store_pictures(record, asked, recipe.eval.images)
    rows = ({**answer, "picture": pictures.get(answer["id"])} for answer in answers)
    record.store(PREDICTIONS, "".join(map(json_line, rows)))


def _planned(recipe: Recipe, questions: int) -> list[str]:
    """The files that a run may write, by name."""
    pictures = [picture_name(number) for number in range(min(recipe.eval.images, questions))]
    weights = weight_files(recipe.model) if recipe.train.save_weights else ()
    return [HISTORY, PREDICTIONS, SKIPPED, *weights, *pictures]


def _store_pictures(record: RunRecord, questions: Questions, count: int) -> dict[str, str]:
    """Keep the pictures of the first `count` questions; the id of each question to the name of its file."""
    names: dict[str, str] = {}
    for asked, picture in pictures_of(questions, count):
        names[asked] = picture_name(len(names))
        record.store(names[asked], picture)
    return names


def _find_data(recipe: Recipe, progress: Progress) -> Path:
    """The dataset's folder, made first where it is built here."""
    progress("data", 0, 1, "built on first use")
    root = ensure_data(recipe.data)
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
        record.store(SKIPPED, "".join(lines))


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
        record.metrics[split] = score(answers, tasks()[recipe.data.dataset].metric)
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
