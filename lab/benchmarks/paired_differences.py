"""One arm against all others, seed by seed: `python lab/benchmarks/paired_differences.py COMPARISON... [--of TEXT]`.

COMPARISON are output folders of `commit-tuning compare`, or the committed records in `lab/results/`. The arm is the
first chosen row of any of them whose label contains TEXT. Prints Markdown: test accuracy in percent and the difference
in points, with the 95 % interval of Student's t over the seeds that both arms have.
"""

import argparse
import json
import sys
from pathlib import Path

from commit_tuning.errors import UserError
from commit_tuning.train.compare.comparison import TABLE
from commit_tuning.train.compare.table import by_seed, difference_text, markdown_table, mean, paired_difference, percent
from commit_tuning.train.record import RunRecord


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path)
    parser.add_argument("--of", default="trust-region", metavar="TEXT", help="label of the arm; %(default)s by default")
    arguments = parser.parse_args()
    head = ("comparison", "against", "base rate", "test accuracy", "difference [95 % CI]", "seeds")
    try:
        lines = differences(arguments.comparisons, arguments.of)
    except (UserError, OSError) as error:
        sys.exit(f"paired_differences.py: error: {error}")
    print(markdown_table(head, lines), end="")


def differences(folders: list[Path], text: str) -> list[tuple[str, ...]]:
    """Return a line for every other arm of the comparisons."""
    rows = [(folder, row) for folder in folders for row in json.loads((folder / TABLE).read_text("utf-8"))["rows"]]
    ours = next((found for found in rows if found[1]["chosen"] and text in found[1]["label"]), None)
    if ours is None:
        raise UserError(f"no chosen row with {text!r} in its label in {folders[0]}; see its table.md, and --of")
    mine = accuracies(*ours)
    return [line(mine, folder, row) for folder, row in rows if row is not ours[1]]


def accuracies(folder: Path, row: dict) -> dict[int, float]:
    """Return the test accuracy of an arm by seed."""
    return by_seed([RunRecord.read(folder / run) for run in row["runs"]])


def line(mine: dict[int, float], folder: Path, row: dict) -> tuple[str, ...]:
    """Return by how much the arm is ahead of another."""
    other = accuracies(folder, row)
    found = paired_difference(mine, other)
    accuracy = percent(mean(list(other.values())))
    seeds = str(found.seeds if found else 0)
    return (folder.name, row["label"], row["rates"], accuracy, difference_text(found), seeds)


if __name__ == "__main__":
    main()
