"""The regulariser study as Markdown tables, as a figure, and inside its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median, stdev
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commit_lab.studies.regularizer_study import NONE, Arm, Regularizer, Setting, known_median
from commit_tuning.errors import UserError
from commit_tuning.report.figure_style import COLOURS, DASHES, STYLE, drawn
from commit_tuning.train.compare.table import NOTHING, difference_text, fixed, markdown_table, percent

BEGIN = "<!-- figures: begin -->"
END = "<!-- figures: end -->"
READINGS = ("lookahead", "previous-step")
_ARM = ("model", "rates set by", "base rate", "regulariser")
_ACCURACY = (*_ARM, "seeds", "validation", "difference [95 % CI]", "test", "difference [95 % CI]")
_EFFECT = (*_ARM, "step norm", "predicted, at least", "gradient norm", "noise of log kappa", "loss gap", "ms per step")


def regularizer_name(regularizer: Regularizer) -> str:
    """Name a regulariser: reading, signed weight, and what differs from a raw step on given answers.

    Example:
        >>> regularizer_name(Regularizer("previous-step", "optimizer", "given", -0.3))
        'drift-penalty, -0.3, optimizer'
    """
    if regularizer == NONE:
        return "none"
    parts = ["drift-penalty" if regularizer.weight < 0 else regularizer.reading, f"{regularizer.weight:+g}"]
    parts += [regularizer.step] if regularizer.step != "raw" else []
    parts += ["sampled answers"] if regularizer.labels == "sampled" else []
    return ", ".join(parts)


def accuracy_table(arms: Sequence[Arm]) -> str:
    """Tabulate accuracy in percent, mean ± standard deviation over seeds, and differences to the arm without."""
    return markdown_table(_ACCURACY, [_accuracy_cells(arm) for arm in arms])


def effect_table(arms: Sequence[Arm]) -> str:
    """Tabulate an arm's other numbers: medians over seeds by module; in brackets the factor to the arm without.

    The factor is a median over the seeds that both have. The loss gap is a mean with its standard deviation.
    """
    without = {arm.setting: arm for arm in arms if arm.regularizer == NONE}
    return markdown_table(_EFFECT, [_effect_cells(arm, without.get(arm.setting)) for arm in arms])


def _arm_cells(arm: Arm) -> list[str]:
    setting = arm.setting
    return [setting.model, setting.method, setting.rates, regularizer_name(arm.regularizer)]


def _accuracy_cells(arm: Arm) -> list[str]:
    cells = [*_arm_cells(arm), str(len(arm.runs))]
    for split, difference in (("validation", arm.validation), ("test", arm.test)):
        cells += [_mean([getattr(run, split) for run in arm.runs], percent), difference_text(difference)]
    return cells


def _effect_cells(arm: Arm, without: Arm | None) -> list[str]:
    gains = {m: known_median(run.predicted_gain[m] for run in arm.runs) for m in arm.runs[0].predicted_gain}
    return [
        *_arm_cells(arm),
        _norms(arm, without, "step_norm"),
        _each(gains.values(), lambda gain: f"{100 * gain:+.2g} %"),
        _norms(arm, without, "grad_norm"),
        _number(known_median(run.kappa_noise for run in arm.runs), "{:.2f}"),
        _mean([run.gap for run in arm.runs], lambda gap: fixed(gap, 3)),
        _number(1000 * median(run.step_seconds for run in arm.runs), "{:.0f}"),
    ]


def _norms(arm: Arm, without: Arm | None, name: str) -> str:
    """Write each module's median norm, with its factor to the arm without the regulariser unless that is zero."""
    cells = []
    for module in getattr(arm.runs[0], name):
        norms = {run.seed: getattr(run, name)[module] for run in arm.runs}
        theirs = {run.seed: getattr(run, name)[module] for run in without.runs} if without else {}
        factor = known_median(norm / theirs[seed] for seed, norm in norms.items() if theirs.get(seed))
        cell = _number(known_median(norms.values()), "{:.3g}")
        show = arm.regularizer != NONE and not math.isnan(factor)
        cells.append(f"{cell} (x{factor:.3g})" if show else cell)
    return " / ".join(cells)


