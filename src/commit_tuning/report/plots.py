"""The figures of a report, each as inline SVG with a caption that says what was smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from commit_tuning.report.curves import Curve, Group, curve
from commit_tuning.report.figure_style import COLOURS, STYLE, drawn, line_style, to_svg

MODULE_NAMES = {
    "language_model": "Language model (X)",
    "vision": "Vision encoder (S)",
    "audio": "Audio encoder (S)",
    "projector": "Projector",
}


@dataclass(frozen=True)
class Plot:
    """A figure ready for a page.

    Attributes:
        title: Its heading.
        svg: The `<svg>` element.
        caption: What is drawn and how it was smoothed.
        narrow: Whether it is a single panel, not to be stretched over a whole page.
    """

    title: str
    svg: str
    caption: str
    narrow: bool = True


@dataclass(frozen=True)
class Panel:
    """One axes of a figure: a key of the history, over another one if named, drawn for every group."""

    key: str
    title: str
    unit: str
    log: bool = True
    over: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A figure to be drawn: panels side by side, on one vertical scale if `shared`, and the words of its caption."""

    title: str
    panels: tuple[Panel, ...]
    words: str
    smooth: bool = True
    level: float | None = None
    shared: bool = False


def sheets(modules: Sequence[str]) -> list[Sheet]:
    """Return the figures of a report on runs with these modules."""
    names = {module: MODULE_NAMES.get(module, drawn(module)) for module in modules}
    unit = "d_X / d_S"
    return [
        Sheet(
            "Training loss",
            (Panel("loss", "", "nats per answer token"),),
            "Cross-entropy of the training batches (the paper's Figure 4).",
        ),
        Sheet(
            "Balance coefficient",
            (Panel("kappa", "κ as measured (Eq. 4)", unit), Panel("smoothed_kappa", "κ̃, its average (Eq. 7)", unit)),
            "Above 1 an update inclines toward the language model, below 1 toward the encoder; the dotted line marks "
            "balance (the paper's Figure 6).",
            level=1.0,
            shared=True,
        ),
        Sheet(
            "Learning rates",
            tuple(Panel(f"lr/{module}", name, "learning rate") for module, name in names.items()),
            "What each module was trained with; a gap is a rate of zero.",
            smooth=False,
            shared=True,
        ),
        Sheet(
            "Drift",
            tuple(Panel(f"drift/{module}", name, "nats per step") for module, name in names.items()),
            "How far one module's update alone moves the distribution of the answers (Eq. 2-3).",
            shared=True,
        ),
        Sheet(
            "Individual learning steps",
            tuple(Panel(f"h/{module}", name, "H") for module, name in names.items()),
            "H of Eq. 6: the answer logits after one module's update alone, over the size of the inputs (the paper's "
            "Figure 2).",
        ),
        Sheet(
            "Normalised gradients",
            tuple(Panel(f"grad_norm/{m}", name, "|G| / |θ|", over=f"theta_norm/{m}") for m, name in names.items()),
            "Norm of a module's gradient, after clipping, over the norm of its trained parameters (the paper's "
            "Figures 3 and 7).",
        ),
    ]


def draw_curves(groups: Sequence[Group]) -> list[Plot]:
    """Draw every figure that the histories of the groups have values for."""
    drawn = [_draw(sheet, groups) for sheet in sheets(_modules(groups)) if sheet.panels]
    return [plot for plot in drawn if plot is not None]


