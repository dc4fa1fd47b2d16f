"""Methods against each other on equal terms.

Protocol: (1) *screening*: every method at every base rate of the sweep, and every static pair of rates, with the first
`screen_seeds` seeds; the validation accuracy picks the best rate of each method and the best pair. (2) *confirmation*:
those, and Constant LR at every rate of the sweep, with all seeds; the runs of the screening count. Constant LR's rate
is then chosen again on all of its seeds, which makes the baseline as good as it can be. (3) the *table*, on the test
questions. Seed s of every arm starts from the same weights and sees the same batches.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commit_tuning.data.tasks import tasks
from commit_tuning.errors import UserError
from commit_tuning.metrics.score import METRICS
from commit_tuning.models.load import refuse_missing, refuse_output
from commit_tuning.shown import markdown_text
from commit_tuning.storage import remove_temporary, sha256, write_text
from commit_tuning.train.checkpoint import remove_checkpoints
from commit_tuning.train.compare.arms import CONSTANT, Arm, Axes, choose, screening_arms
from commit_tuning.train.compare.pool import Job, RunJobs, default_workers, run_jobs
from commit_tuning.train.compare.table import Row, build_rows, markdown, mean
from commit_tuning.train.optimizers import check_optimizer
from commit_tuning.train.origin import Origin, refuse_changed
from commit_tuning.train.ownership import refuse_foreign, refuse_taken, remove_named
from commit_tuning.train.progress import Progress, silent
from commit_tuning.train.readable import Manifest, read_json
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import (
    LOCK,
    LOG,
    RECORD,
    REPORT,
    RunRecord,
    alone_in,
    leads_elsewhere,
    package_versions,
    writable_folder,
)
from commit_tuning.train.scoring import check_metric

MANIFEST = "compare.json"
TABLE = "table.json"
PAGE = "table.md"
TABLES = (TABLE, PAGE)
RUNS = "runs"
_COMPANIONS = frozenset((MANIFEST, RUNS, "cluster", LOCK, REPORT))  # ours by their names


@dataclass
class Comparison:
    """A comparison under way, and what came out of it.

    Attributes:
        recipe: The base recipe; its `compare` section is the plan.
        folder: Where everything goes.
        axes: Settings that are varied besides the rates.
        workers: Runs at a time.
        save_weights: Whether each run keeps its tuned parameters.
        progress: Told about every run that ends.
        engine: What runs the jobs, e.g. `Cluster.run_jobs`; processes of this machine by default.
        force: Whether to start again, whatever runs are there, and to write beside files that are nobody's.
        results: Records by arm and seed.
        failures: A line for every run that did not finish.
        chosen: The arm of each method at the rates that validation chose: in the screening, Constant LR's on all seeds.
        rows: The table: Constant LR at every rate and the chosen arm of every other method.
        screening: All arms, on the seeds of the screening.
    """

    recipe: Recipe
    folder: Path
    axes: Axes = ()
    workers: int = field(default_factory=default_workers)
    save_weights: bool = False
    progress: Progress = silent
    engine: RunJobs | None = None
    force: bool = False
    results: dict[Arm, dict[int, RunRecord]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    chosen: list[Arm] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    screening: list[Row] = field(default_factory=list)

    def run(self) -> None:
        """Run everything that is not there yet, and write the table.

        Raises:
            UserError: The folder holds files that are no comparison's, or one of another recipe, runs of other data or
                with damaged files, another process is at work in it, the model is still to be assembled, or an arm's
                settings are not valid.
        """
        refuse_missing(self.recipe.model.name)
        refuse_output(self.recipe.model.name, self.folder)
        check_metric(tasks()[self.recipe.data.dataset].metric)
        check_optimizer(self.recipe.train)
        arms = screening_arms(self.recipe, self.axes)
        for arm in arms:
            arm.recipe(self.recipe, seed=0)
        folder = writable_folder(self.folder)
        if not self.force:
            refuse_foreign(folder, MANIFEST, _COMPANIONS)
        with alone_in(folder):
            remove_temporary(folder)
            self._run(arms)

    def _run(self, arms: list[Arm]) -> None:
        from commit_tuning.train.dataset import ensure_data

        plan = self.recipe.compare
        self.progress("data", 0, 1, "built on first use")
        ensure_data(self.recipe.data, min(self.workers, default_workers()))
        self.progress("data", 1, 1)
        self._claim(arms)
        self._run_arms("screening", arms, plan.screening)
        validation = {arm: self._validation(arm, plan.screening) for arm in arms}
        self.chosen = choose(arms, validation)
        confirmed = [arm for arm in arms if arm in self.chosen or arm.method == CONSTANT]
        self._run_arms("confirmation", confirmed, plan.confirmation)
        self._check_same_data()
        constants = (arm for arm in arms if arm.method == CONSTANT)  # every rate of it has run with every seed by now
        self.chosen = choose(arms, validation | {arm: self._validation(arm, plan.confirmation) for arm in constants})
        self.rows = self._rows(confirmed, plan.confirmation)
        self.screening = self._rows(arms, plan.screening)
        self._write()

    def job(self, arm: Arm, seed: int) -> Job:
        """One run of an arm."""
        folder = self.folder / RUNS / arm.slug / f"seed-{seed}"
        return Job(arm.recipe(self.recipe, seed, self.save_weights), folder, beside=self.force)

    def _run_arms(self, phase: str, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
        pairs = [(arm, seed) for seed in seeds for arm in arms if seed not in self.results.get(arm, {})]
        jobs = {self.job(arm, seed).folder: (arm, seed) for arm, seed in pairs}
        done = 0

        def on_done(job: Job, record: RunRecord | None) -> None:
            nonlocal done
            done += 1
            arm, seed = jobs[job.folder]
            record = record or RunRecord(recipe=job.recipe.for_record(), seed=seed, folder=job.folder)
            self.results.setdefault(arm, {})[seed] = record
            name = f"{arm.family} at {arm.rates}, seed {seed}"
            if not record.complete:
                reason = record.error or f"the process died, see {job.folder / LOG}"
                self.failures.append(f"{name}: {reason}")
            self.progress(phase, done, len(jobs), f"{name}: {_outcome(record)}")

        run = self.engine or run_jobs
        run([self.job(arm, seed) for arm, seed in pairs], self.workers, on_done)

    def _validation(self, arm: Arm, seeds: range) -> float:
        """Mean validation accuracy over some seeds; a run that failed counts as 0."""
        return mean([self.results[arm][seed].accuracy("val") for seed in seeds]) or 0.0

    def _rows(self, arms: Sequence[Arm], seeds: range) -> list[Row]:
        """The rows of some arms, on some seeds."""
        results = {arm: [self.results[arm][seed] for seed in seeds] for arm in arms}
        folders = {
            arm: [record.folder.relative_to(self.folder).as_posix() for record in records if record.complete]
            for arm, records in results.items()
        }
        return build_rows(results, self.chosen, folders)

    def _check_same_data(self) -> None:
        """Make sure that runs of the same settings have read the same data and begun with the same model."""
        read: dict[str, tuple[str | None, str | None]] = {}
        records = [record for seeds in self.results.values() for record in seeds.values() if record.complete]
        for record in records:
            settings = json.dumps([record.recipe["data"], record.recipe["model"]], sort_keys=True)
            origin = record.data_checksum, record.model
            if read.setdefault(settings, origin) != origin:
                raise UserError(f"the runs below {self.folder} were made on different data; choose another --output")

    def _claim(self, arms: Sequence[Arm]) -> None:
        """Take the folder, or refuse it if what it holds is of another recipe or of other data."""
        there = os.path.lexists(self.folder / MANIFEST)
        manifest = read_json(self.folder / MANIFEST, Manifest) if there else None
        if manifest is not None and not self.force:
            differing = self.recipe.differences(manifest.recipe)
            if differing:
                raise UserError(
                    f"{self.folder} holds a comparison of another recipe (it differs in {', '.join(differing)}); "
                    "choose another --output, or give --force to start again"
                )
        ours = self._own_tables(manifest)
        refuse_taken(self.folder, TABLES, ours)
        if self.force:
            self._remove_runs()
        self._check_finished_runs(arms)
        self._write_manifest("running", ours)
        for name in TABLES:
            (self.folder / name).unlink(missing_ok=True)

    def _own_tables(self, manifest: Manifest | None) -> dict[str, str]:
        """The tables that are there as a comparison wrote them, to their SHA-256; older versions noted none."""
        there = [name for name in TABLES if (self.folder / name).is_file()] if manifest else []
        found = {name: sha256(self.folder / name) for name in there}
        noted = found if manifest is None or manifest.files is None else manifest.files
        return {name: digest for name, digest in found.items() if noted.get(name) == digest}

    def _remove_runs(self) -> None:
        """Remove what the records of the runs name, and their checkpoints; nothing where a run may not be removed."""
        paths = sorted(self.folder.glob(f"{RUNS}/*/seed-*/{RECORD}"))
        names = {path: path.relative_to(self.folder).as_posix() for path in paths}
        folders = [path.parent for path, name in names.items() if not leads_elsewhere(self.folder, name)]
        for folder in folders:
            with alone_in(folder):
                _removable(folder)
        for folder in folders:
            with alone_in(folder):
                _remove_run(_removable(folder))

    def _check_finished_runs(self, arms: Sequence[Arm]) -> None:
        """Make sure that the runs that are there are ours, whole, and of the data and the model that are there now."""
        present: dict[str, Origin] = {}
        for arm, seed in itertools.product(arms, self.recipe.compare.confirmation):
            job = self.job(arm, seed)
            if job.folder.is_dir() and not self.force:
                refuse_foreign(job.folder, RECORD)
            record = job.outcome()
            if record is None or not record.complete:
                continue
            settings = job.recipe.model_dump_json(include={"data", "model"})
            if settings not in present:
                present[settings] = Origin.of(job.recipe)
            refuse_changed(record, present[settings])

    def _write_manifest(self, status: str, tables: Mapping[str, str]) -> None:
        content = {
            "status": status,
            "recipe": self.recipe.for_record(),
            "compare": self.recipe.compare.model_dump(mode="json"),
            "axes": {key: list(values) for key, values in self.axes},
            "failures": self.failures,
            "files": tables,
            "versions": package_versions(),
        }
        write_text(self.folder / MANIFEST, json.dumps(content, indent=2) + "\n")

    def _write(self) -> None:
        table = {"rows": [row.to_dict() for row in self.rows], "screening": [row.to_dict() for row in self.screening]}
        texts = {PAGE: self.text(), TABLE: json.dumps(table, indent=2) + "\n"}
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        self._write_manifest("running", digests)
        for name, text in texts.items():
            write_text(self.folder / name, text)
        self._write_manifest("failed" if self.failures else "complete", digests)

    def text(self) -> str:
        """The table with what is needed to read it, as Markdown."""
        plan, data = self.recipe.compare, self.recipe.data
        metric = METRICS[tasks()[data.dataset].metric].name
        failures = "".join(f"- {markdown_text(line)}\n" for line in self.failures)
        return (
            f"# {markdown_text(self.recipe.model.name)} on {data.dataset}\n\n{markdown(self.rows)}\n"
            f"Accuracy is the dataset's metric ({metric}) on the test questions, in percent: mean ± standard deviation "
            "over seeds. Base rate is one number for both modules or language model / encoder. The difference is to "
            "Constant LR at its chosen rate, seed by seed, in percentage points, with the 95 % confidence interval of "
            "Student's t over seeds. Bold: the rate chosen by validation accuracy in the screening "
            f"({plan.screen_seeds} of {plan.seeds} seeds), Constant LR's on all seeds. Collapsed: runs in which a "
            "module's rate fell below a hundredth of its base rate, on which the default's do not depend. Loss: the "
            f"last 20 of {self.recipe.train.steps} steps.\n\n## Screening\n\n{markdown(self.screening)}"
            + (f"\n## Runs that failed\n\n{failures}" if failures else "")
        )


def _removable(folder: Path) -> RunRecord:
    """The record of a run that names its files, as all but those of older versions do."""
    record = RunRecord.read(folder)
    if record.files is None:
        raise UserError(f"{folder / RECORD} is of an older version and names no files; choose another --output")
    return record


def _remove_run(record: RunRecord) -> None:
    record.status, record.error = "failed", "removed by --force"
    record.plan(record.files or ())
    if record.files:
        remove_checkpoints(record.folder)
    remove_named(record)


def _outcome(record: RunRecord) -> str:
    if not record.complete:
        return "FAILED"
    return f"validation {100 * record.accuracy('val'):.1f} %, test {100 * record.accuracy('test'):.1f} %"
