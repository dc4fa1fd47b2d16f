"""`commit-tuning train`: one run."""

from __future__ import annotations

from typing import Annotated

import typer

from commit_tuning.cli.display import Display, say
from commit_tuning.cli.options import ForceOption, OutputOption, RecipeArgument, SettingsArgument
from commit_tuning.processes import uncollected


def train(
    recipe: RecipeArgument,
    output: OutputOption,
    settings: SettingsArgument = None,
    save_weights: Annotated[
        bool | None,
        typer.Option("--save-weights/--no-save-weights", help="Keep the tuned parameters.", show_default=False),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Tune one model as a recipe says, and evaluate it; goes on from its last checkpoint where it stopped.

    Examples:
      commit-tuning train llava-textvqa --output runs/clr

      commit-tuning train my.yaml commit.controller=literal train.learning_rate=1e-4 -o runs/paper
    """
    changes = [
        *(settings or []),
        *([] if save_weights is None else [f"train.save_weights={str(save_weights).lower()}"]),
    ]
    with uncollected():
        from commit_tuning.train.recipe.load import load_recipe

        loaded = load_recipe(recipe, changes)
        from transformers import AutoModelForMultimodalLM, AutoProcessor  # noqa: F401
        from transformers.utils import logging

        from commit_tuning.train.runner import train as run

    logging.disable_progress_bar()
    with Display(every=10) as display:
        record = run(loaded, output, progress=display, force=force)
    if record.files is None:
        typer.echo(
            "this run is of an older version, which noted no checksums: nothing of it could be checked", err=True
        )
    if record.removed:
        say(f"the weights of this run are not there any more (first: {record.removed[0]})", error=True)
    validation, test = (100 * record.accuracy(split) for split in ("val", "test"))
    say(f"validation {validation:.1f} %, test {test:.1f} %; everything is in {output}")
