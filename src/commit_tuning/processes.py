"""How a process of ours begins and ends: with the process that started it, in good order when a signal asks it to."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Self

STARTS_AGAIN = "the same command starts again with what is missing"


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without garbage collection, which takes a fifth of the time and finds nothing; then never look there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        if enabled:
            gc.enable()


class StoppedError(BaseException):
    """A signal ended this process's work. It is no `Exception`: nobody should catch it and go on.

    Args:
        number: The signal's number.
        advice: What was kept and how to go on, as the end of a sentence.
    """

    def __init__(self, number: int, advice: str = STARTS_AGAIN) -> None:
        word = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        super().__init__(f"{word}; {advice}")
        self.exit_code = 128 + number


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """Handle a signal by raising `StoppedError`."""
    raise StoppedError(number)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `StoppedError` at SIGTERM, whose default action ends a process without a word and without clearing up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class HeldBack:
    """Holds SIGTERM and Ctrl-C back inside a `with` block, so that an optimizer step ends whole.

    The first signal is kept in `number`. A second one raises `StoppedError` at once. Signals that somebody else handles
    or ignores, such as a cluster's, are left to them; outside the main thread nothing is held back.
    """

    _REPLACED = (signal.SIG_DFL, signal.default_int_handler, raise_stopped)

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Begin."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in self._REPLACED:
                    self._before[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """End: put the handlers from before back, and raise `StoppedError` for a signal that nobody asked about."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.number is not None:
            raise StoppedError(self.number)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise_stopped(number, frame)
        self.number = number


def end_with_parent() -> None:
    """End this process when the one that made it through `multiprocessing` ends, however it ends.

    The parent holds the other end of a pipe; a thread of this process waits until the system closes it.
    """
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent,), name="end with parent", daemon=True).start()


def _wait_and_end(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
