"""What the controllers did in finished runs: `python lab/benchmarks/control_in_training.py RUNS...`.

RUNS are output folders of `commit-tuning compare` or `train`, searched with everything below them. Prints a Markdown
table: how long a module was held back (a rate below a fiftieth of its base rate, or at the controller's bound), how far
log smoothed kappa stayed from the target over the last three quarters of a run, and how much it moved.
"""

import argparse
import sys
from pathlib import Path

from commit_lab.studies.control_quality import control_table, read_control
from commit_tuning.errors import UserError


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    try:
        print(control_table(read_control(parser.parse_args().runs)), end="")
    except UserError as error:
        sys.exit(f"control_in_training.py: error: {error}")


if __name__ == "__main__":
    main()
