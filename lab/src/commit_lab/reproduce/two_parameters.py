"""Figure 1 of the paper, computed: insufficient learning and oscillation of a model with two parameters.

The paper draws by hand how training goes when one module learns too little, and when the two take turns, over contours
of kappa. Here the contours are kappa of the plain gradient step at every point of the plane, and the trajectories are
runs of gradient descent on minibatches under the library's own controllers.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from commit_lab.reproduce.two_parameter_model import (
    BEST,
    CLOSE,
    LAST,
    Setting,
    Trajectory,
    best_loss,
    expected,
    kappa_field,
    trajectory,
)
from commit_tuning.config import Bounded, CoMMITConfig
from commit_tuning.report.figure_style import COLOURS, STYLE, save_png
from commit_tuning.storage import write_text


@dataclass(frozen=True)
class Arm:
    """One line of the figure.

    Attributes:
        label: Its name.
        config: Its method.
        style: Of its line.
        equal_rates: Whether it runs at equal base rates, whatever the panel's.
    """

    label: str
    config: CoMMITConfig
    style: Mapping[str, Any]
    equal_rates: bool = False


ARMS = (  # in the order in which they are drawn; controllers have the colours of `lab/reports/stability.md`
    Arm(
        "Constant LR", CoMMITConfig(method="constant"), {"color": COLOURS["constant"], "linewidth": 2.6, "alpha": 0.75}
    ),
    Arm(
        "Constant LR, equal rates",
        CoMMITConfig(method="constant"),
        {"color": COLOURS["constant"], "linewidth": 1.6, "linestyle": (0, (4, 1.6))},
        equal_rates=True,
    ),
    Arm(
        "Eq. 8 as printed",
        CoMMITConfig.paper(method="commit-clr", regularizer=None),
        {"color": COLOURS["commit"], "linewidth": 1.6},
    ),
    Arm("Eq. 8 bounded", CoMMITConfig(controller=Bounded()), {"color": COLOURS["commit-clr"], "linewidth": 1.4}),
    Arm("Trust region, our default", CoMMITConfig(), {"color": COLOURS["language-cd"], "linewidth": 1.4}),
)


@dataclass(frozen=True)
class Panel:
    """One dilemma.

    Attributes:
        key: Its letter.
        title: What it is called.
        subtitle: How it comes about.
        setting: Base rates and the rest.
        remarks: Text and where it stands in the plane, (s, x).
    """

    key: str
    title: str
    subtitle: str
    setting: Setting
    remarks: Sequence[tuple[str, tuple[float, float]]] = ()


CAPTION = """\
Two parameters, gradient descent from one start on minibatches of 16 out of 64 samples. Colour and dashed lines: kappa
of a step on all samples at the panel's base rates. The best loss is {best:.4f} nats. Tables: {seeds} seeds, of which
the picture shows the first; mean loss and geometric mean of kappa over the last {last} steps, and the median step at
which the loss is within 10 % of the best for the first time, and for good. Every method has its default windows and
intervals.
"""
NOTES = """\
- Eq. 8 can at most double a base rate, as printed and bounded alike: in (a) it slows the language model down, and that
  does not make up for an encoder's rate that is far too small. As printed it comes to a stop with a module frozen.
- The trust region goes the same way whatever the base rates are. It ends close to Constant LR at equal rates, which
  happen to suit this model: what it saves is the search for them.
- The trust region's kappa is not at 1 yet; in runs of 800 steps it is 0.5 to 1.4 over the second half.
- Its budget is a share of the loss, and gradients vanish at the best point while the loss does not. With the noise of
  minibatches that is harmless here; without it, (c), the rates grow: the run leaves the best point again before step
  109, and in one of 400 steps it is lost.
