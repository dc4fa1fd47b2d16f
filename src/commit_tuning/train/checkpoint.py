"""Checkpoints of a run: whole or not there, checked before they are used, and without pickles.

`checkpoints/step-000100/` holds `tensors.safetensors`, `state.json` with every plain value and the names of the
tensors, and `manifest.json` with the SHA-256 of both.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from commit_tuning.errors import UserError
from commit_tuning.storage import explained, remove_temporary, sha256, sync, temporary_path
from commit_tuning.train.record import CHECKPOINTS, RunRecord, differences

_MANIFEST, _STATE, _TENSORS = "manifest.json", "state.json", "tensors.safetensors"
_BEGINNINGS = {_MANIFEST: b'{\n "form": ', _STATE: b'{"dict": '}  # what tells them from files of others
_FORM = 1  # of what a checkpoint holds
_KEPT = 2
_SECONDS = 600.0  # between two checkpoints at most, if a step is not longer
State = dict[str, Any]


class DamagedCheckpointError(Exception):
    """A checkpoint that is not what was written; the message says what is wrong with it."""


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: The run's folder.
        identity: What decides the run's numbers, as JSON values; a checkpoint of another identity is refused.
        interval: Steps between two checkpoints; one is also due ten minutes after the last. None: none is due.
    """

    run: Path
    identity: dict[str, Any]
    interval: int | None
    _saved_at: float = field(default_factory=time.monotonic)

    def due(self, step: int, last_step: int) -> bool:
        """Whether the state after a step is to be saved; that after the last step is, as the evaluation may fail."""
        if self.interval is None:
            return False
        return step % self.interval == 0 or step == last_step or time.monotonic() - self._saved_at > _SECONDS

    def save(self, step: int, state: State) -> None:
        """Write the state after a step, and remove all checkpoints but the last two.

        Args:
            step: Optimizer steps made.
            state: Nested dicts, lists and tuples of tensors, numbers, texts and None.

        Raises:
            UserError: It cannot be written, as on a full disk.
        """
        from safetensors import SafetensorError

        folder = self.run / CHECKPOINTS / f"step-{step:06d}"
        temporary = temporary_path(folder)
        try:
            with explained(folder):
                if _is_ours(folder):  # it is damaged, or else the run would have gone on from it
                    _remove(folder)
                temporary.mkdir(parents=True)
                _write(temporary, state | {"identity": self.identity})
                temporary.rename(folder)
                sync(folder.parent)
                for old in stored(self.run)[:-_KEPT]:
                    _remove(old)
        except SafetensorError as error:
            raise UserError(f"cannot write {folder}: {error}; make room or choose another place") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._saved_at = time.monotonic()

    def refuse_another(self, state: State) -> None:
        """Make sure that a state was saved by this run.

        Raises:
            UserError: It is of another recipe, of other data, of another model, or of other versions.
        """
        found = differences(state["identity"], self.identity)
        if found:
            raise UserError(
                f"the checkpoints in {self.run} are of another run (it differs in {', '.join(found[:5])}); go on with "
                "what they were made with, choose another --output, or give --force to start again"
            )


def newest(run: Path, tell: Callable[[str], None], check: Callable[[State], None] = lambda state: None) -> State | None:
    """The state of a run's newest checkpoint that is whole; None if there is none.

    Args:
        run: The run's folder.
        tell: Told of each checkpoint that is damaged.
        check: Raises `DamagedCheckpointError` where what lies beside a checkpoint does not fit its state.
    """
    for folder in reversed(stored(run)):
        try:
            state = read(folder)
            check(state)
        except DamagedCheckpointError as fault:
            tell(f"{folder} is damaged and not used: {fault}")
        else:
            return state
    return None


def stored(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the oldest first; what else lies beside them is nobody's."""
    named = {path: re.fullmatch(r"step-(\d{6,})", path.name) for path in (run / CHECKPOINTS).glob("step-*")}
    steps = {path: int(match[1]) for path, match in named.items() if match and _is_ours(path)}
    return sorted(steps, key=steps.__getitem__)


def read(folder: Path) -> State:
    """The state that a checkpoint holds; its tensors are on the CPU.

    Raises:
        DamagedCheckpointError: It is not what was written.
    """
    from safetensors.torch import load_file

    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = {name: manifest["files"][name] for name in (_STATE, _TENSORS)}
        changed = [name for name, digest in files.items() if sha256(folder / name) != digest]
        if changed or manifest["form"] != _FORM:
            raise DamagedCheckpointError(f"{' and '.join(changed) or _MANIFEST} is not what was written")
        plain = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"it cannot be read ({type(error).__name__}: {error})") from None
    return _decoded(plain, load_file(folder / _TENSORS))  # type: ignore[no-any-return]


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints of a run, what a killed process left of one, and their folder if nothing else is in it."""
    place = run / CHECKPOINTS
    if not place.is_dir():
        return
    with explained(place):
        for folder in stored(run):
            _remove(folder)
        remove_temporary(place)
    with suppress(OSError):  # something else is in it
        place.rmdir()


def clear_up(record: RunRecord) -> None:
    """Remove what a process that was killed at the very end of a run has left in its folder; the results stay."""
    if record.files is not None:  # runs of older versions saved no checkpoints
        remove_checkpoints(record.folder)
    remove_temporary(record.folder)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, be it damaged, and nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return names <= {*_BEGINNINGS, _TENSORS} and (
        not names or any(_begins(folder / name, start) for name, start in _BEGINNINGS.items())
    )


def _begins(path: Path, start: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _write(folder: Path, state: State) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plain = _encoded(state, "", tensors)
    save_file(tensors, folder / _TENSORS)
    (folder / _STATE).write_text(json.dumps(plain), encoding="utf-8")
    files = {name: sha256(folder / name) for name in (_STATE, _TENSORS)}
    (folder / _MANIFEST).write_text(json.dumps({"form": _FORM, "files": files}, indent=1) + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        sync(path)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; no part of it is ever taken for a whole one."""
    doomed = temporary_path(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON that also tells tuples, keys that are no text, and tensors, which go to `tensors` under their place."""
    match value:
        case Tensor():
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        case Mapping():
            return {"dict": [[key, _encoded(part, f"{name}/{key}", tensors)] for key, part in value.items()]}
        case list() | tuple():
            parts = [_encoded(part, f"{name}/{at}", tensors) for at, part in enumerate(value)]
            return {"tuple": parts} if isinstance(value, tuple) else parts
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{name}: a checkpoint cannot hold a {type(value).__name__}")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name].clone()  # apart from the file, which may be removed
        case {"dict": pairs}:
            return {key: _decoded(part, tensors) for key, part in pairs}
        case {"tuple": parts}:
            return tuple(_decoded(part, tensors) for part in parts)
        case list():
            return [_decoded(part, tensors) for part in value]
    return value
