"""`commit-tuning report`: an HTML page about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commit_tuning.cli.display import say
from commit_tuning.cli.options import as_path


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=as_path, help="Output folder of 'train' or of 'compare'.")
    ],
) -> None:
    """Write DIR/report.html: table, curves and answers, in one file that needs nothing else.

    Of what is not finished, the page has what there is so far, and says so.

    Example:
      commit-tuning report runs/table
    """
    from commit_tuning.report.page import write_report

    say(f"report in {write_report(folder)}")
