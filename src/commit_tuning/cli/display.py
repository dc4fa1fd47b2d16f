"""Progress for people: moving bars on a terminal, plain lines in a log."""

from __future__ import annotations

import io
import sys
from types import TracebackType
from typing import Any, Self

import typer

from commit_tuning.shown import visible, visible_line


def say(text: str, *, error: bool = False) -> None:
    """Print a line on standard output, or on standard error; characters that act on a terminal are shown as escapes."""
    typer.echo(visible_line(text), err=error)


def spell_out() -> None:
    """Let standard output write escapes for characters that its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Display:
    """A `Progress` that shows itself on standard output; use it as a context manager.

    Args:
        every: Of the plain lines, show one in so many hundredths of a task; 0 shows all.
    """

    def __init__(self, every: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._every = every
        self._console = Console()
        self._shown: dict[str, int] = {}
        name, note = (TextColumn(text, markup=False) for text in ("{task.description:22}", "{task.fields[note]}"))
        self._bars = Progress(name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note, console=self._console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` of a task are behind us."""
        note = visible_line(note)
        if not self._console.is_terminal:
            self._line(task, done, total, note)
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, note=note)
        self._bars.update(self._tasks[task], completed=done, total=total, note=note)
        if self._every == 0:
            self._bars.console.print(note, markup=False, emoji=False, highlight=False)

    def _line(self, task: str, done: int, total: int, note: str) -> None:
        part = done if self._every == 0 else 100 * done // (self._every * total)
        if self._shown.get(task) != part or done == total:
            self._shown[task] = part
            say(f"{task} {done}/{total}" + (f"  {note}" if note else ""))


def show_table(markdown: str) -> None:
    """Print a Markdown text: laid out on a terminal, as it is in a log."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if console.is_terminal:
        console.print(Markdown(markdown))
    else:
        typer.echo(visible(markdown))
