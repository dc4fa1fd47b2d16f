"""`commit-tuning evaluate`: a model asked the questions of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commit_tuning.cli.display import Display, say
from commit_tuning.cli.options import SettingsArgument, as_path, check_files


def evaluate(  # noqa: PLR0917 - typer calls it, by name
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The output folder of a run, or a recipe: its model, untuned.")
    ],
    settings: SettingsArgument = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", parser=as_path, help="Write every answer there, as JSON lines."),
    ] = None,
    skipped: Annotated[
        Path | None,
        typer.Option(
            "--skipped", metavar="FILE", parser=as_path, help="List there what cannot be read, as JSON lines."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it is there already.")] = False,
) -> None:
    """Ask a model the questions of a dataset, and score its answers with the dataset's metric.

    Examples:
      commit-tuning evaluate runs/clr

      commit-tuning evaluate runs/clr data.dataset=textvqa data.root=~/textvqa --predictions answers.jsonl
    """
    from transformers.utils import logging

    from commit_tuning.storage import write_text
    from commit_tuning.train.evaluate import evaluate as ask
    from commit_tuning.train.record import json_line

    check_files({"--predictions": predictions, "--skipped": skipped}, force)
    logging.disable_progress_bar()
    with Display(every=10) as display:
        found = ask(target, settings or [], split, progress=display)
    scores = found.scores
    if found.unfinished:
        say(found.unfinished)
    say(f"{found.dataset}, {split}: {scores['metric']} {100 * scores['accuracy']:.1f} % of {scores['questions']}")
    for kind, share in scores["by_kind"].items():
        say(f"  {kind}: {100 * share:.1f} %")
    if scores["left_out"]:
        say(f"  the metric leaves out {scores['left_out']}")
    if found.other_data:
        say("  not the questions of the run: its data was other than what is read now")
    if found.skipped:
        say(f"  skipped {len(found.skipped)} that cannot be read, first: {found.skipped[0]}")
    if skipped is not None:
        write_text(skipped, "".join(json_line(entry.to_dict()) for entry in found.skipped))
    if predictions is not None:
        write_text(predictions, "".join(map(json_line, found.answers)))
