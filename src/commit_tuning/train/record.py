"""The record of a run: what was run, on what, and what came out; JSON that never looks finished before it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from commit_tuning.errors import UserError
from commit_tuning.storage import explained, sha256, sync, temporary_path, write_bytes, write_text

RECORD = "run.json"
HISTORY = "history.jsonl"
PREDICTIONS = "predictions.jsonl"
SKIPPED = "skipped.jsonl"
WEIGHTS = "tuned.safetensors"
ADAPTER = "adapter"
IMAGES = "images"
LOG = "log.txt"
LOCK = ".lock"
REPORT = "report.html"
TICKET = "cluster.json"
CHECKPOINTS = "checkpoints"
RESULT_FILES = frozenset((HISTORY, PREDICTIONS, SKIPPED, WEIGHTS))
RESULT_FOLDERS = frozenset((ADAPTER, IMAGES))
COMPANIONS = frozenset((RECORD, LOG, LOCK, REPORT, TICKET))  # ours by their names, whoever made them
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
        data: Split to the checksum of what was read of it (`dataset.samples_checksum`).
        data_checksum: One checksum over all splits; runs of older versions copied it from the dataset's manifest.
        model: The checksum of the weights that the run began with (`model_setup.model_checksum`).
        files: Every file of the run, relative to the folder, to its SHA-256. A file that is still to be written, or is
            being written, has None. Older runs have no such list, and cannot be checked.
        seconds: Wall time of training and of evaluation.
        parameters: Trainable parameters per module.
        folder: Where the record lies; not stored.
    """

    recipe: dict[str, Any]
    status: Status = "running"
    seed: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    data_checksum: str | None = None
    model: str | None = None
    files: dict[str, str | None] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def complete(self) -> bool:
        """Whether the run went to its end, and its files are as it wrote them; weights may have been removed."""
        return self.status == "complete" and not self.damage

    @cached_property
    def damage(self) -> tuple[str, ...]:
        """The files that are not as the run wrote them, by name; nothing of an older run, which named none.

        Weights that are not there at all are `removed`, as by somebody who needs the room.
        """
        if self.files is None:
            return ()
        due = dict.fromkeys((HISTORY, PREDICTIONS)) | self.files if self.status == "complete" else self.files
        written = {name: digest for name, digest in due.items() if digest or self.status == "complete"}
        return tuple(
            name for name, digest in written.items() if not self._is_whole(name, digest) and not self._gone(name)
        )

    @property
    def removed(self) -> tuple[str, ...]:
        """The files of weights that are not there any more, by name: the numbers of a run need none of them."""
        return tuple(filter(self._gone, self.files or ())) if self.status == "complete" else ()

    @property
    def fault(self) -> str | None:
        """What is wrong with the files of the run and what to do, on one line; None if nothing is."""
        if not self.damage:
            return None
        return (
            f"{self.folder / self.damage[0]} is missing or not as the run wrote it ({len(self.damage)} such in all); "
            f"restore it, or remove {self.folder} and run again"
        )

    def refuse_damage(self) -> None:
        """Make sure that the files of the run are as it wrote them.

        Raises:
            UserError: One is not.
        """
        if self.fault:
            raise UserError(self.fault)

    def accuracy(self, split: str) -> float:
        """The dataset's metric over `split`'s questions, in [0, 1]; 0 for a run that did not finish."""
        return float(self.metrics[split]["accuracy"]) if self.complete else 0.0

    def plan(self, names: Iterable[str]) -> None:
        """Name the files that the run may write, and store that before any of them is there."""
        self.files = dict.fromkeys(names)
        self.write()

    def store(self, name: str, content: str | bytes) -> None:
        """Write a file of the run, whole or not at all, and note its checksum."""
        raw = content.encode("utf-8") if isinstance(content, str) else content
        path = self.folder / name
        with explained(path):
            path.parent.mkdir(exist_ok=True)
        write_bytes(path, raw)
        self._note(name, hashlib.sha256(raw).hexdigest())

    def seal(self, name: str) -> None:
        """Note the checksum of a file of the run that is whole now."""
        path = self.folder / name
        with explained(path):
            sync(path)
            self._note(name, sha256(path))

    def finish(self) -> None:
        """Store the run as complete; what it did not write after all is named no more."""
        self.files = {name: digest for name, digest in (self.files or {}).items() if digest}
        self.status = "complete"
        self.write()

    def file(self, name: str) -> Path | None:
        """A file of the run by its name in the folder; None if it is not there, or no run writes such a file."""
        path = self.folder / name
        return path if is_result(name) and path.is_file() and not leads_elsewhere(self.folder, name) else None

    def write(self) -> None:
        """Store as `folder/run.json`, replacing it in one move."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "folder"}
        write_text(self.folder / RECORD, json.dumps(without_nan(plain), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """Read `folder/run.json`.

        Raises:
            UserError: There is none, or it is not a run record.
        """
        path = Path(folder) / RECORD
        try:
            content = path.read_bytes()
            record = _form().validate_json(content, strict=True)
            _check_marks(from_json(content))
            _check_names(record.files or ())
        except FileNotFoundError:
            if path.is_symlink():
                raise UserError(f"{path} is a link to nothing; remove it or give another folder") from None
            raise UserError(f"no {RECORD} in {folder}; give the output folder of a run") from None
        except (OSError, ValueError) as error:
            reason = _reason(error)
            raise UserError(f"{path} is not a run record ({reason}); remove it or give another folder") from None
        record.folder = Path(folder)
        return record

    def _note(self, name: str, digest: str) -> None:
        self.files = {**(self.files or {}), name: digest}
        self.__dict__.pop("damage", None)

    def _is_whole(self, name: str, digest: str | None) -> bool:
        path = self.file(name)
        try:
            return path is not None and sha256(path) == digest
        except OSError:
            return False

    def _gone(self, name: str) -> bool:
        return name.partition("/")[0] in (WEIGHTS, ADAPTER) and not os.path.lexists(self.folder / name)

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


def is_result(name: str) -> bool:
    """Whether a run writes a file of that name; such a name never leads outside the folder of the run."""
    top, *below = name.split("/")
    if not below:
        return top in RESULT_FILES
    return top in RESULT_FOLDERS and len(below) == 1 and re.fullmatch(r"\w[\w.-]*", below[0], re.ASCII) is not None


def _check_marks(content: Mapping[str, Any]) -> None:
    """Tell a record, of any version, from the JSON of somebody else that has a recipe as well."""
    for mark in ("status", "versions"):
        if mark not in content:
            raise ValueError(f"it has no {mark}")


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not is_result(name):
            raise ValueError(f"no run writes a file {name[:100]!r}")


def leads_elsewhere(folder: Path, name: str) -> bool:
    """Whether a link stands in the way from a folder to a file in it."""
    return (folder / name).resolve() != folder.resolve() / name


@cache
def _form() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def _reason(error: Exception) -> str:
    """What a file has that it should not have, in a few words."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].lower())))[:200]
    return str(error)[:200]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a `.jsonl` file; none if there is no file. A last line that was cut off is left out.

    Raises:
        UserError: The file cannot be read, or another line than the last is no JSON object.
    """
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    rows = [_row(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()
    if None in rows:
        raise UserError(f"{path}:{rows.index(None) + 1} is no JSON object; restore the file, or run again")
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


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


def writable_folder(folder: str | Path) -> Path:
    """Create a folder and make sure that files can be written there.

    Raises:
        UserError: They cannot.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(path / "writable")
        probe.touch()
        probe.unlink(missing_ok=True)  # whoever works there may have removed it
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write to {path}: {reason.lower()}; choose another --output") from None
    return path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder that can be written; one that dies keeps nobody out.

    Raises:
        UserError: Another process works there, or the lock cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    with explained(folder / LOCK):
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is at work in {folder}; wait for it, or choose another --output"
            ) from None
    try:
        yield
    finally:
        lock.release()


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


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [prefix.removesuffix(".")]
