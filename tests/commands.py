"""Commands in processes of their own, which a test can watch, stop and kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from commit_tuning.errors import UserError
from commit_tuning.train.record import RunRecord, alone_in

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["commands", "commit_tuning.train.runner", "commit_tuning.cli.app", "peft"])
_LONGEST = 120.0  # seconds until a test gives up
Moment = Callable[[], bool]


class Command:
    """`commit-tuning` with some arguments, at work since this was made; what it says goes to a file.

    It is forked from a process that has imported the libraries, so it takes no time to start.
    """

    def __init__(self, arguments: Sequence[str | Path], said: Path) -> None:
        self.said = said
        self._process = _CONTEXT.Process(target=_run, args=([str(a) for a in arguments], str(said)), daemon=False)
        self._process.start()

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._process.pid, number)  # type: ignore[arg-type]

    def until(self, moment: Moment) -> bool:
        """Wait for a moment; returns whether the command was still at work then."""
        deadline = time.monotonic() + _LONGEST
        while self._process.is_alive() and not moment():
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.0005)
        return self._process.is_alive()

    def end(self) -> int:
        """Wait for the end; returns the exit code, the negative signal for a process that was killed."""
        self._process.join(_LONGEST)
        assert self._process.exitcode is not None, self.said.read_text()
        return self._process.exitcode

    def kill(self) -> int:
        """End it at once, as `kill -9` does; returns what `end` does."""
        self.send(signal.SIGKILL)
        return self.end()

    @property
    def errors(self) -> list[str]:
        """The lines of the command about its end."""
        return [line for line in self.said.read_text().splitlines() if line.startswith("commit-tuning: ")]


def complete(arguments: Sequence[str | Path], said: Path) -> None:
    """Run a command to its end, which has to be a good one."""
    command = Command(arguments, said)
    assert command.end() == 0, said.read_text()


def wait_for(moment: Moment) -> bool:
    """Whether a moment comes within a minute."""
    deadline = time.monotonic() + 60
    while not moment() and time.monotonic() < deadline:
        time.sleep(0.01)
    return moment()


def lines(run: Path) -> int:
    """How many lines the history of a run has."""
    path = run / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_free(run: Path) -> bool:
    """Whether no process is at work in the folder of a run."""
    try:
        with alone_in(run):
            return True
    except UserError:
        return False


def results(run: Path) -> dict[str, object]:
    """Everything that a complete run leaves but wall time."""
    record = RunRecord.read(run)
    assert record.complete
    files = {name: (run / name).read_bytes() for name in record.files or ()}
    left = {path.name for path in run.iterdir()} - {"log.txt", ".lock", "cluster.json"}
    return {**files, "left": left, "metrics": record.metrics | {"overhead": None}, "skipped": record.skipped}


def table(comparison: Path) -> list[list[str]]:
    """The cells of a comparison's table without its seconds."""
    rows = [line.split("|") for line in (comparison / "table.md").read_text().splitlines()]
    seconds = rows[2].index(" Seconds ")
    return [[cell for at, cell in enumerate(row) if at != seconds] for row in rows]


@contextmanager
def interrupt_at(step: int) -> Iterator[None]:
    """Let every run of this process end during a step, counted from 1, as if it were killed there."""
    from commit_tuning.train.training import Training

    real = Training.advance

    def advance(self: Training, micro_batches: Any) -> dict[str, Any]:
        if self.steps == step - 1:
            raise KeyboardInterrupt
        return real(self, micro_batches)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Training, "advance", advance)
        yield


def _run(arguments: list[str], said: str) -> None:
    import torch

    from commit_tuning.cli.app import main

    torch.set_num_threads(int(os.environ.get("COMMIT_TUNING_TEST_THREADS", "1")))  # as in this process: bits may differ
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server it is forked from ignores it
    with Path(said).open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            main(arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
