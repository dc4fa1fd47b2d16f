"""Hypotheses 4.1 and 4.2 of the paper over finished runs: table, sentence and figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commit_lab.studies.kappa_and_loss import RunSummary, task_name
from commit_lab.studies.rank_correlation import Estimate, with_intervals
from commit_tuning.report.figure_style import COLOURS, STYLE
from commit_tuning.train.compare.arms import METHOD_LABELS
from commit_tuning.train.compare.table import NOTHING

COLUMNS = ("spread", "jumps", "distance", "mean_loss", "half_loss", "final_loss")
WORDS = {
    "spread": "standard deviation of log κ",
    "jumps": "jumps of log κ",
    "distance": "|median log κ|",
    "mean_loss": "mean training loss",
    "half_loss": "loss at half of the run",
    "final_loss": "final loss",
}
CONTROLS = ("nothing", "base rates", "base rates and seed", "base rates, seed and rates used")
HEADLINE = 2  # of CONTROLS: a coordinated run has the base rates, the start and the batches of its constant rival


@dataclass(frozen=True)
class Hypothesis:
    """A claim of the paper as pairs of (what kappa did, what should be higher with it); the first is the headline."""

    name: str
    claim: str
    pairs: tuple[tuple[str, str], ...]


HYPOTHESES = (
    Hypothesis(
        "4.1",
        "an oscillating κ slows training",
        (("spread", "mean_loss"), ("spread", "half_loss"), ("jumps", "mean_loss"), ("jumps", "half_loss")),
    ),
    Hypothesis("4.2", "κ far from 1 means insufficient training", (("distance", "final_loss"),)),
)
PAIRS = tuple(pair for hypothesis in HYPOTHESES for pair in hypothesis.pairs)


@dataclass(frozen=True)
class Findings:
    """The answer.

    Attributes:
        runs: What it rests on.
        estimates: For each of `PAIRS`, one rank correlation for each of `CONTROLS`.
    """

    runs: tuple[RunSummary, ...]
    estimates: dict[tuple[str, str], tuple[Estimate, ...]]


def examine(runs: Sequence[RunSummary], draws: int = 1000) -> Findings:
    """Correlate what kappa did with what the loss did, within tasks, under each set of controls.

    Args:
        runs: Any number, of any tasks; a task with a single run adds nothing.
        draws: Bootstrap samples of the intervals.
    """
    values = np.array([[getattr(run, column) for column in COLUMNS] for run in runs])
    indices = [(COLUMNS.index(x), COLUMNS.index(y)) for x, y in PAIRS]
    tasks, arms = [run.task for run in runs], [run.arm for run in runs]
    rates, seeds = [(run.task, run.rates) for run in runs], [(run.task, run.seed) for run in runs]
    most = max(len(run.log_rates) for run in runs)
    used = np.array([[*run.log_rates, *[0.0] * (most - len(run.log_rates))] for run in runs])
    levels = [
        with_intervals(
            values, indices, clusters=arms, strata=tasks, factors=factors, covariates=covariates, draws=draws
        )
        for factors, covariates in (((), None), ((rates,), None), ((rates, seeds), None), ((rates, seeds), used))
    ]
    by_pair = zip(*levels, strict=True)
    return Findings(tuple(runs), dict(zip(PAIRS, by_pair, strict=True)))


def markdown(findings: Findings) -> str:
    """Write the rank correlations as a Markdown table."""
    head = ["hypothesis", "of κ", "of the loss", *(f"given {control}" for control in CONTROLS)]
    lines = [head, ["---"] * len(head)]
    for hypothesis in HYPOTHESES:
        for x, y in hypothesis.pairs:
            cells = [estimate_text(estimate) for estimate in findings.estimates[x, y]]
            lines.append([hypothesis.name, WORDS[x].replace("|", r"\|"), WORDS[y], *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def sentence(hypothesis: Hypothesis, findings: Findings) -> str:
    """Say in one sentence what the runs show about a hypothesis."""
    x, y = hypothesis.pairs[0]
    estimate = findings.estimates[x, y][HEADLINE]
    arms, tasks = (len({getattr(run, name) for run in findings.runs}) for name in ("arm", "task"))
    basis = f"{_count(len(findings.runs), 'run')} of {_count(arms, 'arm')} on {_count(tasks, 'task')}"
    start = f"Hypothesis {hypothesis.name} ({hypothesis.claim})"
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.value)):
        return f"{start}: not decided; {basis} leave too little variation at equal {CONTROLS[HEADLINE]}."
    verdict = "supported" if estimate.low > 0 else "contradicted" if estimate.high < 0 else "not shown"
    return (
        f"{start}: {verdict}; over {basis}, at equal {CONTROLS[HEADLINE]}, the rank correlation of {WORDS[x]} with "
        f"{WORDS[y]} is {estimate_text(estimate)}, where the hypothesis asks for a positive one."
    )


def estimate_text(estimate: Estimate) -> str:
    """Write a correlation with its interval; a dash where there is none."""
    if not math.isfinite(estimate.value):
        return NOTHING
    interval = f" [{estimate.low:+.2f}, {estimate.high:+.2f}]" if math.isfinite(estimate.low) else ""
    return f"{estimate.value:+.2f}{interval}"


def draw(findings: Findings) -> Figure:
    """Draw one row per task, one panel per hypothesis, one dot per run."""
    tasks = list(dict.fromkeys(run.task for run in findings.runs))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.8, 0.5 + 3.4 * len(tasks)), layout="constrained")
        grid = figure.subplots(len(tasks), len(HYPOTHESES), squeeze=False)
        for row, task in zip(grid, tasks, strict=True):
            runs = [run for run in findings.runs if run.task == task]
            for axes, hypothesis in zip(row, HYPOTHESES, strict=True):
                _scatter(axes, runs, *hypothesis.pairs[0])
            row[0].set_title(task_name(task), fontsize=10)
        for axes, hypothesis in zip(grid[0], HYPOTHESES, strict=True):
            title = f"Hypothesis {hypothesis.name}: {hypothesis.claim}"
            axes.set_title(f"{title}\n{axes.get_title(loc='left')}".strip(), fontsize=10)
        by_label = {
            label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            by_label.values(), by_label, loc="outside lower center", ncols=min(5, len(by_label)), frameon=False
        )
    return figure


def _scatter(axes: Axes, runs: Sequence[RunSummary], x: str, y: str) -> None:
    for method in dict.fromkeys(run.method for run in runs):
        chosen = [run for run in runs if run.method == method]
        points = [getattr(run, x) for run in chosen], [getattr(run, y) for run in chosen]
        axes.plot(
            *points,
            "o",
            color=COLOURS.get(method, "#4d4d4d"),
            alpha=0.65,
            markersize=5.5,
            markeredgewidth=0,
            label=METHOD_LABELS.get(method, method),
        )
    axes.set_xlabel(WORDS[x])
    axes.set_ylabel(f"{WORDS[y]}, nats per token")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
