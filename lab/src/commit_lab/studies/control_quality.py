"""What a controller did in finished runs: how long a module was held back, and how near kappa came to its target."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pstdev

from commit_lab.studies.kappa_and_loss import SETTLED
from commit_tuning.config import COORDINATED, CoMMITConfig, LiteralEq8, TrustRegion
from commit_tuning.errors import UserError
from commit_tuning.health.alarms import STARVED
from commit_tuning.partition.modules import LANGUAGE_MODEL
from commit_tuning.train.compare.arms import CONSTANT, METHOD_LABELS, rates_text
from commit_tuning.train.compare.table import fixed, markdown_table, percent
from commit_tuning.train.record import RunRecord, run_folders, with_nan


@dataclass(frozen=True)
class Control:
    """One run under one method.

    Attributes:
        arm: Model, method with its controller and target, and base rate: what is repeated over seeds.
        held: Share of the steps at which a module's rate was below a fiftieth of its base rate, or the ratio of two
            rates at the controller's bound.
        distance: |mean of log smoothed kappa - log target| over the last three quarters of the run.
        movement: Standard deviation of log smoothed kappa over the same steps.
        accuracy: On the validation questions.
    """

    arm: tuple[str, str, str]
    held: float
    distance: float
    movement: float
    accuracy: float


def read_control(folders: Iterable[str | Path]) -> list[Control]:
    """Read all complete runs in or below some folders whose method moves both modules and measures kappa.

    Raises:
        UserError: There is none.
    """
    return [control_of(record) for record in steered_runs(folders)]


def steered_runs(folders: Iterable[str | Path]) -> list[RunRecord]:
    """Return the records of those runs.

    Raises:
        UserError: There is none.
    """
    methods = {CONSTANT, *COORDINATED}
    records = [record for record in map(RunRecord.read, run_folders(folders)) if record.complete]
    records = [record for record in records if record.recipe["commit"]["method"] in methods]
    if not records:
        raise UserError("no complete run of constant, commit-clr or commit there; give output folders of 'compare'")
    return records


def control_of(record: RunRecord) -> Control:
    """Summarise the control of one run.

    Raises:
        UserError: It has no history, or a schedule that changes the rates as well.
    """
    train, history = record.recipe["train"], record.history()
    if train["scheduler"] != "constant" or not history:
        raise UserError(f"{record.folder}: a complete history under a constant schedule is needed")
    config = CoMMITConfig(**record.recipe["commit"])
    rate, encoder_rate = record.base_rates
    base = {key: rate if key == f"lr/{LANGUAGE_MODEL}" else encoder_rate for key in history[0] if key.startswith("lr/")}
    controller = config.controller
    label = f"{config.method}, {controller.name}" if config.coordinated else METHOD_LABELS[CONSTANT]
    target, bound = 1.0, math.inf
    if config.coordinated and not isinstance(controller, LiteralEq8):
        target, bound = controller.kappa_target, controller.bound
        scale = f"drift {controller.drift_target}" if isinstance(controller, TrustRegion) else controller.normalization
        label += f", target {target:g}, {scale}"
    held = [_held({key: with_nan(row[key]) / base[key] for key in base}, bound) for row in history]
    log_kappas = [
        math.log(row["smoothed_kappa"]) for row in history[int(SETTLED * len(history)) :] if row["smoothed_kappa"]
    ]
    return Control(
        (Path(record.recipe["model"]["name"]).name, label, rates_text(rate, encoder_rate)),
        fmean(held),
        abs(fmean(log_kappas) - math.log(target)) if log_kappas else math.nan,
        pstdev(log_kappas) if log_kappas else math.nan,
        record.metrics["val"]["accuracy"],
    )


def _held(multipliers: dict[str, float], bound: float) -> bool:
    language = multipliers[f"lr/{LANGUAGE_MODEL}"]
    ratios = [language / value if value else math.inf for value in multipliers.values()]
    at_bound = any(not 1 / bound * (1 + 1e-9) < ratio < bound * (1 - 1e-9) for ratio in ratios)
    return at_bound or min(multipliers.values()) < STARVED


_HEAD = ("model", "method", "base rate", "seeds", "held back, worst seed", "distance", "movement", "validation")


def control_table(runs: Sequence[Control]) -> str:
    """Tabulate the arms in Markdown: medians over seeds, and the worst seed's share of steps held back."""
    arms: dict[tuple[str, str, str], list[Control]] = defaultdict(list)
    for run in runs:
        arms[run.arm].append(run)
    return markdown_table(_HEAD, [_cells(arm, group) for arm, group in sorted(arms.items())])


def _cells(arm: tuple[str, str, str], group: list[Control]) -> tuple[str, ...]:
    distance, movement = (median(getattr(run, name) for run in group) for name in ("distance", "movement"))
    held, accuracy = max(run.held for run in group), fmean(run.accuracy for run in group)
    return (*arm, str(len(group)), percent(held) + " %", fixed(distance, 2), fixed(movement, 2), percent(accuracy))
