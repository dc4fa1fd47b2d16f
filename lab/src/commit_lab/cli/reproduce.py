"""`commit-lab reproduce`: the paper's tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commit_tuning.cli.compare import finish, run_comparison
from commit_tuning.cli.display import say, show_table
from commit_tuning.cli.options import (
    ClusterOption,
    ClusterOptionOption,
    JobsOption,
    OutputOption,
    SettingsArgument,
    as_path,
    open_cluster,
)

if TYPE_CHECKING:
    from commit_tuning.train.compare.comparison import Comparison
    from commit_tuning.train.recipe.schema import Recipe


def reproduce(  # noqa: PLR0917 - typer calls it, by name
    target: Annotated[str, typer.Argument(metavar="WHAT", help="table1, table2, figure1 to figure7, or all.")],
    output: OutputOption = Path("runs/paper"),
    scale: Annotated[str, typer.Option(metavar="nano|small|paper", help="Which models and data.")] = "nano",
    rows: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Rows of Table 1, e.g. blip2,salmonn-macs; all by default.")
    ] = None,
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", parser=as_path, help="Holds the official datasets, a folder each; for --scale paper."
        ),
    ] = Path("data"),
    settings: SettingsArgument = None,
    jobs: JobsOption = None,
    cluster: ClusterOption = None,
    cluster_option: ClusterOptionOption = None,
) -> None:
    """Make a table or a figure of the paper again; resumes where it stopped.

    At paper scale, where there is no GPU, it prints what the runs need and the commands that start them.

    Examples:
      commit-lab reproduce figure1

      commit-lab reproduce table1 --rows blip2-iconqa

      commit-lab reproduce all --scale nano --output runs/all
    """
    from commit_lab.reproduce.plan import SCALES, Grid, rows_named
    from commit_lab.reproduce.run import Reproduction, targets_of
    from commit_tuning.errors import UserError

    wanted = rows_named(rows)
    targets = targets_of(target, wanted)
    if scale not in SCALES:
        raise UserError(f"--scale: {scale!r} is not one of {', '.join(SCALES)}")
    where = open_cluster(cluster, cluster_option or [], output)

    def start(recipe: Recipe, folder: Path) -> Comparison:
        say(f"{folder}: {recipe.model.name} on {recipe.data.dataset}")
        return run_comparison(recipe, folder, jobs, cluster=where)

    made = Reproduction(Grid(scale, output, tuple(settings or ()), data), start, wanted)
    made.refuse_taken(targets)
    for name in targets:
        if scale == "paper" and where is None and not _has_gpu():
            show_table(made.needs(name))
            continue
        show_table(made.make(name))
        say(f"{name} in {output / f'{name}.md'}")
    finish(*made.done.values())


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