"""
PANELS = (
    Panel(
        "a",
        "Insufficient learning",
        "the encoder's base rate is a 20th of the language model's",
        Setting(encoder_rate=0.01),
        [
            (
                "x falls to 0 before the encoder has learnt anything,\nand with x goes the encoder's gradient",
                (4.85, -0.28),
            )
        ],
    ),
    Panel(
        "b",
        "Oscillation",
        "the encoder's base rate is 40 times the language model's",
        Setting(encoder_rate=8.0),
        [
            ("the encoder leaps from one side\nof the valley to the other", (4.85, 1.34)),
            ("Eq. 8 as printed freezes one module, then\nthe other, and leaves the picture", (4.85, -0.28)),
        ],
    ),
)
NO_NOISE = Panel("c", "Without noise", "equal base rates, all 64 samples at every step", Setting(batch=None, steps=160))
SPAN_X, SPAN_S, GRID = (-0.4, 1.5), (-1.2, 5.0), 300  # of the picture
DECADES = range(-6, 7)  # of kappa
REMARK_BOX = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "boxstyle": "round,pad=0.35"}
Results = Mapping[str, Mapping[str, Sequence[Trajectory]]]  # panel to arm to a run for each seed


def results(seeds: int = 5) -> Results:
    """Compute every trajectory with seeds 0, 1, ...; the picture shows seed 0."""
    return {panel.key: {arm.label: _runs(arm, panel.setting, seeds) for arm in ARMS} for panel in (*PANELS, NO_NOISE)}


def _runs(arm: Arm, setting: Setting, seeds: int) -> list[Trajectory]:
    rate = setting.language_rate if arm.equal_rates else setting.encoder_rate
    count = 1 if setting.batch is None else seeds
    return [trajectory(arm.config, replace(setting, encoder_rate=rate, seed=seed)) for seed in range(count)]


def draw(found: Results) -> Figure:
    """Draw a panel per dilemma: trajectories of seed 0 over the contours of kappa at the panel's base rates."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(13.4, 6.6), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for axes, panel in zip(both, PANELS, strict=True):
            filled = _draw_kappa(axes, panel.setting)
            for arm in ARMS:
                _draw_trajectory(axes, arm, found[panel.key][arm.label][0])
            _draw_landmarks(axes, panel)
            axes.set(
                title=f"({panel.key}) {panel.title}\n{panel.subtitle}", xlabel="encoder s: what it makes of the picture"
            )
        both[0].set_ylabel("language model x: how much it trusts its input")
        bar = figure.colorbar(
            filled, ax=both, fraction=0.02, pad=0.01, ticks=DECADES[::2], format=FuncFormatter(_power)
        )
        bar.outline.set_visible(False)
        bar.set_label("κ at the base rates\n← encoder moves the answers | language model does →", fontsize=10)
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _plane() -> tuple[Tensor, Tensor]:
    """Return the parameters x and s at every point of the picture, each [GRID, GRID]; no x is exactly 0."""
    x, s = torch.meshgrid(*(torch.linspace(*span, GRID).double() for span in (SPAN_X, SPAN_S)), indexing="ij")
    return x, s


def _draw_kappa(axes: Axes, setting: Setting) -> ContourSet:
    """Draw kappa in decades: amber where the language model moves the answers, teal where the encoder does."""
    x, s = _plane()
    log_kappa = kappa_field(x, s, setting).log10().clamp(DECADES[0], DECADES[-1])
    steep = torch.stack(torch.gradient(log_kappa)).abs().sum(0) > 0.5  # kappa is 0 or without end along a line
    smooth = log_kappa.masked_fill(steep, math.nan)
    filled = axes.contourf(s, x, log_kappa, levels=DECADES, cmap="BrBG_r", alpha=0.4)
    lines = axes.contour(
        s, x, smooth, levels=DECADES[2:-2:2], colors="#7b8290", linewidths=0.8, linestyles=[(0, (5, 3))]
    )
    axes.clabel(lines, fmt=_power, fontsize=9, colors="#3b4252")
    return filled


def _draw_trajectory(axes: Axes, arm: Arm, run: Trajectory) -> None:
    xs, ss = zip(*run.points, strict=True)
    axes.plot(ss, xs, label=arm.label, solid_joinstyle="round", **arm.style)
    axes.plot(ss[-1], xs[-1], "o", color=arm.style["color"], markersize=8, markeredgecolor="white", zorder=5)


