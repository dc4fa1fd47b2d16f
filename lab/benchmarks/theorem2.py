"""Theorem 2 by simulation: `python lab/benchmarks/theorem2.py [--output FILE] [--runs RUNS...]`.

Minimises a function that is not convex and whose L, R and f* are known, with Adam at beta_1 = 0, and compares the
squared gradient norm with the bounds; then the same with other lambda and h; then lambda_t along simulated paths of
kappa and, with --runs, along those of finished runs. Prints Markdown tables, writes one picture.
"""

import argparse
import math
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from commit_lab.studies import convergence
from commit_lab.studies.convergence import Adam, Problem
from commit_lab.studies.simulate import simulate
from commit_tuning.config import Bounded, CoMMITConfig, LiteralEq8, Probe
from commit_tuning.errors import UserError
from commit_tuning.report.figure_style import STYLE
from commit_tuning.train.record import load_records, writable_folder

RATES = (1e-3, 1e-2, 1e-1)
CHECKED = (100, 1000, 10_000, 100_000)
BOUNDS = {
    "Eq. 13": (convergence.equation_13, "#d55e00", "-"),
    "Eq. 26": (convergence.equation_26, "#e69f00", "--"),
    "Défossez et al.": (convergence.proven_bound, "#0072b2", "-"),
}
CASE_RATE, CASE_STEPS = 1e-2, 20_000
LOOPS = {
    "simulated, literal, arithmetic mean of 100": CoMMITConfig(
        controller=LiteralEq8(), kappa_estimator="arithmetic", kappa_window=100, probe=Probe(interval=1)
    ),
    "simulated, literal, geometric mean of 20": CoMMITConfig(controller=LiteralEq8(), probe=Probe(interval=1)),
    "simulated, bounded, geometric mean of 20": CoMMITConfig(controller=Bounded()),
    "simulated, default": CoMMITConfig(),
}


