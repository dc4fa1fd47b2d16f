"""What the drift regulariser did in finished runs: each arm against the same runs without it, seed by seed."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from commit_lab.studies.kappa_and_loss import SETTLED, jumps, log_kappas
from commit_tuning.config import CoMMITConfig, DriftPenalty, PreviousStep
from commit_tuning.data.readers.base import SPLITS
from commit_tuning.errors import UserError
from commit_tuning.partition.modules import LANGUAGE_MODEL
from commit_tuning.train.compare.arms import CONSTANT, METHOD_LABELS, rates_text
from commit_tuning.train.compare.table import Difference, paired_difference
from commit_tuning.train.record import RunRecord, run_folders, with_nan

_NOT_COMPARED = ("seed", "save_weights", "device")


@dataclass(frozen=True, order=True)
class Regularizer:
    """The regulariser of an arm.

    Attributes:
        reading: `"lookahead"` or `"previous-step"` (the drift penalty's too); empty for none.
        step: `"raw"` or `"optimizer"`.
        labels: `"given"` or `"sampled"`.
        weight: Above zero it rewards drift (Eq. 9-10), below it penalises it; 0 for none.
    """

    reading: str = ""
    step: str = ""
    labels: str = ""
    weight: float = 0.0

    @classmethod
    def of(cls, config: CoMMITConfig) -> Regularizer:
        """Return the regulariser that a configuration names."""
        reading = config.regularizer
        if reading is None:
            return cls()
        if not isinstance(reading, PreviousStep):
            return cls(reading.name, "raw", reading.labels, reading.weight)
        weight = -reading.weight if isinstance(reading, DriftPenalty) else reading.weight
        return cls(PreviousStep.name, reading.step, reading.labels, weight)


NONE = Regularizer()


@dataclass(frozen=True, order=True)
class Setting:
    """What an arm and the runs without the regulariser have in common.

    Attributes:
        model: Its name.
        method: What sets the rates, with the controller where there is one.
        rates: Base learning rates: one number, or language model / encoder.
        settings: Everything in the recipe but the regulariser and the seed, and the data's checksum, as JSON.
    """

    model: str
    method: str
    rates: str
    settings: str


@dataclass(frozen=True)
class Run:
    """One run. Norms are L2, medians over the measured steps; logarithms are natural.

    Attributes:
        seed: Decides batches and initial weights.
        validation: Accuracy in [0, 1].
        test: Accuracy in [0, 1].
        step_norm: Module to the norm of a step; NaN in a history that does not hold it.
        grad_norm: Module to the norm of the loss gradient before clipping; NaN likewise.
        predicted_gain: Module to the least that the ascent should add to a step (`step_gain`); NaN for every reading
            but lookahead.
        kappa_noise: Standard deviation of log kappa around its trend (`kappa_and_loss.jumps`), after a quarter.
        gap: Loss on validation questions less the loss on questions seen, in nats per target token; NaN likewise.
        step_seconds: Wall time of training per optimizer step.
    """

    seed: int
    validation: float
    test: float
    step_norm: dict[str, float]
    grad_norm: dict[str, float]
    predicted_gain: dict[str, float]
    kappa_noise: float
    gap: float
    step_seconds: float


@dataclass(frozen=True)
class Arm:
    """A setting under one regulariser, over seeds; differences are to the setting without one, None for that itself."""

    setting: Setting
    regularizer: Regularizer
    runs: tuple[Run, ...]
    validation: Difference | None
    test: Difference | None


def step_gain(drift: float, step_norm: float, rate: float, weight: float) -> float:
    """Return the least share by which a raw lookahead ascent lengthens a step.

    A step v moves the output by d = v'Fv / 2 nats, F being the Fisher information, and the ascent adds rate x weight x
    Fv to it: rate x weight x 2 d / |v|^2 of its length along the step itself, and something across it.

    Example:
        >>> step_gain(drift=0.5, step_norm=2.0, rate=0.1, weight=1.0)
        0.025
    """
    return rate * weight * 2 * drift / step_norm**2 if step_norm > 0 else math.nan


def read_arms(folders: Iterable[str | Path]) -> list[Arm]:
    """Read all arms of the complete runs in or below some folders; those without regulariser come first.

    A seed that was run twice counts once.

    Raises:
        UserError: No complete run there has a regulariser.
    """
    found: dict[tuple[Setting, Regularizer], dict[int, Run]] = defaultdict(dict)
    for folder in run_folders(folders):
        record = RunRecord.read(folder)
        if record.complete:
            config = CoMMITConfig(**record.recipe["commit"])
            found[_setting(record, config), Regularizer.of(config)].setdefault(record.seed, _run(record, config))
    regularised = {setting for setting, regularizer in found if regularizer != NONE}
    if not regularised:
        raise UserError("no complete run with a regularizer there; give output folders of 'compare' or 'train'")
    return [
        _arm(setting, regularizer, runs, found.get((setting, NONE), {}))
        for (setting, regularizer), runs in sorted(found.items(), key=lambda item: item[0])
        if setting in regularised
    ]


def _arm(setting: Setting, regularizer: Regularizer, runs: Mapping[int, Run], without: Mapping[int, Run]) -> Arm:
    def difference(split: str) -> Difference | None:
        if regularizer == NONE:
            return None
        ours, theirs = ({seed: getattr(run, split) for seed, run in group.items()} for group in (runs, without))
        return paired_difference(ours, theirs)

    ordered = tuple(runs[seed] for seed in sorted(runs))
    return Arm(setting, regularizer, ordered, difference("validation"), difference("test"))


def _setting(record: RunRecord, config: CoMMITConfig) -> Setting:
    train = record.recipe["train"]
    rate, encoder_rate = record.base_rates
    method = "commit-clr" if config.method == "commit" else config.method
    label = f"{METHOD_LABELS[method]}, {config.controller.name}" if config.coordinated else METHOD_LABELS[method]
    settings = {
        "model": record.recipe["model"],
        "data": [record.data_checksum, *(record.recipe["data"][f"{split}_limit"] for split in SPLITS)],
        "train": {k: v for k, v in train.items() if k not in _NOT_COMPARED} | {"encoder_learning_rate": encoder_rate},
        "commit": config.to_dict() | {"method": method, "regularizer": None},
    }
    if method == CONSTANT:  # kappa is looked at and not used; the samples are the regulariser's too
        settings["commit"] = {"method": method, "probe_samples": config.probe.samples}
    name, rates = Path(record.recipe["model"]["name"]).name, rates_text(rate, encoder_rate)
    return Setting(name, label, rates, json.dumps(settings, sort_keys=True))


def _run(record: RunRecord, config: CoMMITConfig) -> Run:
    history, metrics, train = record.history(), record.metrics, record.recipe["train"]
    modules = sorted(record.parameters, key=lambda name: (name != LANGUAGE_MODEL, name))
    measured = [row for row in history if row.get("kappa") is not None]
    settled = log_kappas(history[int(SETTLED * len(history)) :])
    ascends = config.regularizer is not None and not isinstance(config.regularizer, PreviousStep)
    weight = config.regularizer.weight if config.regularizer and ascends else math.nan
    return Run(
        seed=record.seed,
        validation=record.accuracy("val"),
        test=record.accuracy("test"),
        step_norm={m: known_median(row.get(f"step_norm/{m}") for row in measured) for m in modules},
        grad_norm={m: known_median(_unclipped(row, m, train["max_grad_norm"]) for row in measured) for m in modules},
        predicted_gain={m: known_median(_gain(row, m, weight) for row in measured) for m in modules},
        kappa_noise=jumps(settled) if len(settled) > 1 else math.nan,
        gap=with_nan(metrics.get("val_loss")) - with_nan(metrics.get("seen_loss")),
        step_seconds=record.seconds["training"] / train["steps"],
    )


def known_median(values: Iterable[float | None]) -> float:
    """Return the median of the numbers among the values; NaN if there is none."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return median(known) if known else math.nan


def _unclipped(row: Mapping[str, Any], module: str, limit: float | None) -> float | None:
    """Return the module's gradient norm before all gradients were scaled down to `limit` together."""
    norm, total = row.get(f"grad_norm/{module}"), row.get("grad_norm")
    if norm is None or total is None:
        return None
    return float(norm * max(1.0, total / limit if limit else 0.0))


def _gain(row: Mapping[str, Any], module: str, weight: float) -> float | None:
    """Return the predicted gain at one step; None for a history without the norm of the step."""
    drift, norm, rate = (row.get(f"{key}/{module}") for key in ("drift", "step_norm", "lr"))
    return step_gain(drift, norm, rate, weight) if drift and norm and rate is not None else None