def _draw_landmarks(axes: Axes, panel: Panel) -> None:
    """Start, best point, the edge of what counts as close, and what to look at."""
    x, s = _plane()
    loss = expected().loss(x, s).numpy()
    axes.contour(s, x, loss, levels=[CLOSE * best_loss()], colors="black", linewidths=1.0)
    axes.plot(*panel.setting.start[::-1], "o", color="white", markeredgecolor="black", markersize=9, zorder=6)
    axes.plot(
        *BEST[::-1],
        "*",
        color="black",
        markeredgecolor="white",
        markersize=17,
        zorder=6,
        label="best (outline: loss within 10 % of it)",
        linestyle="none",
    )
    axes.annotate("start", panel.setting.start[::-1], (0, 10), textcoords="offset points", ha="center")
    for text, place in panel.remarks:
        axes.text(*place, text, fontsize=9.5, color="#1f2430", linespacing=1.3, ha="right", bbox=REMARK_BOX, zorder=7)
    axes.set(xlim=SPAN_S, ylim=SPAN_X)


def _power(decade: float, _: object = None) -> str:
    return "κ = 1" if decade == 0 else f"$10^{{{decade:.0f}}}$"


def markdown(found: Results) -> str:
    """Write a caption and each trajectory's result: a table for each panel, with the best arm."""
    seeds = max(len(runs) for arms in found.values() for runs in arms.values())
    tables = [_table(panel, found[panel.key]) for panel in (*PANELS, NO_NOISE)]
    caption = CAPTION.format(best=best_loss(), last=LAST, seeds=seeds)
    return "\n".join([caption, *tables, NOTES])


def _table(panel: Panel, arms: Mapping[str, Sequence[Trajectory]]) -> str:
    rows = [
        f"**({panel.key}) {panel.title}: {panel.subtitle}**\n",
        "| trajectory | loss at the end | first within 10 % | for good | kappa at the end |",
    ]
    rows.append("| --- | --- | --- | --- | --- |")
    for label, runs in arms.items():
        losses = statistics.fmean(run.final_loss for run in runs)
        cells = (f"{losses:.4g}", _steps([r.arrived for r in runs]), _steps([r.settled for r in runs]), _kappa(runs))
        rows.append(f"| {label} | {' | '.join(cells)} |")
    best = min(arms, key=lambda label: statistics.fmean(run.final_loss for run in arms[label]))
    return "\n".join([*rows, f"\nLowest loss at the end: {best}.\n"])


def _steps(steps: Sequence[int | None]) -> str:
    """Write the median, and the number of runs that arrived if not all did."""
    there = [step for step in steps if step is not None]
    if not there:
        return "never"
    return f"{statistics.median(there):g}" + ("" if len(there) == len(steps) else f" ({len(there)} of {len(steps)})")


def _kappa(runs: Sequence[Trajectory]) -> str:
    kappas = [run.final_kappa for run in runs if not math.isnan(run.final_kappa)]
    return f"{statistics.geometric_mean(kappas):.2g}" if len(kappas) > len(runs) / 2 else "none: a module stands still"


def figure1(folder: Path, seeds: int = 5) -> str:
    """Write figure1.png and figure1.json into a folder that is there, in seconds; returns its page as Markdown."""
    found = results(seeds)
    save_png(draw(found), folder / "figure1.png", metadata={"Software": None})
    write_text(folder / "figure1.json", json.dumps(_record(found), indent=1, allow_nan=False) + "\n")
    return f"![Figure 1](figure1.png)\n\n{markdown(found)}"


def _record(found: Results) -> dict[str, Any]:
    """Return settings, the drawn trajectories' points and every run's result, as JSON values."""
    panels = {
        panel.key: {
            "title": panel.title,
            "setting": asdict(panel.setting),
            "trajectories": {
                label: {"points": runs[0].points, "runs": [_outcome(run) for run in runs]}
                for label, runs in found[panel.key].items()
            },
        }
        for panel in (*PANELS, NO_NOISE)
    }
    return {"best": {"x": BEST[0], "s": BEST[1], "loss": best_loss()}, "panels": panels}


def _outcome(run: Trajectory) -> dict[str, float | None]:
    return {
        "final_loss": run.final_loss if math.isfinite(run.final_loss) else None,
        "steps_to_within_10_percent": run.arrived,
        "steps_to_within_10_percent_for_good": run.settled,
        "final_kappa": None if math.isnan(run.final_kappa) else run.final_kappa,
    }
