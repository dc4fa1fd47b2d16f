"""The picture of `lab/reports/stability.md`: roots, a simulated run of each controller, collapses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from commit_lab.studies.simulate import Plant, simulate
from commit_tuning.config import Bounded, CoMMITConfig, Compensated, LiteralEq8, Probe
from commit_tuning.control.stability import largest_root
from commit_tuning.report.figure_style import COLOURS, STYLE

LITERAL, BOUNDED, COMPENSATED, ROSE = (COLOURS[n] for n in ("commit", "commit-clr", "feature-cd", "language-cd"))
SOFT = "#596170"
PLANT = Plant(rho=0.05)


def draw(path: Path, shares: Mapping[str, Mapping[int, float]]) -> None:
    """Draw three panels in a row, written as PNG.

    Args:
        path: Where to.
        shares: Estimator to window to the share of literal runs that collapse.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13.2, 3.9), layout="constrained")
        draw_roots(axes[0])
        draw_runs(axes[1])
        draw_shares(axes[2], shares)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def draw_roots(axes: Any) -> None:
    """Draw the largest root over the span of the window."""
    spans = [1 + step / 50 for step in range(451)]
    axes.axhspan(1, 2.1, color=LITERAL, alpha=0.07, linewidth=0)
    axes.axhline(1, color=SOFT, linewidth=0.8)
    axes.plot(spans, [largest_root(span, 2.0) for span in spans], color=BOUNDED, linewidth=2)
    axes.plot(
        spans, [largest_root(span, -0.5) for span in spans], color=COMPENSATED, linewidth=2, linestyle=(0, (5, 2))
    )
    axes.plot(spans, [0.0] * len(spans), color=COMPENSATED, linewidth=2)
    axes.text(1.7, 1.55, "explodes", color=LITERAL)
    axes.annotate(
        "W = 2 rings for ever", (2, 1), (2.6, 1.22), color=SOFT, arrowprops={"arrowstyle": "-", "color": SOFT}
    )
    axes.set_xticks((1, 2, 4, 6, 8, 10))
    axes.text(6.2, 1.03, "Eq. 8, p = 2", color=BOUNDED, va="bottom")
    axes.text(6.2, 0.78, "compensated, p = 1", color=COMPENSATED, va="top")
    axes.text(6.2, 0.04, "compensated, p = 2", color=COMPENSATED)
    axes.set(
        title="Largest root of the loop", xlabel="W, updates that the window spans", xlim=(1, 10), ylim=(-0.04, 2.1)
    )


def draw_runs(axes: Any) -> None:
    """Draw kappa, without its noise, in one simulated run of each controller."""
    runs = {
        "literal, W = 2": (LITERAL, CoMMITConfig(controller=LiteralEq8(), kappa_window=20, probe=Probe(interval=1))),
        "bounded, W = 10": (BOUNDED, CoMMITConfig(controller=Bounded())),
        "compensated, W = 10": (COMPENSATED, CoMMITConfig(controller=Compensated())),
        "trust-region, W = 10": (ROSE, CoMMITConfig()),
    }
    for name, (colour, config) in runs.items():
        run = simulate(config, PLANT, steps=600)
        kappas = list(map(math.exp, run.log_kappas))
        axes.step(run.steps, kappas, color=colour, label=name, linewidth=1.8, where="post")
    axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set(title="One simulated run: κ without its noise", xlabel="optimizer step", yscale="log", ylim=(2e-3, 5e2))
    axes.legend(frameon=False, fontsize=9.5, loc="upper right")


def draw_shares(axes: Any, shares: Mapping[str, Mapping[int, float]]) -> None:
    """Draw how often the literal controller collapses, by estimator."""
    for (name, row), colour, marker in zip(shares.items(), (LITERAL, BOUNDED, ROSE), "os^", strict=True):
        axes.plot(list(row), list(row.values()), color=colour, marker=marker, markersize=5, label=name, linewidth=1.8)
    axes.set_xscale("log")
    axes.set_xticks(windows := list(next(iter(shares.values()))), [str(size) for size in windows])
    axes.minorticks_off()
    axes.set(
        title="literal: share of runs that collapse", xlabel="N_kappa (a probe every step, N_lr 10)", ylim=(-0.03, 1.03)
    )
    axes.legend(frameon=False, fontsize=9.5)
