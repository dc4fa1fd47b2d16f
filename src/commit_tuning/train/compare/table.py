"""The numbers of a comparison: means over seeds, paired differences, and the table as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from commit_tuning.shown import markdown_text, strong
from commit_tuning.train.compare.arms import Arm, reference_of
from commit_tuning.train.record import RunRecord

COLLAPSED_BELOW = 0.01
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Difference:
    """Mean difference of two arms over the same seeds, in accuracy, with Student's 95 % confidence interval."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of the table. Accuracies are shares in [0, 1].

    Attributes:
        label: Method and axis settings.
        method: The method's name.
        rates: Base learning rates as text.
        chosen: Whether the validation accuracy picked these rates for the method.
        test: Mean test accuracy over the seeds that finished.
        test_sd: Sample standard deviation over seeds; None for a single one.
        seeds: Seeds that finished.
        difference: Test accuracy minus Constant LR's at its chosen rate, seed by seed; None for Constant LR itself.
        validation: Mean validation accuracy.
        train_loss: Mean final training loss, in nats per answer token.
        seconds: Mean wall time of a run.
        collapsed: Runs in which a module's rate fell below a hundredth of its base rate.
        failed: Runs that did not finish.
        runs: Folders of the runs, relative to the comparison.
    """

    label: str
    method: str
    rates: str
    chosen: bool
    test: float | None
    test_sd: float | None
    seeds: int
    difference: Difference | None
    validation: float | None
    train_loss: float | None
    seconds: float | None
    collapsed: int
    failed: int
    runs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)


def build_rows(
    results: Mapping[Arm, Sequence[RunRecord]], chosen: list[Arm], folders: Mapping[Arm, Sequence[str]]
) -> list[Row]:
    """One row per arm, in the order of `results`."""
    return [_row(arm, results, chosen, tuple(folders[arm])) for arm in results]


def _row(arm: Arm, results: Mapping[Arm, Sequence[RunRecord]], chosen: list[Arm], runs: tuple[str, ...]) -> Row:
    finished = [record for record in results[arm] if record.complete]
    tests = [record.accuracy("test") for record in finished]
    reference = reference_of(arm, chosen)
    lowest = [record.metrics.get("lowest_multiplier") for record in finished]
    return Row(
        label=arm.family,
        method=arm.method,
        rates=arm.rates,
        chosen=arm in chosen,
        test=mean(tests),
        test_sd=statistics.stdev(tests) if len(tests) > 1 else None,
        seeds=len(finished),
        difference=None if arm == reference else paired_difference(by_seed(finished), by_seed(results[reference])),
        validation=mean([record.accuracy("val") for record in finished]),
        train_loss=mean([record.metrics["train_loss"] for record in finished]),
        seconds=mean([sum(record.seconds.values()) for record in finished]),
        collapsed=sum(value is not None and value < COLLAPSED_BELOW for value in lowest),
        failed=len(results[arm]) - len(finished),
        runs=runs,
    )


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean, or None of nothing."""
    return statistics.fmean(values) if values else None


def by_seed(records: Sequence[RunRecord]) -> dict[int, float]:
    """Test accuracy of the finished runs by seed."""
    return {record.seed: record.accuracy("test") for record in records if record.complete}


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Mean of `ours - theirs` over the seeds that both have; None if there is no such seed."""
    from scipy.stats import t

    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    centre, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Difference(centre, None, None, 1)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return Difference(centre, centre - half, centre + half, count)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; accuracies in percent, differences in percentage points."""
    head = ["Method", "Base rate", "Test accuracy", "Seeds", "Difference [95 % CI]", "Validation", "Loss", "Seconds"]
    return markdown_table([*head, "Collapsed", "Failed"], [_cells(row) for row in rows])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table; text that is no `Markdown` stands there as it is.

    Example:
        >>> print(markdown_table(["a", "b"], [["1", "2"]]), end="")
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(map(markdown_text, line))} |\n" for line in lines)


def _cells(row: Row) -> list[str]:
    spread = f" ± {percent(row.test_sd)}" if row.test_sd is not None else ""
    numbers = [percent(row.test) + spread, str(row.seeds), difference_text(row.difference), percent(row.validation)]
    rest = [fixed(row.train_loss, 3), fixed(row.seconds, 0), str(row.collapsed), str(row.failed)]
    return [strong(row.label) if row.chosen else row.label, row.rates, *numbers, *rest]


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return NOTHING if share is None else f"{100 * share:.1f}"


def difference_text(difference: Difference | None) -> str:
    """Percentage points with their interval, or a dash for the reference."""
    if difference is None:
        return NOTHING
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.1f}"
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def fixed(value: float | None, digits: int) -> str:
    """A number with some decimals."""
    return NOTHING if value is None else f"{value:.{digits}f}"
