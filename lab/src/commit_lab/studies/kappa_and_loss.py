"""Numbers that describe kappa and the loss of a run and compare over runs (Hypotheses 4.1 and 4.2)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commit_tuning.errors import UserError
from commit_tuning.train.compare.arms import CONSTANT, STATIC
from commit_tuning.train.record import HISTORY, RECORD, RunRecord, run_folders, with_nan

SETTLED = 0.25  # kappa is looked at after this part of a run: at first it reflects the start, not the method
FEWEST = 8  # measurements of kappa in that time; fewer say nothing of their spread
_SMOOTH = 20  # losses in the mean that stands for the loss at a step
_SPLIT_OFF = ("learning_rate", "encoder_learning_rate", "seed", "save_weights", "device", "micro_batch_size")


@dataclass(frozen=True)
class RunSummary:
    """One run. Losses are training losses in nats per target token; logarithms are natural.

    Attributes:
        task: What must agree for losses to be comparable: model, data, and training but for the rates.
        arm: What is repeated over seeds: all settings but the seed.
        method: The method's name; `"static"` for constant rates that differ.
        rates: Base learning rates of the language model and of the encoder.
        seed: Decides batches and initial weights.
        spread: Standard deviation of log kappa.
        jumps: Root mean square difference of log kappa between measurements that follow each other, over sqrt(2): the
            spread without slow trends.
        distance: |median of log kappa|.
        mean_loss: Over all steps: the area under the loss curve over its length.
        half_loss: Mean of the `_SMOOTH` losses up to half of the run.
        final_loss: Mean of the last `_SMOOTH` losses.
        log_rates: Mean logarithm of the rates that were really used, by module name.
    """

    task: str
    arm: str
    method: str
    rates: tuple[float, float]
    seed: int
    spread: float
    jumps: float
    distance: float
    mean_loss: float
    half_loss: float
    final_loss: float
    log_rates: tuple[float, ...]


def read_runs(folders: Iterable[str | Path]) -> tuple[list[RunSummary], list[str]]:
    """Summarise all runs in and below some folders.

    Returns:
        The summaries, and one line for each reason for which runs were left out: the reason, how many, the first.

    Raises:
        UserError: There is no run, or none that can be used.
    """
    paths = run_folders(folders)
    listed = ", ".join(map(str, folders)) if isinstance(folders, Sequence) else "the folders given"
    if not paths:
        raise UserError(f"no {RECORD} in or below {listed}; give output folders of 'train' or 'compare'")
    runs: list[RunSummary] = []
    reasons: Counter[str] = Counter()
    first: dict[str, Path] = {}
    for path in paths:
        try:
            runs.append(summarise(RunRecord.read(path)))
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")
            reasons[reason] += 1
            first.setdefault(reason, path)
    left_out = [
        f"{count} of {len(paths)} runs left out, the first in {first[reason]}: {reason}"
        for reason, count in reasons.items()
    ]
    if not runs:
        raise UserError(f"none of {len(paths)} runs in or below {listed} can be used: {'; '.join(left_out)}")
    return runs, left_out


def summarise(record: RunRecord) -> RunSummary:
    """Compute the numbers of one run.

    Raises:
        UserError: The run did not finish, or its history lacks what is needed.
    """
    if not record.complete:
        raise UserError(f"{record.folder}: the run is not complete; run it again")
    history = record.history()
    if not history:
        raise UserError(f"{record.folder}: no {HISTORY}; keep it beside {RECORD}")
    losses = np.array([with_nan(row.get("loss")) for row in history])
    if not np.isfinite(losses).all():
        raise UserError(f"{record.folder}: a loss in {HISTORY} is not a number; lower the rate and run it again")
    settled = log_kappas(history[int(SETTLED * len(history)) :])
    if len(settled) < FEWEST:
        raise UserError(
            f"{record.folder}: fewer than {FEWEST} measurements of kappa in the last {100 * (1 - SETTLED):.0f} % of "
            "the run; lower commit.probe.interval or train for longer"
        )
    train = record.recipe["train"]
    rates = record.base_rates
    method = record.recipe["commit"]["method"]
    half = max(1, len(losses) // 2)
    return RunSummary(
        task=_task(record),
        arm=_text({**record.recipe, "train": {k: v for k, v in train.items() if k not in ("seed", "save_weights")}}),
        method=STATIC if method == CONSTANT and rates[0] != rates[1] else method,
        rates=rates,
        seed=record.seed,
        spread=float(settled.std(ddof=1)),
        jumps=jumps(settled),
        distance=abs(float(np.median(settled))),
        mean_loss=float(losses.mean()),
        half_loss=float(losses[max(0, half - _SMOOTH) : half].mean()),
        final_loss=float(losses[-_SMOOTH:].mean()),
        log_rates=_log_rates(history),
    )


def jumps(values: Any) -> float:
    """Return a series' standard deviation around its trend: RMS neighbour difference over sqrt(2) (von Neumann 1941).

    Args:
        values: Array [n], at least two.

    Example:
        >>> jumps(np.array([0.0, 2.0, 0.0, 2.0]))  # a change of 2 each time
        1.4142135623730951
    """
    return float(np.sqrt(np.square(np.diff(values)).mean() / 2))


def task_name(task: str) -> str:
    """Return a short name of a task, for a heading."""
    parts = json.loads(task)
    model, train = parts["model"], parts["train"]
    lora = f"LoRA r = {model['lora']['r']}" if model["lora"] else "full tuning"
    return f"{Path(model['name']).name}, {lora}, {train['steps']} steps of {train['batch_size']}, {train['optimizer']}"


def _task(record: RunRecord) -> str:
    train = {key: value for key, value in record.recipe["train"].items() if key not in _SPLIT_OFF}
    data = {"checksum": record.data_checksum, "limit": record.recipe["data"]["train_limit"]}
    return _text({"model": record.recipe["model"], "data": data, "train": train})


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def log_kappas(history: Sequence[Mapping[str, float | None]]) -> Any:
    """Return log kappa at every step that has one, [measurements]."""
    kappas = [with_nan(row.get("kappa")) for row in history]
    return np.log([kappa for kappa in kappas if math.isfinite(kappa) and kappa > 0])


def _log_rates(history: Sequence[Mapping[str, float | None]]) -> tuple[float, ...]:
    """Return the mean log rate of each module over the steps at which it moved."""
    keys = sorted(key for key in history[0] if key.startswith("lr/"))
    used = [[math.log(rate) for row in history if (rate := row.get(key))] for key in keys]
    return tuple(float(np.mean(logs)) if logs else math.nan for logs in used)
