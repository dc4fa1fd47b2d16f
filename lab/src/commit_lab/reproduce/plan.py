"""What the paper compares: four models, their tasks, the methods; and the comparisons that tables and figures need.

A comparison is the recipe ``<scale>-<model>`` on one dataset, so nano and paper scale differ in nothing but that file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from commit_tuning.errors import UserError
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Recipe

SCALES = ("nano", "small", "paper")
MODELS = {"blip2": "BLIP-2", "salmonn": "SALMONN", "internvl2": "InternVL2", "llava": "LLaVA-1.5"}
TASK_TITLES = {
    "aokvqa": "A-OKVQA",
    "iconqa": "IconQA",
    "textvqa": "TextVQA",
    "clothoaqa": "ClothoAQA",
    "macs": "MACS",
    "song-describer": "SDD",
}
_OF_PICTURES, _OF_SOUNDS = ("aokvqa", "iconqa", "textvqa"), ("clothoaqa", "macs", "song-describer")
SEEDS = {
    "blip2-aokvqa": 6,
    "blip2-iconqa": 10,
    "blip2-textvqa": 4,
    "salmonn-clothoaqa": 17,
    "salmonn-macs": 10,
    "salmonn-song-describer": 17,
    "internvl2-iconqa": 8,
    "internvl2-textvqa": 4,
    "llava-iconqa": 12,
}
"""Seeds of a row at nano scale, as many as the spread of its first ones asked for (`lab/reports/reproduce.md`)."""

METHODS = ("constant", "feature-cd", "language-cd", "commit-clr", "commit", "literal")
DYNAMICS_METHODS = ("constant", "language-lr-up", "encoder-lr-up", "commit-clr", "commit", "literal")
OURS = "commit-clr"


@dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Attributes:
        model: A key of :data:`MODELS`.
        task: A key of :data:`TASK_TITLES`.
    """

    model: str
    task: str

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"{self.model}-{self.task}"

    @property
    def title(self) -> str:
        """As the paper has it."""
        return f"{MODELS[self.model]} {TASK_TITLES[self.task]}"


DYNAMICS = Row("blip2", "textvqa")
"""On what the paper shows what training does."""

ROWS = tuple(Row(model, task) for model in MODELS for task in (_OF_SOUNDS if model == "salmonn" else _OF_PICTURES))
"""In the order of the paper's Table 1."""


def rows_named(names: str | None) -> tuple[Row, ...]:
    """Return rows by their names or their models', separated by commas; all rows for None.

    Raises:
        UserError: One that there is not.
    """
    if names is None:
        return ROWS
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in {row.name for row in ROWS} | MODELS.keys():
            known = ", ".join([*MODELS, *(row.name for row in ROWS)])
            raise UserError(f"--rows: {name!r} is no row; choose of {known}")
    return tuple(row for row in ROWS if row.name in wanted or row.model in wanted)


def of_model(model: str) -> tuple[Row, ...]:
    """Return the rows of a model."""
    return tuple(row for row in ROWS if row.model == model)


@dataclass(frozen=True)
class Grid:
    """Where and how the comparisons of a reproduction are run.

    Attributes:
        scale: One of :data:`SCALES`.
        folder: Everything goes below it; a run that is there is not done again.
        settings: ``section.key=value`` that win over every recipe.
        data: Holds a folder for each official dataset, by its name in :data:`TASK_TITLES`; for paper scale.
    """

    scale: str
    folder: Path
    settings: tuple[str, ...] = ()
    data: Path = Path("data")

    def recipe_name(self, model: str) -> str:
        """Return the shipped recipe of a model."""
        return f"{self.scale}-{model}"

    def row(self, row: Row) -> Recipe:
        """Return Table 1's comparison of a row: every method at the best of the rates of the sweep.

        Raises:
            UserError: A setting is not valid.
        """
        seeds = [f"compare.seeds={SEEDS[row.name]}"] if self.scale == "nano" and row.name in SEEDS else []
        return self._recipe(row, before=seeds)

    def _recipe(self, row: Row, before: Sequence[str] = (), after: Sequence[str] = ()) -> Recipe:
        """Return the recipe of a row; the command's settings win over `before` and lose against `after`."""
        if any(setting.startswith("compare.methods=") for setting in self.settings):
            raise UserError("compare.methods: the paper's tables have all methods; choose with commit-tuning compare")
        official = self.scale == "paper"
        own = (
            [f"data.dataset={row.task}", f"data.root={self.data / row.task}"]
            if official
            else [f"data.dataset=nano-{row.task}"]
        )
        methods = f"compare.methods=[{', '.join(METHODS)}]"
        return load_recipe(self.recipe_name(row.model), [*own, methods, *before, *self.settings, *after])

    def dynamics(self) -> Recipe:
        """Return the runs of Figures 2, 3, 6 and 7: BLIP-2 on TextVQA, all methods from one base rate, no sweep."""
        rate = self._recipe(DYNAMICS).train.learning_rate
        own = (
            f"compare.methods=[{', '.join(DYNAMICS_METHODS)}]",
            f"compare.rates=[{rate!r}]",
            "compare.static_grid=null",
        )
        return self._recipe(DYNAMICS, after=own)

    def place(self, name: str) -> Path:
        """Return the folder of a comparison."""
        return self.folder / "grids" / name
