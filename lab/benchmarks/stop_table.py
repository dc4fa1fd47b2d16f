"""The records of `course.run_all` as a table, for the benchmarks that answer the paper's open questions."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from commit_tuning.train.compare.table import COLLAPSED_BELOW, NOTHING, markdown_table


def stop_table(records: Sequence[dict[str, Any]], columns: Mapping[str, tuple[str, str]]) -> str:
    """Write a line of Markdown for every arm and stop.

    Args:
        records: Of `run_all`.
        columns: Head to the name of a number at a stop and its format.

    Returns:
        Mean and standard deviation over the seeds that got to the stop. Rates, kappas and drifts, which live on a
        logarithmic scale, have their geometric mean (unless one is zero). Last, how many runs collapsed (a rate below
        a hundredth of its base rate), starve at the end, or failed.
    """
    lines = []
    for arm, group in itertools.groupby(records, key=lambda record: record["arm"]):
        same = list(group)
        for index, step in enumerate(same[0]["about"]["stops"]):
            stops = [record["stops"][index] for record in same if len(record["stops"]) > index]
            cells = [_cell([stop.get(name) for stop in stops], name, form) for name, form in columns.values()]
            lines.append([arm, str(step), *cells, _faults(same)])
    return markdown_table(["arm", "step", *columns, "collapsed / starving / failed"], lines)


def _cell(values: Sequence[float | None], name: str, form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    if name.startswith(("lr/", "kappa", "smoothed", "drift/")) and min(known) > 0:
        return format(statistics.geometric_mean(known), form)
    spread = f" ± {format(statistics.stdev(known), form)}" if len(known) > 1 else ""
    return format(statistics.fmean(known), form) + spread


def _faults(records: Sequence[dict[str, Any]]) -> str:
    collapsed = sum((record.get("lowest_multiplier") or 1.0) < COLLAPSED_BELOW for record in records)
    starving = sum(bool(record["stops"] and record["stops"][-1]["starving"]) for record in records)
    return f"{collapsed} / {starving} / {sum(record['failed'] is not None for record in records)}"
