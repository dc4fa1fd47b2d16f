"""A tuned model, or one as it is, asked the questions of a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commit_tuning.data.readers.base import Skipped
from commit_tuning.data.tasks import tasks
from commit_tuning.errors import UserError
from commit_tuning.models.load import model_checksum
from commit_tuning.train.dataset import ensure_data, open_split
from commit_tuning.train.model_setup import build_model, load_trained, precision, weight_files
from commit_tuning.train.progress import Progress, counting, silent
from commit_tuning.train.recipe.load import build_recipe, load_recipe, parse_overrides
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import RECORD, WEIGHTS, RunRecord
from commit_tuning.train.scoring import answer_questions, check_metric, score
from commit_tuning.train.training import load_newest


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        dataset: Its name in `TASKS`.
        split: val or test (or train).
        scores: As `evaluation.score` gives them.
        answers: As `evaluation.answer_questions` gives them.
        skipped: Questions that could not be read.
        unfinished: How far the run had come, in words; None where its training is over, or where there is no run.
        other_data: Whether the run has read something else as this split of the same dataset.
    """

    dataset: str
    split: str
    scores: dict[str, Any]
    answers: list[dict[str, Any]]
    skipped: list[Skipped]
    unfinished: str | None = None
    other_data: bool = False


def evaluate(
    target: str, settings: Sequence[str] = (), split: str = "test", *, progress: Progress = silent
) -> Evaluation:
    """Ask the model of a run, with what it has learnt until its end or its newest checkpoint, or that of a recipe.

    Args:
        target: Folder of a run, or a recipe (file or shipped name).
        settings: `section.key=value`, over those of run or recipe: another dataset, another number of new tokens.
        split: train, val or test.
        progress: Told about every batch.

    Raises:
        UserError: Neither a run with weights nor a recipe, or the data cannot be read.
    """
    if os.path.isfile(Path(target, RECORD)):  # noqa: PTH113 (it never raises)
        return ask(recipe_of_run(Path(target), settings), split, Path(target), progress=progress)
    return ask(load_recipe(target, settings), split, progress=progress)


def ask(recipe: Recipe, split: str, run: Path | None = None, *, progress: Progress = silent) -> Evaluation:
    """Ask the model of a recipe the questions of its dataset.

    Args:
        recipe: Which model, which dataset, how.
        split: train, val or test.
        run: Folder of a run of the recipe, whose weights the model gets; None asks it untuned.
        progress: Told about every batch.

    Raises:
        UserError: The run has no weights, damaged ones, or those of another model, or the data cannot be read.
    """
    record = None if run is None else _checked(RunRecord.read(run), recipe)
    check_metric(tasks()[recipe.data.dataset].metric)
    root = ensure_data(recipe.data)
    trusted = recipe.model.trust_remote_code
    questions = open_split(root, recipe.data, split, recipe.model.name, recipe.train.device, trusted)
    model, processor = build_model(recipe.model, recipe.train.device)
    unfinished = None if run is None else load_run(model, run, progress)
    told = counting(progress, f"{split} questions", len(questions))
    with precision(recipe.model, recipe.train.device):
        answers = answer_questions(model, processor, questions, recipe.generation(), on_batch=told)
    scores = score(answers, tasks()[recipe.data.dataset].metric)
    other = record is not None and _is_other(record, recipe.data.dataset, split, questions.checksum)
    return Evaluation(recipe.data.dataset, split, scores, answers, questions.skipped, unfinished, other)


def _checked(record: RunRecord, recipe: Recipe) -> RunRecord:
    """A run whose weights are as it wrote them, and fit the model that is there now."""
    if set(record.damage) & set(weight_files(recipe.model)):
        record.refuse_damage()
    if set(record.removed) & set(weight_files(recipe.model)):
        raise UserError(
            f"{record.folder / record.removed[0]} is not there any more ({len(record.removed)} such in all); restore "
            "it, or train again by --force"
        )
    name = recipe.model.name
    if record.model not in (None, model_checksum(name)):
        raise UserError(f"the run in {record.folder} is of another model than {name} is now; give model.name=...")
    return record


def _is_other(record: RunRecord, dataset: str, split: str, checksum: str) -> bool:
    return record.recipe["data"]["dataset"] == dataset and record.data.get(split, checksum) != checksum


def load_run(model: Any, run: Path, progress: Progress = silent) -> str | None:
    """Give a model what a run has learnt: until its end, or until its newest checkpoint.

    Returns:
        How far the run had come, in words; None if it is finished, or has kept weights and no checkpoint.

    Raises:
        UserError: There are no weights and no checkpoint, or they are of another model.
    """
    recipe = recipe_of_run(run, ())
    complete = RunRecord.read(run).status == "complete"
    step = None if complete else load_newest(model, run, recipe, progress)
    if step is None:
        if not complete and not (run / WEIGHTS).is_file():
            raise UserError(f"the run in {run} is not finished and has no whole checkpoint; let 'train' go on with it")
        load_trained(model, run)
        return None
    return f"the run is not finished: step {step} of {recipe.train.steps}"


def recipe_of_run(folder: Path, settings: Sequence[str]) -> Recipe:
    """The recipe of a run with `section.key=value` over it; of another dataset the answers may be longer.

    Raises:
        UserError: There is no run, or a setting is not valid.
    """
    changes, recipe = parse_overrides(settings), RunRecord.read(folder).recipe
    if "data.dataset" in changes:
        changes = {"eval.max_new_tokens": None} | changes
    return build_recipe(recipe, changes, source=str(folder / RECORD))
