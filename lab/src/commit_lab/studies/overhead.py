"""What coordination costs: the arithmetic of the records that ``lab/benchmarks/overhead.py`` writes.

A record holds, for every round, the processor seconds of one step of each arm, and whether the arm measured that step.
Steps of one round are a pair. Everything is in plain steps: a ratio of 1.02 is two percent more time.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commit_tuning.train.record import HISTORY, RECORD, RunRecord

FOLDS = 10
PLAIN = "plain"
Record = dict[str, Any]
Pair = tuple[float, float]
"""Seconds of a step of ours, and of the plain one beside it."""


@dataclass(frozen=True)
class Spread:
    """A median and the range that it is of."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of some values; None of nothing."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Costs:
    """The pairs of an arm by kind of step, in the order of the steps."""

    measured: list[Pair]
    unmeasured: list[Pair]

    @classmethod
    def of(cls, rounds: Sequence[Mapping[str, Any]], *arms: str, start: int = 0) -> Costs:
        """Sort the pairs of one arm, or of several that share the work.

        Args:
            rounds: Of a record: arm to `[seconds, measured]`.
            arms: Whose pairs.
            start: The first round that counts.
        """
        pairs = [(one[arm], one[PLAIN][0]) for one in rounds[start:] for arm in arms if arm in one]
        kinds = {kind: [(own[0], plain) for own, plain in pairs if bool(own[1]) is kind] for kind in (True, False)}
        return cls(kinds[True], kinds[False])

    def extra(self) -> Spread | None:
        """What a measured step takes beside the plain one, in plain steps."""
        if not self.measured:
            return None
        plain = statistics.median(plain for _, plain in self.measured)
        return Spread.of([(own - beside) / plain for own, beside in self.measured])

    def over(self, share: float) -> Spread | None:
        """Time of a run over that of a plain one, if such a share of its steps is measured.

        The pairs are dealt out to ten runs, so that each has pairs from the beginning to the end, and each run is
        weighted as the share says. None where a kind of step that is needed was not seen.
        """
        needed = [(pairs, weight) for pairs, weight in self._weighted(share) if weight]
        if not all(pairs for pairs, _ in needed):
            return None
        folds = max(1, min(FOLDS, *(len(pairs) for pairs, _ in needed)))
        totals = [sum(weight * _ratio(pairs[fold::folds]) for pairs, weight in needed) for fold in range(folds)]
        return Spread.of(totals)

    def _weighted(self, share: float) -> Iterator[tuple[list[Pair], float]]:
        yield self.measured, share
        yield self.unmeasured, 1 - share


def _ratio(pairs: Sequence[Pair]) -> float:
    return sum(own for own, _ in pairs) / sum(plain for _, plain in pairs)


def share_of(rounds: Sequence[Mapping[str, Any]], arm: str, start: int = 0, stop: int | None = None) -> float:
    """The share of steps that an arm measured."""
    flags = [bool(one[arm][1]) for one in rounds[start:stop]]
    return sum(flags) / len(flags)


def whole_run(record: Record, arm: str, start: int = 0) -> Spread | None:
    """The cost of an arm that was trained through, from a step on.

    Where fewer than ten measured steps come after `start`, the last ten say what one costs.
    """
    rounds = record["rounds"]
    costs, late = Costs.of(rounds, arm), Costs.of(rounds, arm, start=start)
    measured = late.measured if len(late.measured) >= FOLDS else costs.measured[-FOLDS:]
    return Costs(measured, late.unmeasured).over(share_of(rounds, arm, start))


def extrapolated(record: Record, share: float) -> Spread | None:
    """The cost of a run with such a share of measured steps, from steps that were measured each or hardly any."""
    return sampled(record).over(share)


def sampled(record: Record) -> Costs:
    """The pairs of a shape that was not trained through."""
    rounds, start = record["rounds"], record["warm_up"]
    every, seldom = Costs.of(rounds, "every", start=start), Costs.of(rounds, "seldom", start=start)
    return Costs(every.measured, seldom.unmeasured)


def counted(record: Record, quantity: str, share: float) -> float:
    """Counted work of a run over that of a plain one: `flop`, or `vocabulary` for numbers of logits touched."""
    counts = record["counted"]
    plain = counts[PLAIN][quantity]
    return float((share * counts["measured"][quantity] + (1 - share) * counts["unmeasured"][quantity]) / plain)


def by_block(rounds: Sequence[Mapping[str, Any]], arm: str, block: int) -> Spread | None:
    """Time of an arm over the plain one's, in blocks of so many rounds."""
    starts = range(0, len(rounds) - block + 1, block)
    return Spread.of(
        [_ratio([(one[arm][0], one[PLAIN][0]) for one in rounds[start : start + block]]) for start in starts]
    )


