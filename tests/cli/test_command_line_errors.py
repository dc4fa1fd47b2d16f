"""What each kind of error looks like from outside: an exit code and one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from small_experiment import EXAMPLE, run

from commit_tuning.cli.app import _OF_THE_MACHINE
from commit_tuning.errors import UserError
from commit_tuning.processes import StoppedError
from commit_tuning.train import evaluate
from commit_tuning.train.record import RunFailedError

KINDS = sorted(_OF_THE_MACHINE)
NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes"),
]


def outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> tuple[int, list[str]]:
    """Exit code and lines of a command whose work ends in an error."""

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "evaluate", fails)
    code = run(["evaluate", EXAMPLE])
    return code, capsys.readouterr().err.splitlines()


def test_fourteen_kinds_of_faults_of_the_machine() -> None:
    assert len(KINDS) == 14


@pytest.mark.parametrize("number", KINDS, ids=[errno.errorcode[number] for number in KINDS])
def test_fault_of_the_machine_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    error = OSError(number, os.strerror(number), "/some\nwhere")
    line = f"commit-tuning: error: /some where: {os.strerror(number)}; {_OF_THE_MACHINE[number]}"
    assert outcome(monkeypatch, capsys, error) == (2, [line])


def test_fault_without_a_file_names_the_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = outcome(monkeypatch, capsys, OSError(errno.ENOSPC, "No space left on device"))
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("commit-tuning: error: the disk: No space left")


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_lack_of_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    line = "commit-tuning: run failed: out of memory; lower train.micro_batch_size or eval.batch_size"
    assert outcome(monkeypatch, capsys, error) == (1, [line])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a\nb"), 2, "error: a b"),
        (RunFailedError("the loss"), 1, "run failed: the loss"),
        (KeyboardInterrupt(), 130, "interrupted; the same command starts again with what is missing"),
        (StoppedError(signal.SIGTERM), 143, "stopped by SIGTERM; the same command starts again with what is missing"),
    ],
    ids=["user", "run", "Ctrl-C", "SIGTERM"],
)
def test_exit_code_tells_the_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert outcome(monkeypatch, capsys, error) == (code, [f"commit-tuning: {line}"])


@pytest.mark.parametrize("error", [OSError("no number"), RuntimeError("a fault of ours"), ZeroDivisionError()])
def test_fault_of_ours_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    with pytest.raises(type(error)):
        outcome(monkeypatch, capsys, error)


@pytest.mark.parametrize("command", [["--version"], ["train", "--help"]])
def test_output_that_nobody_reads_ends_quietly(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from commit_tuning.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *command], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
