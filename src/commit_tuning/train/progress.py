"""How runs tell what they are doing."""

import time
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Called while work goes on: `done` of `total` of a task, and a few words."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take note."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def counting(progress: Progress, task: str, total: int) -> Callable[[int], None]:
    """What tells a progress how much of one task is done."""
    return lambda done: progress(task, done, total)


class Stopwatch:
    """Wall time spent inside `with` blocks, in seconds; work that a device does later is not waited for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        """Start."""
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self.seconds += time.perf_counter() - self._started
