"""Options that several subcommands share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from commit_tuning.train.compare.cluster import Cluster

RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe such as llava-textvqa."),
]


def as_path(text: str | Path) -> Path:
    """A path that a user gives; nothing, as of an empty variable, is none."""
    if not str(text).strip():
        raise typer.BadParameter("the path is empty: name a place, or . for this folder")
    return Path(text)


OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", parser=as_path, help="Where everything goes; created.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Start again: remove what the record there names, and nothing else.")
]
SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's, e.g. train.steps=100."),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", metavar="J", min=1, help="Runs at a time; as many as cores by default.")
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="slurm|local", help="Give the runs to Slurm, or to processes that outlive this."),
]
ClusterOptionOption = Annotated[
    list[str] | None,
    typer.Option("--cluster-option", metavar="KEY=VALUE,...", help="Settings of a job, by submitit's names."),
]


def listed(key: str, text: str | None) -> list[str]:
    """A comma-separated option as the setting of a list: nothing if it was not given."""
    return [] if text is None else [f"{key}=[{text}]"]


def check_files(files: Mapping[str, Path | None], force: bool) -> None:
    """Make sure, before any work, that the files of some options can be written and are not the same.

    Args:
        files: Option to its file; None where it was not given.
        force: Whether a file that is there may be replaced.

    Raises:
        UserError: A folder, a device or a pipe, a place that cannot be written, a file that two options name, or one
            that is there already.
    """
    from commit_tuning.errors import UserError
    from commit_tuning.storage import explained, temporary_path
    from commit_tuning.train.record import writable_folder

    given = {option: Path(os.path.realpath(file)) for option, file in files.items() if file is not None}
    for option, file in given.items():
        if os.path.lexists(file) and not os.path.isfile(file):  # noqa: PTH113 (it never raises)
            raise UserError(f"{option} {file} is no file: name one")
        if os.path.lexists(file) and not force:
            raise UserError(f"{file} is there already; give another name, or --force to replace it")
        writable_folder(file.parent)
        with explained(file):  # such as a name that is too long
            temporary_path(file).touch()
            temporary_path(file).unlink()
    if len(set(given.values())) < len(given):
        raise UserError(f"{' and '.join(given)} name the same file: give each its own")


def parse_axes(texts: list[str]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """`key=v1,v2` options as keys with values.

    Raises:
        UserError: Not of that form.
    """
    from commit_tuning.errors import UserError, one_line
    from commit_tuning.train.recipe.yaml_text import parse_value

    axes = []
    for text in texts:
        key, _, values = text.partition("=")
        shown = f"--axis {one_line(repr(text), 100)}"
        parsed = parse_value(f"[{values}]", source=shown)
        plain = isinstance(parsed, list) and not any(isinstance(value, list | dict) for value in parsed)
        if not key or not parsed or not plain:
            raise UserError(f"cannot read {shown}: write it as key=v1,v2, e.g. commit.kappa_window=10,50")
        axes.append((key.strip(), tuple(parsed)))
    return tuple(axes)


def open_cluster(name: str | None, options: list[str], output: Path) -> Cluster | None:
    """The cluster of `--cluster`, which keeps its files below `output`; None if there is none.

    Raises:
        UserError: It cannot be used, or there are options for none.
    """
    from commit_tuning.errors import UserError

    if name is None:
        if options:
            raise UserError("--cluster-option is for --cluster, which is not given; add --cluster slurm")
        return None
    from commit_tuning.train.compare.cluster import connect, parse_options

    return connect(name, output, parse_options(options))
