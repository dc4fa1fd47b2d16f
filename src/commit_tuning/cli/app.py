"""The `commit-tuning` command: its subcommands, and what each kind of error looks like from outside."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from commit_tuning.cli.compare import compare
from commit_tuning.cli.display import say, spell_out
from commit_tuning.cli.evaluate import evaluate
from commit_tuning.cli.inspect import inspect
from commit_tuning.cli.report import report
from commit_tuning.cli.train import train
from commit_tuning.errors import UserError, one_line
from commit_tuning.processes import StoppedError, terminable

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
_USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, of the click that typer has
_OF_THE_MACHINE = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EFBIG: "choose another place",
    errno.EIO: "check the disk",
    errno.ENOENT: "see that it is there, and that nothing else removes it",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the circle of links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files",
}
"""What to do about the errors of the operating system that no program can mend."""

OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Of every application."""

app = typer.Typer(**OPTIONS)
for command in (train, evaluate, compare, report, inspect):
    app.command(no_args_is_help=True)(command)


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

    Start with [bold]commit-tuning inspect MODEL[/bold]: it says what of a model trains, and what cannot.

    Exit codes: 0 all went well, 1 a run failed, 2 the input is at fault, 130 interrupted, 143 stopped by SIGTERM.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `commit-tuning` and exit.

    Args:
        arguments: Words after the command's name; those of the process by default.

    Raises:
        SystemExit: Always, with the exit code.
    """
    run_app(app, "commit-tuning", arguments)


def run_app(application: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run an application, say each kind of error in one line, and exit.

    Args:
        application: Its commands.
        name: What it is called.
        arguments: Words after the command's name; those of the process by default.

    Raises:
        SystemExit: Always, with the exit code.
    """
    from commit_tuning.train.record import RunFailedError

    spell_out()
    try:
        with terminable():
            words = None if arguments is None else list(arguments)
            code = application(args=words, prog_name=name, standalone_mode=False)
    except UserError as error:
        _fail(name, f"error: {error}", MISUSED)
    except RunFailedError as error:
        _fail(name, f"run failed: {error}", FAILED)
    except StoppedError as stopped:
        _fail(name, str(stopped), stopped.exit_code)
    except _USAGE as error:
        _explain(name, error)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = "the disk" if error.filename is None else one_line(error.filename)
        _fail(name, f"error: {where}: {error.strerror}; {_OF_THE_MACHINE[error.errno]}", MISUSED)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        _fail(name, "run failed: out of memory; lower train.micro_batch_size or eval.batch_size", FAILED)
    if code == INTERRUPTED:  # typer's, after Ctrl-C
        _fail(name, str(StoppedError(signal.SIGINT)), INTERRUPTED)
    sys.exit(code or 0)


def _explain(name: str, error: Exception) -> NoReturn:
    """Say in one line what is wrong with the words of a command; show its help if there are none."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        sys.exit(MISUSED)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else name
    message = error.format_message().removesuffix(".")  # type: ignore[attr-defined]
    _fail(name, f"error: {message}; see {command} --help", MISUSED)


def _lacks_memory(error: Exception) -> bool:
    """Whether there was too little memory: Python's, the processor's in torch, or an accelerator's."""
    names = (MemoryError.__name__, "OutOfMemoryError")
    return type(error).__name__ in names or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _fail(name: str, message: str, code: int) -> NoReturn:
    say(f"{name}: {one_line(message, 2000)}", error=True)
    sys.exit(code)
