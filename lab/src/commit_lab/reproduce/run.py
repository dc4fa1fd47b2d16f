"""`reproduce`: the comparisons that a table or figure needs, then the table or figure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commit_lab.reproduce import paper_scale
from commit_lab.reproduce.figures import ON_DYNAMICS, ON_LOSSES, draw_dynamics, draw_losses
from commit_lab.reproduce.plan import DYNAMICS, ROWS, Grid, Row, of_model
from commit_lab.reproduce.tables import floors_of, line_of, table1, table2, tasks_table
from commit_lab.reproduce.two_parameters import figure1
from commit_tuning.errors import UserError
from commit_tuning.storage import write_text
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.ownership import refuse_taken
from commit_tuning.train.readable import Made, read_json
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import writable_folder

TARGETS = ("table1", "table2", "figure1", "figure2", "figure3", "figure4", "figure5", "figure6", "figure7")
MADE = "reproduce.json"
Start = Callable[[Recipe, Path], Comparison]


def rows_of(target: str, rows: Sequence[Row]) -> Sequence[Row]:
    """Return those of some rows of Table 1 that a table or figure uses; Figure 1 uses none."""
    if target == "table1":
        return rows
    about = of_model(ON_LOSSES.get(target, "blip2")) if target == "table2" or target in ON_LOSSES else ()
    if target in ON_DYNAMICS:
        about = (DYNAMICS,)
    return [row for row in about if row in rows]


def targets_of(asked: str, rows: Sequence[Row]) -> list[str]:
    """Return the tables and figures to make of some rows: the requested one, or all that use any of them.

    Raises:
        UserError: No such table or figure, or it is about none of the rows.
    """
    if asked not in (*TARGETS, "all"):
        raise UserError(f"{asked!r} is no table or figure of the paper; choose of {', '.join(TARGETS)}, all")
    possible = [target for target in TARGETS if target == "figure1" or rows_of(target, rows)]
    if asked != "all" and asked not in possible:
        raise UserError(f"--rows: {asked} shows none of {', '.join(row.name for row in rows)}; leave --rows out")
    return possible if asked == "all" else [asked]


def _files_of(target: str) -> list[str]:
    return [f"{target}.{kind}" for kind in ("md", "json", "png")]


def runs_of(recipe: Recipe) -> int:
    """Count a comparison's runs: the screening, then all seeds of its choices and of every constant rate."""
    plan, rates = recipe.compare, len(recipe.compare.rates)
    more = plan.seeds - plan.screen_seeds
    return len(plan.methods) * rates * plan.screen_seeds + (len(plan.methods) + rates - 1) * more


@dataclass
class Reproduction:
    """The tables and figures of one reproduction.

    Attributes:
        grid: Which comparisons, at which scale, where.
        start: Runs the comparison of a recipe in a folder, and returns it when it is through.
        rows: The rows of Table 1 that are used.
        done: Comparisons by folder, so that none is run twice.
    """

    grid: Grid
    start: Start
    rows: Sequence[Row] = ROWS
    done: dict[Path, Comparison] = field(default_factory=dict)

    def make(self, target: str) -> str:
        """Make a table or figure in the folder of the grid; returns its page as Markdown.

        Args:
            target: One of :data:`TARGETS`.

        Raises:
            UserError: The folder cannot be written, holds files of the user's, or a comparison of another recipe.
        """
        folder = writable_folder(self.grid.folder)
        self.refuse_taken([target])
        write_text(folder / MADE, json.dumps(sorted({*self._made(), *_files_of(target)}), indent=1) + "\n")
        page = self._page(target, folder)
        write_text(folder / f"{target}.md", page)
        return page

    def refuse_taken(self, targets: Sequence[str]) -> None:
        """Make sure that nothing of the user's stands where some tables and figures are to be written.

        Raises:
            UserError: Something does.
        """
        refuse_taken(self.grid.folder, [name for target in targets for name in _files_of(target)], self._made())

    def _made(self) -> list[str]:
        """Return the files in the folder that a reproduction has written."""
        path = self.grid.folder / MADE
        return list(read_json(path, Made).root) if path.is_file() else []

    def needs(self, target: str) -> str:
        """Describe in Markdown what a table's or figure's runs need at paper scale, and the command for them."""
        rows = rows_of(target, self.rows)
        if not rows:
            return self.make(target)
        recipes = [self.grid.dynamics()] if target in ON_DYNAMICS else [self.grid.row(row) for row in rows]
        models = dict.fromkeys(row.model for row in rows)
        settings = self.grid.settings
        what = paper_scale.markdown(paper_scale.needs(self.grid.recipe_name(model), settings) for model in models)
        options = ["--scale", self.grid.scale, "--output", str(self.grid.folder), "--data", str(self.grid.data)]
        if len(self.rows) < len(ROWS):
            options += ["--rows", ",".join(row.name for row in self.rows)]
        runs = sum(map(runs_of, recipes))
        hours = runs * paper_scale.GPU_HOURS
        sizes = {str(recipe.data.root): paper_scale.DATASETS[recipe.data.dataset] for recipe in recipes}
        datasets = ", ".join(f"{root} ({size:g} GB)" for root, size in sizes.items())
        return (
            f"{target} takes {runs} runs, each on the GPUs below ({hours:,} GPU-hours if as long as the paper's); "
            f"datasets in {datasets}. Where there is a GPU, or from the head of a Slurm cluster, this starts them:\n\n"
            f"    commit-lab reproduce {shlex.join([target, *settings, *options])} "
            f"--cluster slurm --cluster-option gpus_per_node=1,timeout_min=2880\n\n{what}"
        )

    def _page(self, target: str, folder: Path) -> str:
        rows = rows_of(target, self.rows)
        if target == "table1":
            lines = [line_of(row, self._row(row), floors_of(self._row(row))) for row in rows]
            write_text(folder / "table1.json", json.dumps([line.to_dict() for line in lines], indent=1) + "\n")
            return f"{table1(lines)}\n{tasks_table(lines)}"
        if target == "table2":
            return table2([line_of(row, self._row(row)) for row in rows])
        if target == "figure1":
            return figure1(folder)
        if target in ON_LOSSES:
            return draw_losses(target, [(row.title, self._row(row)) for row in rows], folder)
        comparison = self._once(f"{DYNAMICS.name}-dynamics", self.grid.dynamics())
        return draw_dynamics(target, ON_DYNAMICS[target], comparison, folder)

    def _row(self, row: Row) -> Comparison:
        return self._once(row.name, self.grid.row(row))

    def _once(self, name: str, recipe: Recipe) -> Comparison:
        folder = self.grid.place(name)
        if folder not in self.done:
            self.done[folder] = self.start(recipe, folder)
        return self.done[folder]