def trainer_pairs(record: Record, share: float) -> Spread | None:
    """The cost of a trainer of ours beside its peer, pair by pair of short runs."""
    totals = []
    for pair in record["pairs"]:
        plain = statistics.fmean(seconds for seconds, _ in pair[PLAIN])
        kinds = {kind: [s for s, measured in pair["ours"] if bool(measured) is kind] for kind in (True, False)}
        if not kinds[True] or (share < 1 and not kinds[False]):
            return None
        unmeasured = statistics.fmean(kinds[False]) if kinds[False] else 0.0
        totals.append((share * statistics.fmean(kinds[True]) + (1 - share) * unmeasured) / plain)
    return Spread.of(totals)


@dataclass(frozen=True)
class Arrival:
    """When a method was at the loss at which Constant LR ended.

    Attributes:
        comparison: Folder of the comparison.
        method: Its label.
        rates: Its base rates.
        seeds: Seeds that Constant LR's chosen rate has as well.
        arrived: Of those, how many were there by their end.
        steps: Mean number of steps, of those that were; of a run without a history, up to its end or its next stop.
        seconds: Of training until then, the mean; on whatever machine the run was on.
        exact: Whether every run has a history, so that steps is when and not at the latest.
    """

    comparison: str
    method: str
    rates: str
    seeds: int
    arrived: int
    steps: float | None
    seconds: float | None
    exact: bool


COURSE = "course.json"
RECENT = 20
"""Steps whose mean is a run's final loss."""


def arrival(record: RunRecord, loss: float) -> tuple[int, float, bool] | None:
    """Steps and seconds after which a run was at a loss, and whether it is known to the step; None for never."""
    steps, seconds = int(record.recipe["train"]["steps"]), float(record.seconds["training"])
    if not (record.folder / HISTORY).is_file():
        return (steps, seconds, False) if record.metrics["train_loss"] <= loss else None
    losses = [row["loss"] for row in record.history()]
    for step in range(RECENT, len(losses) + 1):
        recent = [value for value in losses[step - RECENT : step] if value is not None]
        if len(recent) == RECENT and statistics.fmean(recent) <= loss:
            return step, seconds * step / steps, True
    return None


def time_to_result(comparison: Path, rows: Sequence[Record]) -> list[Arrival]:
    """When every method's chosen arm was where Constant LR's ended, seed by seed.

    Args:
        comparison: Its folder.
        rows: Of its table.
    """
    chosen = [row for row in rows if row["chosen"]]
    reference = next((row for row in chosen if row["method"] == "constant"), None)
    if reference is None:
        return []
    finals = {record.seed: float(record.metrics["train_loss"]) for record in _finished(comparison, reference)}
    found = []
    for row in chosen:
        records = [record for record in _finished(comparison, row) if record.seed in finals]
        times = [when for record in records if (when := arrival(record, finals[record.seed]))]
        found.append(
            Arrival(
                comparison=comparison.name,
                method=row["label"],
                rates=row["rates"],
                seeds=len(records),
                arrived=len(times),
                steps=statistics.fmean(steps for steps, _, _ in times) if times else None,
                seconds=statistics.fmean(seconds for _, seconds, _ in times) if times else None,
                exact=all(exact for _, _, exact in times),
            )
        )
    return [line for line in found if line.seeds]


def _finished(comparison: Path, row: Record) -> list[RunRecord]:
    folders = [comparison / run for run in row["runs"] if (comparison / run / RECORD).is_file()]
    records = [RunRecord.read(folder) for folder in folders]
    return [record for record in records if record.status == "complete"]


def courses_to_result(results: Path) -> list[Arrival]:
    """The same of runs that were looked at at a few stops, one seed each, to the first stop that is low enough.

    Constant LR's rate is the one that ended lowest.

    Args:
        results: A folder with folders of courses somewhere below.
    """
    found = []
    for group in sorted({path.parent.parent for path in results.rglob(COURSE)}):
        courses = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(group.glob(f"*/{COURSE}"))]
        constant = [course for course in courses if course["arm"].startswith("constant:") and course["stops"]]
        if not constant:
            continue
        reference = min(constant, key=lambda course: course["stops"][-1]["train_loss"])
        others = [course for course in courses if not course["arm"].startswith("constant:")]
        loss = reference["stops"][-1]["train_loss"]
        found += [_of_course(group.relative_to(results).as_posix(), course, loss) for course in (reference, *others)]
    return found


def _of_course(comparison: str, course: Record, loss: float) -> Arrival:
    stop = next((stop for stop in course["stops"] if stop["train_loss"] <= loss), None)
    method, _, rates = course["arm"].partition(":")
    steps, seconds = (stop["step"], stop["seconds"]) if stop else (None, None)
    return Arrival(comparison, method, rates, 1, int(stop is not None), steps, seconds, exact=False)
