"""The `commit-tuning` command: its subcommands, and what each kind of error looks like from outside."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from commit_tuning.cli.compare import compare
from commit_tuning.cli.demo import demo
from commit_tuning.cli.display import say, spell_out
from commit_tuning.cli.evaluate import evaluate
from commit_tuning.cli.inspect import inspect
from commit_tuning.cli.report import report
from commit_tuning.cli.reproduce import reproduce
from commit_tuning.cli.train import train
from commit_tuning.errors import UserError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, evaluate, compare, report, reproduce, inspect, demo):
    app.command(no_args_is_help=command is not demo)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from commit_tuning import __version__

        typer.echo(f"commit-tuning {__version__}")
        raise typer.Exit


@app.callback()
def commit_tuning(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Coordinated instruction tuning of multimodal language models (CoMMIT).

    Start with [bold]commit-tuning demo[/bold]: it tunes a small model twice in a few minutes and writes a report.

    Exit codes: 0 all went well, 1 a run failed, 2 the input is at fault, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: Words after the command's name; those of the process by default.

    Raises:
        SystemExit: Always, with the exit code.
    """
    from commit_tuning.experiments.record import RunFailedError

    spell_out()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="commit-tuning")
    except UserError as error:
        _fail(f"error: {error}", MISUSED)
    except RunFailedError as error:
        _fail(f"run failed: {error}", FAILED)
    except SystemExit as exited:
        if exited.code == INTERRUPTED:
            _fail("interrupted; the same command starts again with what is missing", INTERRUPTED)
        raise


def _fail(message: str, code: int) -> None:
    say(f"commit-tuning: {' '.join(message.split())}", error=True)
    sys.exit(code)
