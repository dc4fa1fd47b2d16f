"""A disk that is full, or cannot be written, at each write of a run: one line, nothing half-written, and it goes on."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from campaign import say, sized
from commands import results
from small_experiment import make_experiment, run

from commit_tuning.storage import is_temporary
from commit_tuning.train.record import RECORD, RunRecord

SETTINGS = ("train.steps=2", "train.checkpoint_interval=1", "eval.images=2")
CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("fsync", "truncate")),
    *((Path, name) for name in ("touch", "mkdir", "replace", "rename")),
    *((module, "open") for module in (io, builtins)),
)
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it is when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(["train", recipe, "-o", folder, *SETTINGS]) == 0
    return folder


def reads(mode: str = "r", *_: object, **__: object) -> bool:
    """Whether a file that is opened in a mode is only read."""
    return not set(mode) & set("wax+")


def is_below(path: object, folder: Path) -> bool:
    return isinstance(path, str | Path) and Path(path).is_relative_to(folder)


@contextmanager
def full_from(first: int, folder: Path, number: int) -> Iterator[list[int]]:
    """A disk on which every write below a folder fails, from the first one that is named; yields the writes so far."""
    writes = [0]

    def failing(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def attempt(*arguments: Any, **named: Any) -> Any:
            path = Path(f"/proc/self/fd/{arguments[0]}").readlink() if name == "fsync" else arguments[0]
            if not (name == "open" and reads(*arguments[1:], **named)) and is_below(path, folder):
                writes[0] += 1
                if writes[0] >= first:
                    raise OSError(number, os.strerror(number))
            return call(*arguments, **named)

        return attempt

    with pytest.MonkeyPatch.context() as patched:
        for where, name in CALLS:
            patched.setattr(where, name, failing(getattr(where, name), name))
        yield writes


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A limit of the system on the size of files, in bytes; what is longer is cut there, and the write fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_failed(code: int, folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what happened, and nothing half-written is there or taken for whole."""
    said = capsys.readouterr().err.splitlines()
    assert code == 2, said
    assert len(said) == 1, said
    assert re.match(rf"commit-tuning: error: cannot write (the weights )?(to )?{re.escape(str(folder))}\b", said[0]), (
        said
    )
    assert not list(filter(is_temporary, folder.rglob("*")))
    if (folder / RECORD).exists() and RunRecord.read(folder).complete:
        assert results(folder) | {"left": 0} == results(whole) | {"left": 0}


def writes_of(recipe: Path, folder: Path) -> int:
    with full_from(10**9, folder, errno.ENOSPC) as writes:
        assert run(["train", recipe, "-o", folder, *SETTINGS]) == 0
    return writes[0]


def test_a_full_disk_at_each_write(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = writes_of(recipe, tmp_path / "counted")
    faults = range(1, count + 1, sized(count // 6, 1))
    for first in faults:
        folder = tmp_path / f"run-{first}"
        arguments = ["train", recipe, "-o", folder, *SETTINGS]
        capsys.readouterr()
        with full_from(first, folder, errno.ENOSPC):
            code = run(arguments)
        check_failed(code, folder, whole, capsys)
        assert run(arguments) == 0
        assert results(folder) == results(whole)
    say(f"a full disk at {len(faults)} of {count} writes")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_written(
    number: int, recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with full_from(1, folder, number):
        code = run(["train", recipe, "-o", folder, *SETTINGS])
    check_failed(code, folder, whole, capsys)
    assert not folder.exists()


def test_files_that_are_cut(recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    largest = max(path.stat().st_size for path in whole.rglob("*"))
    for number in range(sized(3, 20)):
        folder, size = tmp_path / f"run-{number}", largest * number // sized(3, 20)
        arguments = ["train", recipe, "-o", folder, *SETTINGS]
        capsys.readouterr()
        with files_up_to(size):
            code = run(arguments)
        check_failed(code, folder, whole, capsys)
        assert run(arguments) == 0
        assert results(folder) == results(whole)