def main() -> None:
    """Print the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("lab/reports/images/theorem2.png"))
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="folders of finished runs")
    arguments = parser.parse_args()
    try:
        finished = real_paths(arguments.runs)
        writable_folder(arguments.output.parent)
    except UserError as error:
        sys.exit(f"theorem2.py: error: {error}")
    problem = Problem()
    print(f"d = {problem.dimension}, L = {problem.lipschitz:g}, F(x_0) - f* = {problem.gap:.1f}, 32 runs.\n")
    norms = {rate: convergence.gradient_norms(problem, Adam(rate=rate), CHECKED[-1]) for rate in RATES}
    print_rates(problem, norms)
    print_cases(problem)
    print_factors(finished)
    draw(problem, norms, arguments.output)


def print_rates(problem: Problem, norms: dict[float, convergence.Array]) -> None:
    """Print the bounds at lambda = 1 and h = 0."""
    print("| alpha | K | mean over x_0 ... x_K-1 | at x_K-1 | " + " | ".join(BOUNDS) + " |")
    print("| --- |" + " --- |" * (3 + len(BOUNDS)))
    for rate, values in norms.items():
        for steps in CHECKED:
            mean = values[:steps].mean()
            bounds = [verdict(bound(problem, Adam(rate=rate), steps), mean) for bound, _, _ in BOUNDS.values()]
            print(f"| {rate:g} | {steps} | {mean:.3g} | {values[steps - 1]:.3g} | {' | '.join(bounds)} |")
    print()


def print_cases(problem: Problem) -> None:
    """Print other lambda and h at one rate."""
    path = convergence.balance_factors(
        simulate(LOOPS["simulated, bounded, geometric mean of 20"], steps=CASE_STEPS).smoothed_kappas
    )
    cases = [
        ("1", "0", Adam(rate=CASE_RATE), (1.0,)),
        ("4", "0", Adam(rate=CASE_RATE), (4.0,)),
        ("100", "0", Adam(rate=CASE_RATE), (100.0,)),
        (f"lambda_t of a simulated loop, {min(path):.2f} to {max(path):.2f}", "0", Adam(rate=CASE_RATE), tuple(path)),
        ("1", "drift reward, weight 1", Adam(rate=CASE_RATE, drift_reward=1), (1.0,)),
        ("1", "drift reward, weight 30", Adam(rate=CASE_RATE, drift_reward=30), (1.0,)),
        ("1", "drift penalty, weight 30", Adam(rate=CASE_RATE, drift_reward=-30), (1.0,)),
        ("1", "f", Adam(rate=CASE_RATE, copy=1), (1.0,)),
        ("1", "-2 f", Adam(rate=CASE_RATE, copy=-2), (1.0,)),
    ]
    print(f"alpha = {CASE_RATE:g}, K = {CASE_STEPS}:\n\n| lambda | h | measured | Eq. 13 | Eq. 26 |")
    print("| --- | --- | --- | --- | --- |")
    for factor, h, adam, factors in cases:
        mean = convergence.gradient_norms(problem, adam, CASE_STEPS, factors=factors).mean()
        bounds = [
            verdict(bound(problem, adam, CASE_STEPS, min(factors)), mean)
            for bound in (convergence.equation_13, convergence.equation_26)
        ]
        print(f"| {factor} | {h} | {mean:.4g} | {' | '.join(bounds)} |")
    print()


def verdict(bound: float, measured: float) -> str:
    """Write a bound, in bold where it is broken."""
    return f"{bound:.3g}" if bound >= measured else f"**{bound:.3g}**"


def print_factors(finished: dict[str, list[list[float]]]) -> None:
    """Print how often lambda_t exceeds 1, along simulated paths of smoothed kappa and those of finished runs."""
    paths = {
        name: [simulate(config, seed=seed).smoothed_kappas for seed in range(100)] for name, config in LOOPS.items()
    }
    print("| path of smoothed kappa | paths | lambda_t | above 1 | 5 % | median | 95 % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, group in {**paths, **finished}.items():
        factors = np.array([factor for path in group for factor in convergence.balance_factors(path)])
        quantiles = " | ".join(f"{value:.3g}" for value in np.quantile(factors, [0.05, 0.5, 0.95]))
        print(f"| {name} | {len(group)} | {len(factors)} | {100 * (factors > 1).mean():.0f} % | {quantiles} |")


def real_paths(folders: list[Path]) -> dict[str, list[list[float]]]:
    """Return smoothed kappa at the learning-rate updates of finished runs, by model, method and controller.

    Raises:
        UserError: No run in a folder.
    """
    paths: dict[str, list[list[float]]] = defaultdict(list)
    for record in (record for folder in folders for record in load_records(folder)):
        commit = record.recipe["commit"]
        updates = record.history()[commit["lr_update_interval"] - 1 :: commit["lr_update_interval"]]
        path = [row["smoothed_kappa"] for row in updates if row["smoothed_kappa"]]
        if len(path) > 1:
            controller = f", {commit['controller']['name']}" if commit["method"].startswith("commit") else ""
            paths[f"{Path(record.recipe['model']['name']).name}, {commit['method']}{controller}"].append(path)
    return paths


def draw(problem: Problem, norms: dict[float, convergence.Array], output: Path) -> None:
    """Draw the measured gradient norm and bounds over K, one panel per learning rate."""
    checked = np.unique(np.logspace(1, math.log10(CHECKED[-1]), 60).astype(int))
    with matplotlib.rc_context({**STYLE, "xtick.minor.size": 0}):
        figure = Figure(figsize=(11, 3.9), layout="constrained")
        for axes, (rate, values) in zip(figure.subplots(1, len(norms), sharey=True), norms.items(), strict=True):
            for name, (bound, colour, dashes) in BOUNDS.items():
                line = [bound(problem, Adam(rate=rate), int(steps)) for steps in checked]
                axes.loglog(checked, line, dashes, color=colour, linewidth=1.8, label=f"bound of {name}")
            means = np.cumsum(values)[checked - 1] / checked
            axes.loglog(checked, means, color="#1f2430", linewidth=2.4, label="measured, mean over the steps so far")
            axes.set_title(rf"$\alpha$ = {rate:g}")
            axes.set_xlabel("steps K")
            if not axes.get_subplotspec().colspan.start:
                axes.set_ylabel("squared gradient norm")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
