"""The regulariser study: `python lab/benchmarks/regularizer.py RUNS... [--page FILE] [--picture FILE]`.

The page is `lab/reports/regularizer.md`.

RUNS are output folders of `commit-tuning train` or `compare`, searched with everything below them. Every complete run
with a regulariser is set against the runs without one that share its model, data, rates and seed (CoMMIT
against CoMMIT-CLR). Prints two Markdown tables, accuracy and what else changed; `--page` puts them into a page, between
its markers.
"""

import argparse
import os
import sys
from pathlib import Path

from commit_lab.studies.regularizer_report import accuracy_table, draw, effect_table, into_page
from commit_lab.studies.regularizer_study import read_arms
from commit_tuning.errors import UserError
from commit_tuning.storage import write_text
from commit_tuning.train.record import writable_folder


def main() -> None:
    """Print the tables, fill the page, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--page", type=Path, help="a Markdown file with the two markers, rewritten")
    parser.add_argument("--picture", type=Path, help="a .png or .svg file")
    arguments = parser.parse_args()
    try:
        arms = read_arms(arguments.runs)
        tables = f"{accuracy_table(arms)}\n{effect_table(arms)}"
        figures = tables
        if arguments.picture:
            writable_folder(arguments.picture.parent)
            draw(arms).savefig(arguments.picture, dpi=150)
            link = os.path.relpath(arguments.picture, (arguments.page or Path()).parent)
            figures = f"![Difference of test accuracy over the weight of the regulariser]({link})\n\n{tables}"
        if arguments.page:
            write_text(arguments.page, into_page(arguments.page.read_text(encoding="utf-8"), figures))
    except (UserError, OSError) as error:
        sys.exit(f"regularizer.py: error: {error}")
    print(tables, end="")


if __name__ == "__main__":
    main()
