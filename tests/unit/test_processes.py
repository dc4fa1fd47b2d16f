"""How processes end."""

from __future__ import annotations

import multiprocessing
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock

from commit_lab.nano.building import in_processes
from commit_tuning.processes import HeldBack, StoppedError, terminable


def test_sigterm_raises_and_names_itself() -> None:
    with pytest.raises(StoppedError, match=r"^stopped by SIGTERM; the same") as stopped, terminable():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    before, held = signal.getsignal(number), HeldBack()
    with held:
        signal.raise_signal(number)
        assert held.number == number
        with pytest.raises(StoppedError):
            signal.raise_signal(number)
        held.number = None
    assert signal.getsignal(number) == before


def test_a_held_signal_is_not_lost() -> None:
    with pytest.raises(StoppedError, match="interrupted"), HeldBack():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_signals_that_others_handle_are_theirs(handler: object) -> None:
    before = signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
    try:
        with HeldBack() as held:
            signal.raise_signal(signal.SIGTERM)
        assert held.number is None
    finally:
        signal.signal(signal.SIGTERM, before)


def hold(lock: str) -> None:
    """What a builder's worker does here: hold a lock for as long as it lives."""
    with FileLock(lock):
        Path(lock + ".held").touch()
        time.sleep(300)


def build(locks: list[str]) -> None:
    list(in_processes(hold, locks, len(locks)))


def test_builders_end_with_a_killed_parent(tmp_path: Path) -> None:
    locks = [str(tmp_path / name) for name in "ab"]
    parent = multiprocessing.get_context("spawn").Process(target=build, args=(locks,))
    parent.start()
    deadline = time.monotonic() + 60
    while not all(Path(f"{lock}.held").exists() for lock in locks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.join()
    for lock in locks:
        with FileLock(lock, timeout=60):
            pass