def _each(values: Iterable[float], form: Callable[[float], str]) -> str:
    known = [form(value) for value in values if not math.isnan(value)]
    return " / ".join(known) if known else NOTHING


def _number(value: float, form: str) -> str:
    return NOTHING if math.isnan(value) else form.format(value)


def _mean(values: Sequence[float], form: Callable[[float | None], str]) -> str:
    known = [value for value in values if not math.isnan(value)]
    spread = f" ± {form(stdev(known))}" if len(known) > 1 else ""
    return form(fmean(known)) + spread if known else NOTHING


def into_page(page: str, figures: str) -> str:
    """Replace what is between a page's two markers.

    Raises:
        UserError: The markers are not there once each, in order.
    """
    before, found, rest = page.partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not found or not ends or BEGIN in after or END in after:
        raise UserError(f"the page needs the line {BEGIN} and, below it, the line {END}, once each")
    return f"{before}{BEGIN}\n\n{figures.strip()}\n\n{END}{after}"


def draw(arms: Sequence[Arm]) -> Figure:
    """Draw the difference of test accuracy over the signed weight: a row per model, a panel per reading."""
    shown = [arm for arm in arms if arm.regularizer != NONE and arm.test is not None]
    models = sorted({arm.setting.model for arm in shown})
    if not models:
        raise UserError("no run with a regularizer has the same seed and setting without; run Constant LR beside it")
    smallest = min(abs(arm.regularizer.weight) for arm in shown)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.8, 0.9 + 3.2 * len(models)), layout="constrained")
        grid = figure.subplots(len(models), len(READINGS), squeeze=False, sharex="col", sharey="row")
        for row, model in zip(grid, models, strict=True):
            for axes, reading in zip(row, READINGS, strict=True):
                _panel(axes, [a for a in shown if (a.setting.model, a.regularizer.reading) == (model, reading)])
                axes.set_xscale("symlog", linthresh=smallest)
                axes.set_title(drawn(f"{model}, {reading}"))
            row[0].set_ylabel("test accuracy, points above none")
        for axes in grid[-1]:
            axes.set_xlabel("weight: below 0 a penalty, above 0 the paper's reward")
        named = {label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named, loc="outside lower center", ncols=min(2, len(named)), frameon=False)
    return figure


def _panel(axes: Axes, arms: Sequence[Arm]) -> None:
    axes.axhline(0, color="#8a8f98", linewidth=0.8)
    series: dict[tuple[Setting, str, str], list[Arm]] = {}
    for arm in arms:
        series.setdefault((arm.setting, arm.regularizer.step, arm.regularizer.labels), []).append(arm)
    for (setting, step, labels), group in series.items():
        group.sort(key=lambda arm: arm.regularizer.weight)
        axes.errorbar(*_points(group), **_style(setting, step, labels))


def _points(group: Sequence[Arm]) -> tuple[list[float], list[float], list[float]]:
    """Return weight, difference in points, and half of its interval (none where there is a single seed)."""
    found = [(arm.regularizer.weight, arm.test) for arm in group if arm.test]
    halves = [100 * (test.high - test.mean) if test.high is not None else 0.0 for _, test in found]
    return [weight for weight, _ in found], [100 * test.mean for _, test in found], halves


def _style(setting: Setting, step: str, labels: str) -> dict[str, Any]:
    """Return the colour by what sets the rates, marker by step, dashes and hollow markers for sampled answers."""
    method = "constant" if setting.method == "Constant LR" else "commit-clr"
    label = f"{setting.method} at {setting.rates}, {step}" + (", sampled answers" if labels == "sampled" else "")
    hollow: dict[str, Any] = {"markerfacecolor": "white"} if labels == "sampled" else {}
    return {
        "color": COLOURS[method],
        "marker": "o" if step == "raw" else "s",
        "linestyle": DASHES[int(labels == "sampled")],
        "capsize": 2.5,
        "label": label,
        **hollow,
    }
