"""Drift over loss in finished runs, by quarter: `python lab/benchmarks/drift_share.py RUNS...`.

RUNS are output folders of `commit-tuning compare` or `train`, searched with everything below them. Prints a Markdown
table, the best validation accuracy of each model first.
"""

import argparse
import sys
from pathlib import Path

from commit_lab.studies.drift_share import share_table
from commit_tuning.errors import UserError


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    try:
        print(share_table(parser.parse_args().runs), end="")
    except UserError as error:
        sys.exit(f"drift_share.py: error: {error}")


if __name__ == "__main__":
    main()
