"""A module's drift over the loss: how far a step moves the output distribution, relative to what is left to learn.

The loss is the training loss of the step, on its whole batch; the controller `"trust-region"` takes that of the
measured samples in evaluation mode, which a record does not hold.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from commit_lab.studies.control_quality import control_of, steered_runs
from commit_tuning.partition.modules import LANGUAGE_MODEL
from commit_tuning.train.compare.table import NOTHING, markdown_table, percent

_PREFIX = "drift/"
QUARTERS = 4


def drift_shares(history: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    """Map each module to its drift over the loss by quarter of the run: geometric mean over mean.

    Args:
        history: The rows of a run, with `loss` and `drift/<module>` (None where nothing was measured).

    Returns:
        Four numbers for each module, nats per nat; NaN for a quarter without a drift.
    """
    cuts = [round(part * len(history) / QUARTERS) for part in range(QUARTERS + 1)]
    quarters = [history[first:last] for first, last in itertools.pairwise(cuts)]
    modules = [key.removeprefix(_PREFIX) for key in history[0] if key.startswith(_PREFIX)]
    return {module: [_share(rows, module) for rows in quarters] for module in modules}


def _share(rows: Sequence[Mapping[str, float | None]], module: str) -> float:
    logs = [math.log(drift) for row in rows if (drift := row[_PREFIX + module])]
    losses = [loss for row in rows if (loss := row["loss"]) is not None]
    return math.exp(fmean(logs)) / fmean(losses) if logs and fmean(losses) > 0 else math.nan


def share_table(folders: Iterable[str | Path]) -> str:
    """Tabulate finished runs in Markdown: an arm's validation accuracy, and its shares by quarter, means over seeds.

    Every module that any run has is a column, with a dash for a model without it.

    Raises:
        UserError: No run that moves both modules is there.
    """
    arms: dict[tuple[str, str, str], list[tuple[float, dict[str, list[float]]]]] = defaultdict(list)
    for record in steered_runs(folders):
        run = control_of(record)
        arms[run.arm].append((run.accuracy, drift_shares(record.history())))
    ordered = sorted(arms.items(), key=lambda item: (item[0][0], -fmean(accuracy for accuracy, _ in item[1])))
    modules = list(dict.fromkeys(name for _, runs in ordered for _, shares in runs for name in shares))
    modules.sort(key=lambda name: name != LANGUAGE_MODEL)
    head = ("model", "method", "base rate", "seeds", "validation", *(name.replace("_", " ") for name in modules))
    return markdown_table(head, [_cells(arm, runs, modules) for arm, runs in ordered])


def _cells(
    arm: tuple[str, str, str], runs: Sequence[tuple[float, dict[str, list[float]]]], modules: Sequence[str]
) -> tuple[str, ...]:
    accuracy = percent(fmean(accuracy for accuracy, _ in runs))
    shares = [[found[name] for _, found in runs if name in found] for name in modules]
    return (*arm, str(len(runs)), accuracy, *(_quarters(group) if group else NOTHING for group in shares))


def _quarters(shares: Sequence[Sequence[float]]) -> str:
    """Write geometric means over runs, quarter by quarter."""
    columns = [[value for value in column if math.isfinite(value)] for column in zip(*shares, strict=True)]
    texts = [f"{math.exp(fmean(map(math.log, column))):.1e}" if column else NOTHING for column in columns]
    return ", ".join(texts)
