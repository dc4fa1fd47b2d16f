"""When the loop of Eq. 7-8 settles, rings or explodes: `python lab/benchmarks/controller_stability.py`.

Prints the tables of `lab/reports/stability.md` and draws its picture. Every run is simulated by
`commit_lab.studies.simulate` (kappa = rho (lr_X / lr_S)^p with noise) with the windows and controllers of the package,
from an empty window on.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stability_picture import draw

from commit_lab.studies.simulate import ENCODER, Plant, Verdict, judge, simulate, verdict
from commit_tuning.config import ESTIMATORS, Bounded, CoMMITConfig, Compensated, LiteralEq8, Probe, TrustRegion
from commit_tuning.control.base import KappaController
from commit_tuning.control.equation8 import learning_rate_multipliers
from commit_tuning.control.stability import effective_span, feedback, largest_root, window_span
from commit_tuning.train.compare.table import NOTHING

RUNS = 100
STEADY = (Bounded, Compensated, TrustRegion)
BOUND, FAR = 1000.0, 1e9
CRITICAL = 0.3238  # gain x W of a critically damped integral controller: max of y^2 / (e^y - 1), halved


class PlainIntegral(KappaController):
    """The rival of `compensated`: r -= gain x log smoothed kappa, clamped."""

    def __init__(self, config: CoMMITConfig, gain: float) -> None:
        super().__init__(config, (ENCODER,))
        self._gain, self._ratio = gain, 0.0

    def multipliers(self, step: int) -> dict[str, float]:
        """Return ones during the warm-up, then the integral of the error."""
        del step
        window, limit = self._windows[ENCODER], math.log(BOUND)
        if len(window) >= math.ceil(self._config.kappa_window / 2):
            self._ratio = min(max(self._ratio - self._gain * math.log(window.value), -limit), limit)
        return learning_rate_multipliers({ENCODER: math.exp(-self._ratio)})


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("lab/reports/images/controller-stability.png"))
    parser.add_argument("--runs", type=int, default=RUNS, help="simulated runs per cell, seeds 0, 1, ...")
    settings = parser.parse_args()
    roots()
    shares = collapse(settings.runs)
    grid(settings.runs // 2)
    filling(settings.runs)
    exponents(settings.runs // 2)
    draw(settings.picture, shares)


def roots() -> None:
    """Print the largest root of the linearised loop over the span of the window."""
    spans = (1, 1.2, 4 / 3, 1.5, 1.9, 2, 2.1, 2.5, 3, 5, 10, 20)
    title("Largest root over W, the learning-rate updates that the window spans (below 1 settles)")
    table(
        ["loop", *(f"{span:.3g}" for span in spans)],
        [
            [name, *(f"{largest_root(span, factor):.2f}" for span in spans)]
            for name, factor in (
                ("Eq. 8 (`literal`, `bounded`), p = 2", 2.0),
                ("Eq. 8, p = 1", 1.0),
                ("`compensated`, p = 2", 0.0),
                ("`compensated`, p = 1", -0.5),
                ("`compensated`, p = 0.5", -0.75),
            )
        ],
    )


def collapse(runs: int) -> dict[str, dict[int, float]]:
    """Print the share of literal runs that collapse, over windows; return estimator to window to share."""
    windows = (10, 15, 20, 30, 50, 100)
    title(f"`literal`: share of {runs} runs in which a rate falls below a hundredth (1000 steps, N_lr 10, rho 4)")
    shares = {
        estimator: {
            size: verdict(
                runs, controller=LiteralEq8(), kappa_estimator=estimator, kappa_window=size, probe=Probe(interval=1)
            ).collapsed
            for size in windows
        }
        for estimator in ESTIMATORS
    }
    table(["N_kappa", *windows], [[name, *(f"{s:.2f}" for s in row.values())] for name, row in shares.items()])
    return shares


def grid(runs: int) -> None:
    """Print verdicts of every controller over windows, intervals and estimators."""
    title(f"Every controller over its settings ({runs} runs of 1000 steps, rho 4, target 1, bound 10)")
    rows = []
    for (probe, update), size, estimator in itertools.product(
        ((1, 10), (5, 10), (5, 50), (10, 5)), (10, 20, 50), ESTIMATORS
    ):
        base = {
            "kappa_window": size, "probe": Probe(interval=probe), "lr_update_interval": update,
            "kappa_estimator": estimator,
        }  # fmt: skip
        literal = CoMMITConfig(controller=LiteralEq8(), **base)
        collapsed = verdict(runs, **base, controller=LiteralEq8()).collapsed
        found = [verdict(runs, **base, controller=kind(bound=10.0)) for kind in STEADY]
        span, effective = window_span(literal), effective_span(literal)
        shown = f"{span:.3g}" + (f" ({effective:.2g})" if effective < span else "")
        root = f"{largest_root(effective, feedback(literal)):.2f}"
        outcomes = [cell for each in found for cell in cells(each)]
        rows.append([probe, update, size, estimator, shown, root, f"{collapsed:.2f}", *outcomes])
    table(
        ["probe", "N_lr", "N_kappa", "estimator", "W (in effect)", "root", "`literal` collapsed"]
        + [f"{c} {m}" for c in (f"`{kind.name}`" for kind in STEADY) for m in ("confined", "residual", "ringing")],
        rows,
    )


def filling(runs: int) -> None:
    """Print what the filling window and the first update do by themselves, with a bound that is out of reach."""
    rhos = (1.0, 4.0, 30.0, 1000.0)
    title(
        f"Filling window: share of {runs} runs that collapse (W = 3: geometric mean of 30, a probe every step, N_lr 10)"
    )
    arms = {
        "`literal`: acts from the first update on": LiteralEq8(),
        "Eq. 8 after half of the window": Bounded(bound=FAR, warmup=15),
        "Eq. 8 after the whole window": Bounded(bound=FAR, warmup=30),
        "`compensated` after half of the window": Compensated(bound=FAR),
        "`trust-region`: acts from the first measurement on": TrustRegion(bound=FAR),
    }
    rows = []
    for name, controller in arms.items():
        base = {"controller": controller, "kappa_window": 30, "probe": Probe(interval=1)}
        rows.append([name, *(f"{verdict(runs, plant=Plant(rho=rho), **base).collapsed:.2f}" for rho in rhos)])
    table(["first update", *(f"rho {rho:g}" for rho in rhos)], rows)


def exponents(runs: int) -> None:
    """Print controllers on plants with another power of the rate, and with a rho that moves by four decades."""
    title(f"Distance from the target and ringing, by plant ({runs} runs of 1000 steps, default window, bound 1000)")
    config = CoMMITConfig()
    gain = CRITICAL / window_span(config)
    rows = []
    for exponent, change in itertools.product((0.5, 1.0, 2.0, 3.0), (0.0, math.log(1e4))):
        plant = Plant(rho=0.05, exponent=exponent, change=change)
        found = [verdict(runs, plant=plant, controller=kind(bound=BOUND)) for kind in STEADY]
        seeds = range(runs)
        rivals = [simulate(config, plant, seed=seed, controller=PlainIntegral(config, gain)) for seed in seeds]
        found.append(judge(config, rivals))
        ringing = [NOTHING if change else f"{v.ringing:.2f}" for v in found]  # following rho moves the ratio as well
        rows.append([f"{exponent:g}", f"{change / math.log(10):g}", *(f"{v.residual:.2f}" for v in found), *ringing])
    names = (*(f"`{kind.name}`" for kind in STEADY), f"plain integral, gain {gain:.3f}")
    table(["p", "decades that rho rises", *(f"{n} {m}" for m in ("residual", "ringing") for n in names)], rows)


def cells(found: Verdict) -> list[str]:
    """Write confined, residual and ringing as text."""
    return [f"{found.confined:.2f}", f"{found.residual:.2f}", f"{found.ringing:.2f}"]


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n**{text}**\n")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, line))} |", flush=True)


if __name__ == "__main__":
    main()
