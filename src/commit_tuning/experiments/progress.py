"""How runs tell what they are doing."""

from typing import Protocol


class Progress(Protocol):
    """Called while work goes on: `done` of `total` of a task, and a few words."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take note."""


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""
