"""The record of a run: what was run, on what, and what came out; JSON that never looks finished before it is."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from commit_tuning.errors import UserError

RECORD = "run.json"
HISTORY = "history.jsonl"
PREDICTIONS = "predictions.jsonl"
SKIPPED = "skipped.jsonl"
Status = Literal["running", "complete", "failed"]
_OPTIMIZERS = ("dog-optimizer", "prodigyopt", "schedulefree")
_PACKAGES = ("commit-tuning", "torch", "transformers", "peft", "safetensors", "pillow", *_OPTIMIZERS)


class RunFailedError(Exception):
    """A run that could not go on, through no fault of the input's form: one line that says where and what to try."""


@dataclass(kw_only=True)
class RunRecord:
    """One run, as `run.json` holds it.

    Attributes:
        recipe: The recipe as resolved (`Recipe.for_record()`).
        status: `"running"` until the very end; a run that was interrupted keeps it.
        metrics: Final numbers: `train_loss` (mean of the last 20 steps), `val` and `test` (each `accuracy`, `by_kind`
            and `questions`), `lowest_multiplier` (smallest non-zero learning rate of a module / its base rate; None
            where drifts set the rates), `starving` (modules that starve at the end: the step since which they do),
            `overhead` (wall time of measuring, control and regulariser over that of the rest of the training loop),
            `val_loss` and `seen_loss` (of the tuned model in evaluation mode, nats per answer token, on up to 600
            validation questions and on at most as many that it was tuned on). Older runs lack some of these.
        error: Why it failed, one line.
        skipped: Split to how many of its entries could not be read and the first of them; only splits with any.
        seconds: Wall time of training and of evaluation.
        parameters: Trainable parameters per module.
        folder: Where the record lies; not stored.
    """

    recipe: dict[str, Any]
    status: Status = "running"
    seed: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    data_checksum: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def complete(self) -> bool:
        """Whether the run went to its end."""
        return self.status == "complete"

    def accuracy(self, split: str) -> float:
        """The dataset's metric over `split`'s questions, in [0, 1]; 0 for a run that did not finish."""
        return float(self.metrics[split]["accuracy"]) if self.complete else 0.0

    def write(self) -> None:
        """Store as `folder/run.json`, replacing it in one move."""
        plain = {key: value for key, value in vars(self).items() if key != "folder"}
        write_text(self.folder / RECORD, json.dumps(without_nan(plain), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """Read `folder/run.json`.

        Raises:
            UserError: There is none, or it is not a run record.
        """
        path = Path(folder) / RECORD
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            names = {f.name for f in dataclasses.fields(cls)} - {"folder"}
            return cls(**{key: value for key, value in stored.items() if key in names}, folder=Path(folder))
        except FileNotFoundError:
            raise UserError(f"no {RECORD} in {folder}; give the output folder of a run") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a run record ({error}); remove it or give another folder") from None

    @property
    def base_rates(self) -> tuple[float, float]:
        """Base learning rate of the language model and of the encoders."""
        train = self.recipe["train"]
        return train["learning_rate"], train["encoder_learning_rate"] or train["learning_rate"]

    def history(self) -> list[dict[str, float | None]]:
        """One flat mapping per optimizer step, in order; see `experiments.runner`."""
        return read_lines(self.folder / HISTORY)

    def predictions(self) -> list[dict[str, Any]]:
        """One mapping per test question: `id`, `kind`, `question`, `choices`, `truth`, `answer`."""
        return read_lines(self.folder / PREDICTIONS)


def run_folders(folders: Iterable[str | Path]) -> list[Path]:
    """Every folder with a record in or below some folders, each once, in the order of the paths."""
    return sorted({path.parent.resolve() for folder in folders for path in Path(folder).rglob(RECORD)})


def load_records(folder: str | Path) -> list[RunRecord]:
    """Every run below a folder, in the order of the paths.

    Raises:
        UserError: There is none.
    """
    records = [RunRecord.read(path.parent) for path in sorted(Path(folder).rglob(RECORD))]
    if not records:
        raise UserError(f"no {RECORD} in or below {folder}; give the output folder of 'train' or 'compare'")
    return records


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a `.jsonl` file; none if there is no file. A line cut off by an interruption ends it."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def json_line(row: Mapping[str, Any]) -> str:
    """One row of a `.jsonl` file; what is not finite becomes null."""
    return json.dumps(without_nan(row), allow_nan=False, ensure_ascii=False) + "\n"


def without_nan(value: Any) -> Any:
    """The same JSON values with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(part) for key, part in value.items()}
    return [without_nan(part) for part in value] if isinstance(value, list | tuple) else value


def with_nan(value: float | None) -> float:
    """A number of a record; NaN where it holds null."""
    return math.nan if value is None else value


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def writable_folder(folder: str | Path) -> Path:
    """Create a folder and make sure that files can be written there.

    Raises:
        UserError: They cannot.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write to {path}: {reason.lower()}; choose another --output") from None
    return path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder that can be written; one that dies keeps nobody out.

    Raises:
        UserError: Another process works there.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"another process is at work in {folder}; wait for it, or choose another --output") from None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def hardware(threads: int) -> dict[str, Any]:
    """Processor, cores and torch threads."""
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "torch_threads": threads, "system": platform.platform()}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
