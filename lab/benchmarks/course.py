"""A training with stops to look at it, for the benchmarks that answer the paper's open questions.

At every stop the model is evaluated and everything is kept, so that a run that was cut off goes on from its last stop.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arms import Arm
from torch import Tensor, nn

from commit_tuning import Coordinator, ModulePartition
from commit_tuning.errors import UserError
from commit_tuning.storage import write_text
from commit_tuning.train.record import (
    HISTORY,
    hardware,
    json_line,
    package_versions,
    read_lines,
    without_nan,
    writable_folder,
)
from commit_tuning.train.training import accumulate_gradients, clip_gradients

RECORD, CHECKPOINT = "course.json", "checkpoint.pt"
MAX_GRAD_NORM = 1.0
RECENT = 100  # training steps whose mean loss a stop reports
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A model to train, and its samples.

    Attributes:
        model: With trainable parameters.
        partition: Of them.
        order: Endless lists of positions of samples, one list for each step.
        collate: Positions to a batch.
        evaluate: Numbers of the model as it is, in evaluation mode.
    """

    model: nn.Module
    partition: ModulePartition
    order: Iterator[list[int]]
    collate: Callable[[list[int]], Batch]
    evaluate: Callable[[], Mapping[str, float]]


def follow(  # noqa: PLR0917
    make: Callable[[int], Subject], arm: Arm, seed: int, stops: Sequence[int], folder: Path, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Train one arm with one seed to its last stop, or read its record if it is there.

    Args:
        make: Seed to a fresh subject.
        arm: Method and rate.
        seed: Of everything.
        stops: Optimizer steps after which to look, rising.
        folder: Of the run; gets `course.json`, `history.jsonl` (the measured steps), and a checkpoint until it is done.
        about: Whatever else the run depends on, as JSON values.

    Returns:
        The record: `about` (with the stops), `arm`, `seed`, `start` (step and kappa of the first measurements), `stops`
        (one mapping each), `lowest_multiplier`, `failed` (a step or None), versions and hardware.

    Raises:
        UserError: The folder holds a run about something else.
    """
    about = json.loads(json.dumps({**about, "stops": list(stops)}))
    path, started = writable_folder(folder) / RECORD, folder / CHECKPOINT
    kept: dict[str, Any] | None = None
    if path.is_file():
        kept = json.loads(path.read_text("utf-8"))
    elif started.is_file():
        kept = torch.load(started, weights_only=False)["record"]
    if kept is not None and kept["about"] != about:
        raise UserError(f"{folder} holds a run with other settings; choose another --output or remove it")
    if kept is not None and path.is_file():
        return kept
    torch.manual_seed(seed)
    run = _Run(make(seed), arm, folder)
    record = run.resume() or {"about": about, "arm": arm.text, "seed": seed, "stops": [], "failed": None}
    record |= {"versions": package_versions(), "hardware": hardware(torch.get_num_threads())}
    for stop in stops[len(record["stops"]) :]:
        try:
            run.train(stop)
        except FloatingPointError:
            record["failed"] = run.step
        record["lowest_multiplier"] = None if math.isinf(run.lowest) or arm.config.sets_drift else run.lowest
        if record["failed"]:
            break
        record.setdefault("start", run.start)
        record["stops"].append(run.look())
        run.keep(record)
    write_text(path, json.dumps(without_nan(record), indent=1) + "\n")
    started.unlink(missing_ok=True)
    return record


class _Run:
    """A training in progress."""

    def __init__(self, subject: Subject, arm: Arm, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self._optimizer = torch.optim.AdamW(subject.partition.param_groups(lr=arm.rate), weight_decay=0.0)
        self._coordinator = Coordinator(subject.model, self._optimizer, arm.config, partition=subject.partition)
        self._trainable = [parameter for name in subject.partition for parameter in subject.partition[name]]
        self._losses: list[float] = []
        self._rows: list[dict[str, Any]] = []
        self.step, self.seconds, self.lowest = 0, 0.0, math.inf

    def train(self, stop: int) -> None:
        """Train up to a stop; FloatingPointError when the loss is not finite."""
        started, self._rows = time.perf_counter(), []
        self.subject.model.train()
        with (self.folder / HISTORY).open("a", encoding="utf-8") as history:
            for indices in itertools.islice(self.subject.order, stop - self.step):
                self.step += 1
                row = {"step": self.step, **self._one(self.subject.collate(indices))}
                if any(value is not None for key, value in row.items() if key.startswith("drift/")):
                    history.write(json_line(row))
                    self._rows.append(row)
        self.seconds += time.perf_counter() - started

    @property
    def start(self) -> list[tuple[int, float | None]]:
        """Step and kappa of the first measurements since the last stop."""
        return [(row["step"], row["kappa"]) for row in self._rows[:20]]

    def _one(self, batch: Batch) -> dict[str, Any]:
        loss = accumulate_gradients(self.subject.model, [batch])
        if not math.isfinite(loss):
            raise FloatingPointError
        norm = clip_gradients(self._trainable, MAX_GRAD_NORM)
        self.lowest = min([self.lowest, *filter(None, self._coordinator.multipliers.values())])
        self._coordinator.step(batch)
        self._optimizer.zero_grad()
        self._losses = [*self._losses, loss][-RECENT:]
        return {"loss": loss, "grad_norm": norm, **self._coordinator.metrics()}

    def look(self) -> dict[str, Any]:
        """Return the numbers of a stop: evaluation, training loss, kappa since the last stop, rates, memory."""
        coordinator, subject = self._coordinator, self.subject
        subject.model.eval()
        with torch.no_grad():
            found = dict(subject.evaluate())
        found |= {"step": self.step, "seconds": round(self.seconds, 1), "memory_mib": memory()}
        found["train_loss"] = statistics.fmean(self._losses)
        found["smoothed_kappa"] = coordinator.smoothed_kappa
        for name in ["kappa", *(f"kappa/{n}" for n in subject.partition.encoders if len(subject.partition.names) > 2)]:
            found[name], found[f"spread_{name}"] = _middle([row[name] for row in self._rows if row[name]])
        for name in subject.partition:
            found[f"lr/{name}"] = coordinator.learning_rates[name]
            found[f"drift/{name}"] = coordinator.drift.get(name)
        return without_nan(found | {"starving": coordinator.starving})

    def keep(self, record: dict[str, Any]) -> None:
        """Write what `resume` goes on from."""
        model = self.subject.model
        changing = [(n, p.detach()) for n, p in model.named_parameters() if p.requires_grad]
        state = {
            "record": record, "model": dict([*changing, *model.named_buffers()]), "losses": self._losses,
            "optimizer": self._optimizer.state_dict(), "coordinator": self._coordinator.state_dict(),
            "random": torch.get_rng_state(), "step": self.step, "seconds": self.seconds, "lowest": self.lowest,
        }  # fmt: skip
        temporary = self.folder / f"{CHECKPOINT}.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / CHECKPOINT)

    def resume(self) -> dict[str, Any] | None:
        """Take over a checkpoint; returns the record so far, None where there is none."""
        path, history = self.folder / CHECKPOINT, self.folder / HISTORY
        if not path.is_file():
            history.unlink(missing_ok=True)
            return None
        state = torch.load(path, weights_only=False)
        named = dict([*self.subject.model.named_parameters(), *self.subject.model.named_buffers()])
        with torch.no_grad():
            for name, value in state["model"].items():
                named[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._coordinator.load_state_dict(state["coordinator"])
        torch.set_rng_state(state["random"])
        self.step, self.seconds, self.lowest = state["step"], state["seconds"], state["lowest"]
        self._losses = state["losses"]
        write_text(history, "".join(json_line(row) for row in read_lines(history) if row["step"] <= self.step))
        for _ in itertools.islice(self.subject.order, self.step):
            pass
        record: dict[str, Any] = state["record"]
        record.setdefault("resumed_at", []).append(self.step)
        return record


def memory() -> float | None:
    """Return the resident memory of this process in MiB, where the system reports it."""
    path = Path("/proc/self/statm")
    pages = int(path.read_text("ascii").split()[1]) if path.is_file() else None
    return None if pages is None else round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _middle(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the median, and the standard deviation of the logarithm."""
    if not values:
        return None, None
    return statistics.median(values), statistics.stdev(map(math.log, values)) if len(values) > 1 else None


def run_all(
    make: Callable[[int], Subject],
    arguments: argparse.Namespace,
    output: Path,
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """`follow` every arm and seed of a command line, one after the other, in folders of their own below `output`.

    On one processor core, so that two scripts may run side by side and a resumed run rounds as before. Ends the program
    where `follow` raises.
    """
    torch.set_num_threads(1)
    stops, records = arguments.stops, []
    try:
        arms = [Arm.parse(text, stops[-1]) for text in arguments.arms]
        for seed, arm in itertools.product(arguments.seeds, arms):
            folder = output / arm.text.replace(":", "_") / f"seed-{seed}"
            records.append(follow(make, arm, seed, stops, folder, about))
    except UserError as error:
        sys.exit(f"error: {error}")
    return sorted(records, key=lambda record: arguments.arms.index(record["arm"]))


@torch.no_grad()
def teacher_forced(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Return the loss in nats per target token, and the percentage of answers whose every token is the likeliest.

    That share is the accuracy of greedy generation under exact match: it goes wrong where the first token does.
    """
    total, tokens, right, answers = 0.0, 0, 0, 0
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits, labels = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
        asked = labels != -100
        total += float(nn.functional.cross_entropy(logits[asked], labels[asked], reduction="sum"))
        right += int(((logits.argmax(-1) == labels) | ~asked).all(1).sum())
        tokens, answers = tokens + int(asked.sum()), answers + len(labels)
    return {"loss": total / tokens, "accuracy": 100 * right / answers}
