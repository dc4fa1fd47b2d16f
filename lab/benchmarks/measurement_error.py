"""Error of kappa against float64, over learning rates and number formats: `python lab/benchmarks/measurement_error.py`.

A nano model is warmed up on nano IconQA, then trained on at each learning rate. At every step the drift of the same
update is taken in float64 (the truth) and in four ways: as the step left it (`drift_scale=1`), by displacements alone,
by forward-mode derivatives alone, and as the probe chooses among them (`drift_scale="auto"`). Prints a Markdown table
and, with --output, draws it.
"""

import argparse
import contextlib
import copy
import math
import statistics
import time
import unittest.mock
from pathlib import Path

import torch
from nano_trial import Trial

from commit_tuning import partition_model
from commit_tuning.measure.balance import balance_coefficient
from commit_tuning.measure.batches import take_samples
from commit_tuning.measure.displacement import Displacement
from commit_tuning.measure.forward import evaluation_mode, forward_pass
from commit_tuning.measure.probe import DriftProbe

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
FORMATS = {"float32": None, "bfloat16 autocast": torch.bfloat16, "float16 autocast": torch.float16}
WAYS = {"step": "one step", "displaced": "displaced", "limit": "forward mode", "auto": "auto"}
WARM_RATE, PROBED = 3e-4, 8


def main() -> None:
    """Print the table; draw it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano-llava-v2", choices=["nano-llava-v2", "nano-blip2-v2"])
    parser.add_argument("--warm-up", type=int, default=60, help="steps before the first measurement")
    parser.add_argument("--steps", type=int, default=20, help="steps measured at each learning rate")
    parser.add_argument("--output", type=Path, help="a .png to draw")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trial = Trial(arguments.model)
    trial.train(WARM_RATE, arguments.warm_up)
    errors, seconds = {}, dict.fromkeys(WAYS, 0.0)
    for name, dtype in FORMATS.items():
        for rate in RATES:
            errors[name, rate] = measure(copy.deepcopy(trial), rate, dtype, arguments.steps, seconds)
    report(errors, seconds)
    if arguments.output:
        draw(errors, arguments.output)


def measure(trial: Trial, rate: float, dtype: torch.dtype | None, steps: int, seconds: dict) -> dict[str, list[float]]:
    """Measure the relative error of kappa at every step, by way."""
    errors = {way: [] for way in WAYS}
    displacements = {"step": Displacement(1.0), "displaced": Displacement("auto"), "auto": Displacement("auto")}
    for _ in range(steps):
        [batch] = take_samples([trial.backward(autocast(dtype))], PROBED)
        before = copy.deepcopy(trial.model)
        with autocast(dtype):
            probe = DriftProbe(forward_pass(trial.model), trial.partition, [batch], shift=True)
        trial.update(rate)
        truth = kappa_of(exact_drift(before, trial.model, batch))
        for way in WAYS:
            started = time.perf_counter()
            with autocast(dtype):
                found = kappa_of(drift_of(trial, probe, way, displacements))
            seconds[way] += time.perf_counter() - started
            errors[way].append(abs(found / truth - 1))
    return errors


def drift_of(trial: Trial, probe: DriftProbe, way: str, displacements: dict[str, Displacement]) -> dict[str, float]:
    """Measure the drift of the last update in one way."""
    if way == "limit":
        with torch.no_grad(), evaluation_mode(trial.model):
            return {module: probe.limit(module) for module in trial.partition}
    if way == "displaced":  # as with a kernel that has no forward-mode derivative
        with unittest.mock.patch.object(probe, "limit", return_value=None):
            return probe.measure(displacements[way]).drift
    return probe.measure(displacements[way]).drift


def autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Return a fresh autocast context, or none."""
    return torch.autocast("cpu", dtype, cache_enabled=False) if dtype else contextlib.nullcontext()


def kappa_of(drift: dict[str, float]) -> float:
    """Compute Eq. 4."""
    return balance_coefficient(drift["language_model"], drift["vision"])


def exact_drift(before: torch.nn.Module, after: torch.nn.Module, batch: dict) -> dict[str, float]:
    """Compute the drift of the same update in float64."""
    model = copy.deepcopy(before).double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    probe = DriftProbe(forward_pass(model), partition_model(model), [batch], shift=True)
    with torch.no_grad():
        for parameter, new in zip(model.parameters(), after.parameters(), strict=True):
            parameter.copy_(new)
    return probe.measure().drift


def report(errors: dict, seconds: dict[str, float]) -> None:
    """Print the table: median (90 % quantile) of the relative error; a refused kappa counts as 'none'."""
    print("| format | way | " + " | ".join(f"lr {rate:g}" for rate in RATES) + " | all rates | time |")
    print("| --- | --- |" + " --- |" * (len(RATES) + 2))
    for name in FORMATS:
        for way, label in WAYS.items():
            cells = [cell(errors[name, rate][way]) for rate in RATES]
            everything = [error for rate in RATES for error in errors[name, rate][way]]
            cost = seconds[way] / seconds["step"]
            print(f"| {name} | {label} | " + " | ".join(cells) + f" | {cell(everything)} | {cost:.2f} |")


def cell(values: list[float]) -> str:
    """Write median and 90 % quantile in percent, and the number of refused readings."""
    known = sorted(value for value in values if not math.isnan(value))
    refused = f", {len(values) - len(known)} refused" if len(known) < len(values) else ""
    if not known:
        return "all refused"
    return f"{100 * statistics.median(known):.2g} % ({100 * known[int(0.9 * (len(known) - 1))]:.2g}){refused}"


def draw(errors: dict, path: Path) -> None:
    """Draw the median relative error over the learning rate."""
    from matplotlib import pyplot as plt

    from commit_tuning.report.figure_style import STYLE

    colours = {"step": "#d55e00", "displaced": "#e69f00", "limit": "#009e73", "auto": "#0072b2"}
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(FORMATS), figsize=(10, 3.5), sharey=True, layout="constrained")
        for panel, name in zip(panels, FORMATS, strict=True):
            for way, label in WAYS.items():
                known = {r: [e for e in errors[name, r][way] if not math.isnan(e)] for r in RATES}
                middles = [statistics.median(known[rate]) if known[rate] else math.nan for rate in RATES]
                panel.plot(RATES, middles, "o-", color=colours[way], label=label, markersize=4)
            panel.axhline(0.05 if name == "float32" else 0.15, color="#8a8f98", linewidth=0.8, linestyle="--")
            panel.set(xscale="log", yscale="log", xlabel="learning rate", title=name)
        panels[0].set_ylabel("relative error of kappa")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
