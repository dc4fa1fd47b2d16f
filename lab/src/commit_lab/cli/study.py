"""`commit-lab study`: the ablations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commit_tuning.cli.app import OPTIONS
from commit_tuning.cli.compare import finish, run_comparison
from commit_tuning.cli.display import say
from commit_tuning.cli.options import JobsOption, OutputOption, as_path

if TYPE_CHECKING:
    from commit_lab.studies.ablations import Study

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Studies; all if none is named.")]
Folder = Annotated[Path, typer.Option(metavar="DIR", parser=as_path)]

study = typer.Typer(**OPTIONS, help="List the ablations, run them, or write their page.")


@study.command("list")
def list_studies(names: Names = None) -> None:
    """Print the question of each study. Print its comparisons as commands, too, where it is named.

    Example:
      commit-lab study list window
    """
    for name, one in _chosen(names).items():
        say(f"{name}: {one.question}")
        for plan in one.plans if names else ():
            say(f"  {plan.command('runs/ablations')}")


@study.command()
def run(names: Names = None, output: OutputOption = Path("runs/ablations"), jobs: JobsOption = None) -> None:
    """Make the comparisons of some studies; resumes where it stopped. Ends with code 1 if a run failed.

    Example:
      commit-lab study run window estimator --output runs/ablations
    """
    from commit_lab.studies.ablations import adopt_finished_runs

    made = []
    for plan in (plan for one in _chosen(names).values() for plan in one.plans):
        adopted = adopt_finished_runs(plan, output)
        say(f"{plan.command(output)}\n{adopted} runs taken over from other comparisons")
        made.append(run_comparison(plan.load(), output / plan.name, jobs, plan.axes))
    finish(*made)


@study.command()
def page(
    runs: Annotated[
        Path | None, typer.Argument(metavar="[RUNS]", parser=as_path, help="Condense what has finished here first.")
    ] = None,
    records: Folder = Path("lab/results/ablations"),
    to: Folder = Path("lab/reports/ablations.md"),
) -> None:
    """Write the page and its figures from the records and `findings.md` beside them.

    Example:
      commit-lab study page runs/ablations
    """
    from commit_lab.studies.ablation_page import write_page
    from commit_lab.studies.ablations import write_records
    from commit_lab.studies.catalogue import STUDIES

    if runs is not None:
        say(f"{len(write_records(STUDIES.items(), runs, records))} records written to {records}")
    write_page(records, to, list(STUDIES))


def _chosen(names: list[str] | None) -> dict[str, Study]:
    """Return some studies by name, or all.

    Raises:
        UserError: There is none of that name.
    """
    from commit_lab.studies.catalogue import STUDIES
    from commit_tuning.errors import UserError

    for name in names or ():
        if name not in STUDIES:
            raise UserError(f"no study {name!r}; there are {', '.join(STUDIES)}")
    return {name: STUDIES[name] for name in names or STUDIES}