def draw_accuracy(arms: Sequence[tuple[str, str, Sequence[float]]]) -> Plot:
    """Draw a row of dots per arm: the test accuracy of each seed, and their mean.

    Args:
        arms: Label, method, and accuracies in [0, 1] of each arm, from top to bottom.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.8 + 0.32 * len(arms)), layout="constrained")
        axes = figure.subplots()
        for row, (_, method, shares) in enumerate(arms):
            colour, percents = COLOURS.get(method, "#4d4d4d"), [100 * share for share in shares]
            axes.plot(percents, [row] * len(percents), "o", color=colour, alpha=0.55, markersize=6.5, markeredgewidth=0)
            if percents:
                axes.plot(sum(percents) / len(percents), row, "|", color=colour, markersize=17, markeredgewidth=2.6)
        axes.set_yticks(range(len(arms)), [drawn(label) for label, _, _ in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("test accuracy, percent")
        caption = "A dot is one seed, the bar their mean, on the test questions."
        return Plot("Test accuracy", to_svg(figure, "Test accuracy"), caption)


def _draw(sheet: Sheet, groups: Sequence[Group]) -> Plot | None:
    window = smoothing(groups, sheet.panels[0].key) if sheet.smooth else 1
    panels = [panel for panel in sheet.panels if _curves(panel, groups, window)]
    if not panels:
        return None
    figure = draw_panels([(panel, groups) for panel in panels], window, level=sheet.level, shared=sheet.shared)
    caption = f"{sheet.words} {explanation(groups, sheet.panels[0], window)}"
    return Plot(sheet.title, to_svg(figure, sheet.title), caption, narrow=len(panels) == 1)


def draw_panels(
    panels: Sequence[tuple[Panel, Sequence[Group]]], window: int, *, level: float | None = None, shared: bool = False
) -> Figure:
    """Draw panels side by side, each with the curves of its groups.

    Args:
        panels: What is drawn, and of whom.
        window: Steps in the running mean.
        level: Where a dotted line lies.
        shared: One vertical scale for all.
    """
    with matplotlib.rc_context(STYLE):
        width = 8.2 if len(panels) == 1 else 4.9 * len(panels)
        figure = Figure(figsize=(width, 3.3), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False, sharey=shared)[0]
        for axes, (panel, groups) in zip(every, panels, strict=True):
            for index, line in _curves(panel, groups, window).items():
                style = line_style(groups, index)
                axes.fill_between(line.steps, line.low, line.high, color=style["color"], alpha=0.14, linewidth=0)
                axes.plot(line.steps, line.mean, linewidth=1.8, label=groups[index].label, **style)
            _dress(axes, panel, level)
            if not shared or axes is every[0]:
                axes.set_ylabel(panel.unit)
        for axes, (panel, _) in zip(every, panels, strict=True):
            if panel.log:
                _log_ticks(axes)
    return figure


def _curves(panel: Panel, groups: Sequence[Group], window: int) -> dict[int, Curve]:
    """Return the curve of each group that has one, by the group's index."""
    found = {
        i: curve(group, panel.key, window=window, log=panel.log, over=panel.over) for i, group in enumerate(groups)
    }
    return {index: line for index, line in found.items() if line is not None}


def _dress(axes: Axes, panel: Panel, level: float | None) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel("optimizer step")
    axes.margins(x=0.01)
    axes.locator_params(axis="x", integer=True)
    if panel.log:
        axes.set_yscale("log")
    if level is not None:
        axes.axhline(level, color="#596170", linewidth=1, linestyle=":", zorder=1)


def _log_ticks(axes: Axes) -> None:
    """Label powers of ten; on a short scale what lies between too, so that no axis is without numbers."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)  # a constant has a range around it with this locator, not with those below
    if high < 8 * low:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50 * low else (1.0,), numticks=8))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high < 50 * low:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def smoothing(groups: Sequence[Group], key: str) -> int:
    """Return a twentieth of the steps over which a quantity was measured."""
    rows = (row for group in groups for history in group.histories for row in history)
    return max(1, max((int(row["step"]) for row in rows if row.get(key) is not None), default=0) // 20)


def explanation(groups: Sequence[Group], panel: Panel, window: int) -> str:
    """Explain line and band, and how they were smoothed."""
    fewest, most = (pick(len(group.records) for group in groups) for pick in (min, max))
    seeds = str(most) if fewest == most else f"{fewest} to {most}"
    kind = "geometric mean" if panel.log else "mean"
    over = f"Line: {kind} over {seeds} seeds; band: one standard deviation." if most > 1 else "One seed."
    return over + (f" Smoothed by a running {kind} over {window} steps." if window > 1 else " Not smoothed.")


def _modules(groups: Sequence[Group]) -> list[str]:
    """Return the language model first, then the encoders."""
    keys = {key for group in groups for history in group.histories for row in history[:1] for key in row}
    found = sorted(key.removeprefix("lr/") for key in keys if key.startswith("lr/"))
    return sorted(found, key=lambda module: module != "language_model")
