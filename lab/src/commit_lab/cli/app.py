"""The `commit-lab` command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from commit_lab import __version__
from commit_lab.cli.demo import demo
from commit_lab.cli.reproduce import reproduce
from commit_lab.cli.study import study
from commit_tuning.cli.app import OPTIONS, run_app

app = typer.Typer(**OPTIONS)
app.command()(demo)
app.command(no_args_is_help=True)(reproduce)
app.add_typer(study, name="study", no_args_is_help=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"commit-lab {__version__}")
        raise typer.Exit


@app.callback()
def commit_lab(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run the experiments behind commit-tuning (CoMMIT).

    Start with [bold]commit-lab demo[/bold]: it tunes a small model twice in a few minutes and writes a report.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `commit-lab` and exit.

    Args:
        arguments: Words after the command's name; those of the process by default.

    Raises:
        SystemExit: Always, with the exit code.
    """
    run_app(app, "commit-lab", arguments)
