"""Statistical error of kappa on few samples and rare measurements: `python lab/benchmarks/sampling_error.py`.

A nano model is trained on nano IconQA, and at every step the drift is taken on 1, 2, 4, 8 and all 16 samples of the
batch. The script asks how far off one measurement is, and how far off the geometric mean over the last 100 steps is if
only every m-th step is measured. The reference is all samples at every step. Prints a Markdown table of standard
deviations of log kappa. With `--regularizer` the model is trained with that regulariser, to see whether it makes kappa
easier to estimate.
"""

import argparse
import itertools
import math
import statistics
from typing import Any

import torch
from nano_trial import BATCH, Trial

from commit_tuning import Coordinator
from commit_tuning.config import REGULARIZER_STEPS, REGULARIZERS, CoMMITConfig, Lookahead, Probe
from commit_tuning.measure.balance import balance_coefficient
from commit_tuning.measure.forward import Batch, forward_pass
from commit_tuning.measure.probe import DriftProbe

SAMPLES = (1, 2, 4, 8, 16)
INTERVALS = (1, 2, 5, 10, 20)
SPAN = 100


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano-llava-v2", choices=["nano-llava-v2", "nano-blip2-v2"])
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of both modules")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--regularizer", choices=REGULARIZERS)
    parser.add_argument("--weight", type=float, default=1.0, help="of the regulariser")
    parser.add_argument("--regularizer-step", default="raw", choices=REGULARIZER_STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trial = Trial(arguments.model)
    trial.train(arguments.rate, 20)
    config = CoMMITConfig(
        method="constant",
        probe=Probe(interval=None),
        regularizer=_reading(arguments),
    )
    coordinator = Coordinator(trial.model, trial.optimizer, config, trial.partition)
    history = [measured_step(trial, arguments.rate, coordinator) for _ in range(arguments.steps)]
    logs = {n: [step[n] for step in history] for n in SAMPLES}
    trained = f"{arguments.model}, lr {arguments.rate:g}, {_regularizer(config)}, {arguments.steps} steps"
    print(f"{trained}; log kappa itself has a standard")
    print(f"deviation of {statistics.stdev(logs[BATCH]):.2f} from step to step.\n")
    print("| samples | one measurement | " + " | ".join(f"every {m}" for m in INTERVALS) + " |")
    print("| --- | --- |" + " --- |" * len(INTERVALS))
    for n in SAMPLES:
        single = spread([a - b for a, b in zip(logs[n], logs[BATCH], strict=True)])
        cells = [spread(window_errors(logs[n], logs[BATCH], m)) for m in INTERVALS]
        print(f"| {n} | {single:.2f} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


def _regularizer(config: CoMMITConfig) -> str:
    return f"{config.regularizer.name} {config.regularizer.weight:g}" if config.regularizer else "no regulariser"


def _reading(arguments: argparse.Namespace) -> Any:
    if arguments.regularizer is None:
        return None
    step = {} if arguments.regularizer == Lookahead.name else {"step": arguments.regularizer_step}
    return {"name": arguments.regularizer, "weight": arguments.weight, **step}


def measured_step(trial: Trial, rate: float, coordinator: Coordinator) -> dict[int, float]:
    """Train one step; return log kappa of its update by number of samples."""
    batch = trial.backward()
    forward = forward_pass(trial.model)
    cuts = (0, *SAMPLES)
    probes = [
        DriftProbe(forward, trial.partition, [rows(batch, first, last)], shift=True)
        for first, last in itertools.pairwise(cuts)
    ]
    coordinator.before_step(batch)
    trial.update(rate)
    coordinator.after_step()
    totals, found = dict.fromkeys(trial.partition, 0.0), {}
    for number, probe in zip(SAMPLES, probes, strict=True):
        for module, drift in probe.measure().drift.items():
            totals[module] += drift * probe.samples
        found[number] = math.log(balance_coefficient(totals["language_model"], totals["vision"]))
    return found


def rows(batch: Batch, first: int, last: int) -> Batch:
    """Return some samples of a batch."""
    return {key: value[first:last] for key, value in batch.items()}


def window_errors(logs: list[float], truth: list[float], interval: int) -> list[float]:
    """Return the error of the mean over every interval-th of SPAN steps, for a window at every tenth step."""
    starts = range(0, len(truth) - SPAN + 1, 10)
    return [
        statistics.fmean(logs[start : start + SPAN : interval]) - statistics.fmean(truth[start : start + SPAN])
        for start in starts
    ]


def spread(errors: list[float]) -> float:
    """Return the root mean square."""
    return math.sqrt(statistics.fmean(error**2 for error in errors))


if __name__ == "__main__":
    main()
