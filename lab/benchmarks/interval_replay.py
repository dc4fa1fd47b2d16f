"""What a probe would have made of recorded trainings: `python lab/benchmarks/interval_replay.py`.

The records of `interval_record.py` hold the drift of every sample at every step. From them the product's own schedule,
windows and controller are run again, with any interval, number of samples and estimator. Nothing is trained. The truth
is a measurement at every step on all 16 samples, in a window of 100 steps. Every row is the mean over the runs, over
the disjoint sets of samples that a measurement could have looked at, and over five phases of the interval. Prints two
Markdown tables: the bias of few samples, and the error and the cost of each way to measure.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from interval_record import FOLDER

from commit_tuning.config import TIERS, CoMMITConfig, Probe
from commit_tuning.control.trust_region import TrustRegionController
from commit_tuning.measure import measuring
from commit_tuning.measure.balance import Balance
from commit_tuning.measure.displacement import Reading
from commit_tuning.measure.measuring import ByNeed
from commit_tuning.measure.probe import Measurement

ALL, WINDOW = 16, 20
PHASES = range(5)
FIRST, LATE = 20, 200  # steps: errors count from there on; the second half of a run
KAPPA_FROM = 120  # when no window holds the first step any more


@dataclass(frozen=True)
class Way:
    """A way to measure.

    Attributes:
        name: What the table calls it.
        probe: Interval and samples.
        estimator: Of the windows.
        window: Measurements in them.
        growing: Whether the interval is a sixteenth of the step, from 5 to 50, instead.
    """

    name: str
    probe: Probe
    estimator: str = "grouped"
    window: int = WINDOW
    growing: bool = False

    @property
    def config(self) -> CoMMITConfig:
        """The settings of the product."""
        return CoMMITConfig(probe=self.probe, kappa_estimator=self.estimator, kappa_window=self.window)


TRUTH = Way("every step, all samples", Probe(interval=1, samples=ALL), "geometric", 100)


class Run:
    """A recorded training."""

    def __init__(self, path: Path) -> None:
        record = json.loads(path.read_text("utf-8"))
        self.name, self.steps = path.stem, record["steps"]
        cosine = record["about"]["schedule"] == "cosine"
        count = len(self.steps)
        self.shares = [(1 + math.cos(math.pi * t / count)) / 2 if cosine else 1.0 for t in range(count)]
        self.modules = list(self.steps[0]["drifts"])

    def measurement(self, step: int, samples: range) -> Measurement:
        """What a probe finds at a step on some of its samples."""
        row = self.steps[step]
        drifts = {m: _mean(row["drifts"][m], samples) * rate**2 for m, rate in row["rates"].items()}
        readings = {m: Reading(drift, 0.0, 1.0) for m, drift in drifts.items()}
        return Measurement(readings, {}, _mean(row["losses"], samples), row["tokens"], len(samples))

    @cached_property
    def truth(self) -> "Course":
        """The rates and kappas of a measurement at every step on all samples."""
        return Course.of(self, TRUTH, range(ALL), 0)


def _mean(values: list[float], samples: range) -> float:
    return statistics.fmean(values[index] for index in samples)


@dataclass(frozen=True)
class Course:
    """How a run would have been seen: the measured steps, and at each step the rates in force and smoothed kappa."""

    measured: list[int]
    log_rates: list[dict[str, float]]
    log_kappa: list[float]
    changes: list[str]

    @classmethod
    def of(cls, run: Run, way: Way, samples: range, phase: int) -> "Course":
        """Replay a run.

        Args:
            run: What is replayed.
            way: How it is measured.
            samples: Positions in the batch of those that are looked at.
            phase: Steps by which every measurement from step 20 on comes later.
        """
        encoders = [name for name in run.modules if name != "language_model"]
        controller = TrustRegionController(way.config, encoders)
        need = ByNeed() if way.probe.interval == "auto" and not way.growing else None
        balance = Balance(encoders, way.window, way.estimator, need is not None)
        course, multipliers, moved = cls([], [], [], []), controller.multipliers(0), False
        for step, row in enumerate(run.steps):
            course.log_rates.append({name: math.log(value) for name, value in multipliers.items()})
            course.log_kappa.append(math.log(balance.smoothed_kappa) if course.measured else math.nan)
            shares = dict.fromkeys(run.modules, run.shares[step])
            if need.is_due(step, shares) if need else _is_due(way, step, phase, course.measured):
                found = run.measurement(step, samples)
                course.measured.append(step)
                balance.add(found)
                controller.observe(found, row["rates"])
                if need:
                    need.measured(found, row["rates"], shares)
                    course.changes.extend([f"step {step}: {need.reason}"] * (need._since == step > 0))
                    need._next += phase * (step >= FIRST and not moved)
                    moved = moved or step >= FIRST
            if controller.settling or (step + 1) % way.config.lr_update_interval == 0:
                multipliers = controller.multipliers(step + 1)
        return course


def _is_due(way: Way, step: int, phase: int, measured: list[int]) -> bool:
    """Whether a step is measured at an interval that does not look at what was measured."""
    if way.growing:
        last = measured[-1] if measured else -50
        late = phase if last < FIRST <= step else 0
        return step >= last + min(max(last // 16, 5), 50) + late
    interval = way.probe.interval
    return (step - (phase % interval if step >= FIRST else 0)) % interval == 0


@cache
def courses(run: Run, way: Way) -> list[Course]:
    """A run as seen with every set of samples and every phase."""
    size = way.probe.samples
    sets = [range(first, first + size) for first in range(0, ALL, size)]
    return [Course.of(run, way, samples, phase) for samples, phase in itertools.product(sets, PHASES)]


def errors(run: Run, way: Way, module: str | None, first: int) -> Iterator[float]:
    """Log rate of a module, or log kappa if None, less the truth, at every step from the first on."""
    for course in courses(run, way):
        for step in range(first, len(run.steps)):
            if module is None:
                yield course.log_kappa[step] - run.truth.log_kappa[step]
            else:
                yield course.log_rates[step][module] - run.truth.log_rates[step][module]


def root_mean_square(values: Iterable[float]) -> float:
    """Of errors."""
    return math.sqrt(statistics.fmean(value**2 for value in values))


def bias_table(runs: list[Run]) -> list[str]:
    """Mean error of the log rate of every module, by number of samples and estimator, measured every 5 steps."""
    columns = [(run, module) for run in runs for module in run.modules]
    lines = ["| estimator | samples | mean | of one module, least and most |", "| --- | --- | --- | --- |"]
    for estimator, samples in itertools.product(("geometric", "ratio", "grouped"), (2, 4, 8, 16)):
        way = Way("", Probe(interval=5, samples=samples), estimator)
        means = [statistics.fmean(errors(run, way, module, FIRST)) for run, module in columns]
        low, high = min(means), max(means)
        lines.append(f"| {estimator} | {samples} | {statistics.fmean(means):+.3f} | {low:+.2f}, {high:+.2f} |")
    return lines


def cost_table(runs: list[Run], ways: Iterable[Way], extra: float) -> list[str]:
    """Error and cost of each way."""
    lines = [
        f"| way | measured steps | from step {LATE} on | overhead | from step {LATE} on | log rate: RMS | mean | "
        "log kappa: RMS |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way in ways:
        seen = [(len(run.steps), course) for run in runs for course in courses(run, way)]
        count = statistics.fmean(len(course.measured) for _, course in seen)
        late = statistics.fmean(sum(step >= LATE for step in course.measured) for _, course in seen)
        steps, price = statistics.fmean(length for length, _ in seen), extra * way.probe.samples / 8
        rates = [error for run in runs for m in run.modules for error in errors(run, way, m, FIRST)]
        kappas = [error for run in runs for error in errors(run, way, None, KAPPA_FROM)]
        lines.append(
            f"| {way.name} | {count:.1f} | {late:.1f} | {100 * price * count / steps:.1f} % | "
            f"{100 * price * late / (steps - LATE):.1f} % | {root_mean_square(rates):.3f} | "
            f"{statistics.fmean(rates):+.3f} | {root_mean_square(kappas):.2f} |"
        )
    return lines


def all_ways() -> list[Way]:
    """What the tables compare: the tiers, what was before, and the intervals between."""
    tiers = [Way(name, Probe(**settings)) for name, settings in TIERS.items()]
    every = [Way(f"every {n} on 8", Probe(interval=n)) for n in (5, 10, 20, 40)]
    growing = Way("step / 16, from 5 to 50, on 8", Probe(), growing=True)
    return [Way("every 5 on 8, geometric", Probe(interval=5), "geometric"), *every, growing, *tiers]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=FOLDER)
    parser.add_argument("--extra", type=float, default=1.2, help="plain steps that a measured step on 8 samples adds")
    parser.add_argument("--changes", action="store_true", help="say where measurements by need became dense again")
    parser.add_argument("--growth", type=int, default=measuring.GROWTH, help="steps since a change over the interval")
    arguments = parser.parse_args()
    measuring.GROWTH = arguments.growth
    runs = [Run(path) for path in sorted(arguments.records.glob("*.json"))]
    print(f"{len(runs)} runs of {len(runs[0].steps)} steps\n")
    print(*bias_table(runs), "", *cost_table(runs, all_ways(), arguments.extra), sep="\n")
    if arguments.changes:
        for run in runs:
            print(run.name, *{change for course in courses(run, Way("", Probe())) for change in course.changes})


if __name__ == "__main__":
    main()
