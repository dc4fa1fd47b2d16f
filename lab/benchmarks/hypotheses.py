"""Hypotheses 4.1 and 4.2 over finished runs: `python lab/benchmarks/hypotheses.py RUNS... [--output hypotheses.png]`.

RUNS are output folders of `commit-tuning train` or `compare`, searched with everything below them. Prints a Markdown
table of rank correlations and one sentence for each hypothesis, and draws the runs. Runs that cannot be used (not
finished, no history, no kappa) are named on stderr and left out.
"""

import argparse
import sys
from pathlib import Path

from commit_lab.studies.hypotheses import HYPOTHESES, draw, examine, markdown, sentence
from commit_lab.studies.kappa_and_loss import read_runs
from commit_tuning.errors import UserError
from commit_tuning.train.record import writable_folder


def main() -> None:
    """Print table and sentences, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--output", type=Path, default=Path("hypotheses.png"), help="the figure, a .png or .svg file")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap samples of the intervals")
    arguments = parser.parse_args()
    try:
        runs, left_out = read_runs(arguments.runs)
        writable_folder(arguments.output.parent)
    except UserError as error:
        sys.exit(f"hypotheses.py: error: {error}")
    for line in left_out:
        print(line, file=sys.stderr)
    findings = examine(runs, arguments.draws)
    print(markdown(findings))
    print("Spearman's rank correlation within tasks, with a 95 % bootstrap interval over arms.\n")
    for hypothesis in HYPOTHESES:
        print(sentence(hypothesis, findings))
    draw(findings).savefig(arguments.output, dpi=150)


if __name__ == "__main__":
    main()
