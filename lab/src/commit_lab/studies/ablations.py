"""Studies of one setting each: their comparisons, and the small record that is kept of each comparison.

A study is one question and the comparisons that answer it; `ablation_page` shows the results.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commit_lab.studies.control_quality import control_of
from commit_tuning.errors import UserError
from commit_tuning.storage import write_text
from commit_tuning.train.compare.arms import Axes, as_text, screening_arms
from commit_tuning.train.compare.comparison import MANIFEST, TABLE, Comparison
from commit_tuning.train.compare.table import mean
from commit_tuning.train.readable import Manifest, Table, read_json
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import RunRecord, run_folders, without_nan

_FROM_ROW = ("label", "method", "rates", "seeds", "failed", "validation", "test", "test_sd", "difference", "seconds")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One comparison of a study: every arm with all seeds, so that no arm is left out of the table.

    Attributes:
        name: Of its folder and its record.
        recipe: A recipe file or shipped name.
        rates: Base learning rates.
        methods: Methods beside Constant LR.
        axes: What is varied.
        settings: `key=value` texts that win over the recipe's.
        seeds: Runs of each arm.
    """

    name: str
    recipe: str
    rates: tuple[float, ...]
    methods: tuple[str, ...] = ("commit-clr",)
    axes: Axes = ()
    settings: tuple[str, ...] = ()
    seeds: int = 2

    def load(self) -> Recipe:
        """Load the recipe with this plan in it.

        Raises:
            UserError: It cannot be read, or a setting is not valid.
        """
        plan = {
            "methods": f"[{', '.join(self.methods)}]",
            "rates": f"[{', '.join(map(str, self.rates))}]",
            "seeds": self.seeds,
            "screen_seeds": self.seeds,
            "static_grid": "null",
        }
        return load_recipe(self.recipe, [*self.settings, *(f"compare.{key}={value}" for key, value in plan.items())])

    def arguments(self) -> list[str]:
        """Return the arguments of `commit-tuning` for the same comparison, without the folder."""
        axes = [f"{key}={','.join(map(as_text, values))}" for key, values in self.axes]
        return [
            *("compare", self.recipe, *self.settings, "--methods", ",".join(self.methods)),
            *("--rates", ",".join(map(str, self.rates)), "--seeds", str(self.seeds)),
            *("--screen-seeds", str(self.seeds), "--no-static-grid"),
            *(part for axis in axes for part in ("--axis", axis)),
        ]

    def command(self, output: str | Path) -> str:
        """Return the command line of this comparison below a folder."""
        return shlex.join(["commit-tuning", *self.arguments(), "--output", str(Path(output) / self.name)])


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question, and the comparisons that answer it."""

    question: str
    plans: tuple[Plan, ...]


def adopt_finished_runs(plan: Plan, output: Path) -> int:
    """Copy runs that other comparisons below `output` have finished to where this one will look for them.

    Returns:
        How many there were.
    """
    finished = {_identity(r.recipe): r.folder for r in map(RunRecord.read, run_folders([output])) if r.complete}
    comparison = Comparison(plan.load(), output / plan.name, plan.axes)
    arms = screening_arms(comparison.recipe, plan.axes)
    adopted = 0
    for job in (comparison.job(arm, seed) for arm in arms for seed in comparison.recipe.compare.confirmation):
        source = finished.get(_identity(job.recipe.for_record()))
        if source is not None and not job.folder.exists():
            unfinished = job.folder.with_name(f"{job.folder.name}.copy")
            shutil.copytree(source, unfinished, dirs_exist_ok=True)
            unfinished.replace(job.folder)
            adopted += 1
    return adopted


def _identity(recipe: dict[str, Any]) -> str:
    return json.dumps(recipe, sort_keys=True)


def condense(study: str, question: str, plan: Plan, output: Path) -> dict[str, Any] | None:
    """Return what is kept of a comparison, as plain JSON values; None if it has not finished.

    Accuracies are shares in [0, 1], and `tests` has one for each seed. `distance` and `movement` of log smoothed kappa
    (see `Control`) are medians over seeds, `held` is the worst seed's share of steps; all three are None where a
    method rests a module. `overhead` is the mean wall time of measuring over that of the rest of the training loop.

    Raises:
        UserError: The folder holds a comparison of another plan.
    """
    path = output / plan.name / TABLE
    if not path.is_file():
        return None
    _check_plan(plan, path.parent)
    table = read_json(path, Table)
    rows = [(row, [RunRecord.read(path.parent / run) for run in row.runs]) for row in table.screening]
    first = next((records[0] for _, records in rows if records), None)
    kept = {
        "study": study,
        "question": question,
        "model": Path(plan.load().model.name).name,
        "command": plan.command("runs/ablations"),
        "machine": first and f"{first.hardware['cpu']}, torch {first.versions['torch']}",
        "rows": [_condensed(row.model_dump(), records) for row, records in rows],
    }
    return dict(without_nan(kept))


def _check_plan(plan: Plan, folder: Path) -> None:
    """Refuse a folder whose comparison is not this plan any more, or was made when a default was another."""
    manifest, recipe = read_json(folder / MANIFEST, Manifest), plan.load()
    differing = recipe.differences(manifest.recipe)
    if manifest.compare != recipe.compare.model_dump(mode="json"):
        differing.append("compare")
    if manifest.axes != {key: list(values) for key, values in plan.axes}:
        differing.append("axes")
    if differing:
        raise UserError(
            f"{folder} holds another plan of {plan.name} (it differs in {', '.join(differing)}); "
            "remove it or choose another --output, and run it again: ablations.py run"
        )


def _condensed(row: dict[str, Any], records: Sequence[RunRecord]) -> dict[str, Any]:
    validation = [record.accuracy("val") for record in records]
    overheads = [record.metrics["overhead"] for record in records if "overhead" in record.metrics]
    return {
        **{key: row[key] for key in _FROM_ROW},
        "validation_sd": statistics.stdev(validation) if len(validation) > 1 else None,
        "tests": [record.accuracy("test") for record in records],
        "overhead": mean(overheads),
        **_control(row["method"], records),
    }


def _control(method: str, records: Sequence[RunRecord]) -> dict[str, float | None]:
    if method in ("feature-cd", "language-cd") or not records:
        return dict.fromkeys(("distance", "movement", "held"))
    runs = [control_of(record) for record in records]
    return {
        "distance": statistics.median(run.distance for run in runs),
        "movement": statistics.median(run.movement for run in runs),
        "held": max(run.held for run in runs),
    }


def write_records(studies: Iterable[tuple[str, Study]], output: Path, folder: Path) -> list[Path]:
    """Condense every finished comparison below `output` into a file of its own; the others' files stay as they are."""
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, study in studies:
        for plan in study.plans:
            kept = condense(name, study.question, plan, output)
            if kept is not None:
                path = folder / f"{plan.name}.json"
                write_text(path, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
                written.append(path)
    return written
