"""The README's picture: `python lab/benchmarks/comparison_picture.py COMPARISON... --output FILE`.

COMPARISON are output folders of `commit-tuning compare`. For each, accuracy over the base learning rate (screening,
validation questions) and the balance coefficient over the steps of the chosen arms.
"""

import argparse
import json
from pathlib import Path

from matplotlib import pyplot as plt

from commit_lab.studies.ablation_page import MODEL_TITLES
from commit_tuning.report.curves import Group, curve
from commit_tuning.report.figure_style import COLOURS, STYLE
from commit_tuning.train.compare.arms import METHOD_LABELS
from commit_tuning.train.compare.comparison import TABLE
from commit_tuning.train.record import RunRecord

SWEPT = ("constant", "commit-clr", "commit")
FOLLOWED = ("constant", "commit-clr", "static")


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    count = len(arguments.comparisons)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2 * count, figsize=(5.6 * count, 3.4), layout="constrained", squeeze=False)
        for index, folder in enumerate(arguments.comparisons):
            draw(folder, *axes[0, 2 * index : 2 * index + 2])
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.output, dpi=160)


def draw(folder: Path, accuracy, balance) -> None:
    """Draw the two panels of one comparison."""
    table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    model = RunRecord.read(folder / table["rows"][0]["runs"][0]).recipe["model"]["name"]
    for method in SWEPT:
        found = sorted(
            (float(row["rates"]), row["validation"]) for row in table["screening"] if row["method"] == method
        )
        if not found:
            continue
        ticks = [rate for rate, _ in found]
        label, dashes = METHOD_LABELS[method], "--" if method == "commit" else "-"
        accuracy.plot(*zip(*((rate, 100 * value) for rate, value in found), strict=True), dashes, marker="o",
                      color=COLOURS[method], label=label)  # fmt: skip
    static = [row["validation"] for row in table["screening"] if row["method"] == "static"]
    if static:
        accuracy.axhline(100 * max(static), color=COLOURS["static"], linestyle=":", label="best static pair of rates")
    accuracy.set(
        xscale="log", xlabel="base learning rate", ylabel="validation accuracy, %", title=MODEL_TITLES.get(model, model)
    )
    accuracy.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    accuracy.minorticks_off()
    for row in table["rows"]:
        if row["chosen"] and row["method"] in FOLLOWED:
            group = Group.of(row["label"], row["method"], [RunRecord.read(folder / run) for run in row["runs"]])
            line = curve(group, "kappa", window=10, log=True)
            balance.plot(line.steps, line.mean, color=COLOURS[row["method"]])
            balance.fill_between(line.steps, line.low, line.high, color=COLOURS[row["method"]], alpha=0.18, linewidth=0)
    balance.axhline(1, color="#8a8f98", linewidth=0.8)
    balance.set(yscale="log", xlabel="optimizer step", ylabel=r"balance coefficient $\kappa$")


if __name__ == "__main__":
    main()
