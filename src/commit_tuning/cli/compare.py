"""`commit-tuning compare`: methods against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commit_tuning.cli.display import Display, say, show_table
from commit_tuning.cli.options import (
    ClusterOption,
    ClusterOptionOption,
    ForceOption,
    JobsOption,
    OutputOption,
    RecipeArgument,
    SettingsArgument,
    listed,
    open_cluster,
    parse_axes,
)

if TYPE_CHECKING:
    from commit_tuning.train.compare.cluster import Cluster
    from commit_tuning.train.compare.comparison import Comparison
    from commit_tuning.train.recipe.schema import Recipe


def compare(  # noqa: PLR0917 - typer calls it, by name
    recipe: RecipeArgument,
    output: OutputOption,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Methods; Constant LR is always among them.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Seeds of what the screening chose.")] = None,
    screen_seeds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Seeds of the screening.")] = None,
    first_seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Seeds count from here.")] = None,
    rates: Annotated[str | None, typer.Option(metavar="R1,R2,...", help="Base learning rates of the sweep.")] = None,
    axis: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Vary a setting; each value makes its own arms.")
    ] = None,
    static_grid: Annotated[
        bool | None,
        typer.Option("--static-grid/--no-static-grid", help="Static pairs of rates as a rival.", show_default=False),
    ] = None,
    settings: SettingsArgument = None,
    jobs: JobsOption = None,
    save_weights: Annotated[bool, typer.Option("--save-weights", help="Keep every run's tuned parameters.")] = False,
    cluster: ClusterOption = None,
    cluster_option: ClusterOptionOption = None,
    force: ForceOption = False,
) -> None:
    """Compare methods over seeds, each at its best learning rate; resumes where it stopped.

    Examples:
      commit-tuning compare llava-textvqa --output runs/table

      commit-tuning compare llava-textvqa -o runs/n --methods commit-clr --axis commit.kappa_window=10,50

      commit-tuning compare recipe.yaml -o runs/s --cluster slurm --cluster-option partition=gpu,gpus_per_node=1
    """
    from commit_tuning.train.recipe.load import load_recipe

    numbers = {"seeds": seeds, "screen_seeds": screen_seeds, "first_seed": first_seed}
    changes = [
        *(settings or []),
        *listed("compare.methods", methods),
        *listed("compare.rates", rates),
        *(f"compare.{key}={value}" for key, value in numbers.items() if value is not None),
    ]
    loaded = load_recipe(recipe, changes)
    if static_grid is False:
        changes.append("compare.static_grid=null")
    elif static_grid and loaded.compare.static_grid is None:
        changes.append("compare.static_grid={}")
    axes = parse_axes(axis or [])
    loaded = load_recipe(recipe, changes)
    where = open_cluster(cluster, cluster_option or [], output)
    comparison = run_comparison(loaded, output, jobs, axes, save_weights, cluster=where, force=force)
    say(f"table in {output / 'table.md'}; for figures: commit-tuning report {output}")
    finish(comparison)


def run_comparison(
    recipe: Recipe,
    output: Path,
    jobs: int | None,
    axes: tuple[tuple[str, tuple[object, ...]], ...] = (),
    save_weights: bool = False,
    *,
    cluster: Cluster | None = None,
    force: bool = False,
) -> Comparison:
    """Run a comparison with its progress shown, and print the table."""
    from commit_tuning.train.compare.comparison import Comparison
    from commit_tuning.train.compare.pool import default_workers
    from commit_tuning.train.compare.table import markdown

    workers = jobs or (cluster.default_workers() if cluster else default_workers(recipe.train.device))
    engine = cluster.run_jobs if cluster else None
    with Display() as display:
        comparison = Comparison(
            recipe, output, axes, workers, save_weights, progress=display, engine=engine, force=force
        )
        comparison.run()
    show_table(markdown(comparison.rows))
    return comparison


def finish(*comparisons: Comparison) -> None:
    """Exit with code 1 if a run failed, after naming each."""
    failures = [line for comparison in comparisons for line in comparison.failures]
    for line in failures:
        say(f"commit-tuning: run failed: {line}", error=True)
    if failures:
        raise typer.Exit(1)
