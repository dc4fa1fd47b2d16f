"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from commit_tuning.experiments.cluster import Cluster

RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe such as iconqa-nano-llava."),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", file_okay=True, help="Where everything goes; created.")
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


def parse_axes(texts: list[str]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """`key=v1,v2` options as keys with values.

    Raises:
        UserError: Not of that form.
    """
    from commit_tuning.errors import UserError
    from commit_tuning.experiments.yaml_text import parse_value

    axes = []
    for text in texts:
        key, _, values = text.partition("=")
        parsed = parse_value(f"[{values}]", source=f"--axis {text!r}")
        if not key or not parsed or any(isinstance(value, list | dict) for value in parsed):
            raise UserError(f"cannot read --axis {text!r}: write it as key=v1,v2, e.g. commit.kappa_window=10,50")
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
    from commit_tuning.experiments.cluster import connect, parse_options

    return connect(name, output, parse_options(options))
