"""Figures 2 to 7 from finished comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from commit_lab.reproduce.plan import DYNAMICS_METHODS
from commit_lab.reproduce.published import FIGURES
from commit_tuning.report.curves import Group
from commit_tuning.report.figure_style import save_png
from commit_tuning.report.plots import Panel, draw_panels, explanation, smoothing
from commit_tuning.shown import markdown_text
from commit_tuning.train.compare.arms import METHOD_LABELS, Arm
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.compare.table import NOTHING, markdown_table

_LM, _S = "language_model", "vision"
_STEPS = (Panel(f"h/{_S}", "(a) encoder", "H of Eq. 6"), Panel(f"h/{_LM}", "(b) language model", "H of Eq. 6"))
_KAPPA = Panel("kappa", "κ, Eq. 4", "d_X / d_S")
_GRADIENTS = (
    Panel(f"grad_norm/{_S}", "(a) encoder", "|G| / |θ|", over=f"theta_norm/{_S}"),
    Panel(f"grad_norm/{_LM}", "(b) language model", "|G| / |θ|", over=f"theta_norm/{_LM}"),
)
_LOSS = Panel("loss", "training loss", "nats per answer token")
_RATES = DYNAMICS_METHODS[:3]
_COMMIT = ("constant", "commit-clr", "commit")
_LEGEND_INCHES = 2.0  # an entry
_LABELS = {"constant": "Synced LR"}  # as Section 5 of the paper calls Constant LR


@dataclass(frozen=True)
class CurveFigure:
    """A figure of the paper that shows the dynamics of one model on one task.

    Attributes:
        panels: Side by side.
        methods: Whose curves.
        words: Beginning of the caption.
    """

    panels: tuple[Panel, ...]
    methods: tuple[str, ...]
    words: str


ON_DYNAMICS: dict[str, CurveFigure] = {
    "figure2": CurveFigure(
        (*_STEPS, replace(_KAPPA, title="(c) κ, Eq. 4")),
        _RATES,
        "Individual learning steps and the balance coefficient.",
    ),
    "figure3": CurveFigure(
        (*_GRADIENTS, replace(_LOSS, title="(c) training loss")), _RATES, "Normalised gradients and the training loss."
    ),
    "figure6": CurveFigure((_KAPPA,), DYNAMICS_METHODS, "The balance coefficient."),
    "figure7": CurveFigure(_GRADIENTS, DYNAMICS_METHODS[:5], "Normalised gradients under every method."),
}
ON_LOSSES = {"figure4": "blip2", "figure5": "salmonn"}
"""Figures of the training loss on a model's tasks."""


def draw_dynamics(name: str, plan: CurveFigure, comparison: Comparison, folder: Path) -> str:
    """Draw Figure 2, 3, 6 or 7 into `folder/NAME.png` and return its page as Markdown.

    Args:
        name: The figure's.
        plan: What it shows.
        comparison: That of :meth:`Grid.dynamics`; has run.
        folder: Where to.
    """
    groups = groups_of(comparison, plan.methods)
    window = smoothing(groups, plan.panels[0].key)
    level = 1.0 if plan.panels == (_KAPPA,) else None
    figure = draw_panels([(panel, groups) for panel in plan.panels], window, level=level)
    note = explanation(groups, plan.panels[0], window)
    caption = f"{plan.words} {markdown_text(comparison.recipe.model.name)} on {comparison.recipe.data.dataset}. {note}"
    page = _page(name, figure, folder, caption)
    return page + (f"\n{kappa_table(groups)}" if plan.panels == (_KAPPA,) else "")


def draw_losses(name: str, comparisons: Sequence[tuple[str, Comparison]], folder: Path) -> str:
    """Draw Figure 4 or 5 into `folder/NAME.png` and return its page as Markdown.

    Args:
        name: The figure's.
        comparisons: Title and finished comparison of each task.
        folder: Where to.
    """
    panels = [(replace(_LOSS, title=title), groups_of(found, _COMMIT)) for title, found in comparisons]
    window = smoothing(panels[0][1], _LOSS.key)
    figure = draw_panels(panels, window)
    note = explanation([group for _, groups in panels for group in groups], _LOSS, window)
    return _page(name, figure, folder, f"Training loss, each at its best base rate. {note}")


def groups_of(comparison: Comparison, methods: Sequence[str]) -> list[Group]:
    """Return the chosen arm of each method with its finished runs, in the order of the methods."""
    chosen = {arm.method: arm for arm in comparison.chosen}
    return [_group(comparison, chosen[method], methods) for method in methods if method in chosen]


def _group(comparison: Comparison, arm: Arm, methods: Sequence[str]) -> Group:
    records = [record for _, record in sorted(comparison.results[arm].items()) if record.complete]
    labels = METHOD_LABELS | (_LABELS if "language-lr-up" in methods else {})
    return Group.of(labels[arm.method], arm.method, records)


def kappa_table(groups: Sequence[Group]) -> str:
    """Tabulate kappa under each method: the numbers that the paper writes into Figure 6.

    The standard deviation is of log kappa over the measurements of a run, the distance that of its median from 0; means
    over seeds, so runs that are out of balance on either side do not cancel out.
    """
    rows = []
    for group in groups:
        runs = [[math.log(row["kappa"]) for row in run if row.get("kappa")] for run in group.histories]
        runs = [run for run in runs if len(run) > 1]
        if not runs:
            rows.append([group.label, NOTHING, NOTHING, NOTHING, "0"])
            continue
        spread = statistics.fmean(statistics.stdev(run) for run in runs)
        middles = [statistics.median(run) for run in runs]
        middle, distance = statistics.fmean(middles), statistics.fmean(map(abs, middles))
        rows.append([group.label, f"{math.exp(middle):.3g}", f"{spread:.2f}", f"{distance:.2f}", str(len(runs))])
    return markdown_table(["Method", "Median κ", "SD of log κ", "Distance of log κ from 0", "Seeds"], rows)


def _page(name: str, figure: Figure, folder: Path, caption: str) -> str:
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = min(len(handles), int(figure.get_figwidth() // _LEGEND_INCHES))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
    save_png(figure, folder / f"{name}.png")
    return f"![{caption}]({name}.png)\n\n{caption}\n\nIn the paper: {FIGURES[name]}\n"
