"""The page of the ablations, from their records and hand-written findings alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commit_tuning.errors import UserError
from commit_tuning.report.figure_style import COLOURS, DASHES, STYLE, drawn, save_png
from commit_tuning.shown import markdown_text
from commit_tuning.storage import write_text
from commit_tuning.train.compare.table import (
    NOTHING,
    Difference,
    difference_text,
    fixed,
    markdown_table,
    percent,
)

Record = dict[str, Any]
FINDINGS = "findings.md"
MODEL_TITLES = {"nano-blip2": "Nano BLIP-2", "nano-llava": "Nano LLaVA-1.5"}
_HEAD = (
    *("Arm", "Base rate", "Seeds", "Validation", "Test", "Difference [95 % CI]"),
    *("Distance", "Movement", "Held back", "Overhead", "Seconds"),
)
_INTRODUCTION = """\
# Ablations

> **Default:** `trust-region`, before its last change
> (it still averaged all its measurements while its window filled; [log.md](log.md)).
> **Nano models:** first generation.

Each study changes one setting. `commit-lab study page` writes this page from the records in
`lab/results/ablations/`, text included: change the records, the studies or `findings.md` there, not this page. Every
arm has run with all of its seeds. The columns:

- *Validation* and *Test*: accuracy in percent, mean ± standard deviation over seeds.
- *Difference*: test accuracy minus that of Constant LR with the same other settings, at the rate that validation chose
  for it, seed by seed, in percentage points, with the interval of Student's t. With two seeds the interval is wide, and
  only large effects show.
- *Distance*: of mean log smoothed kappa from its log target over the last three quarters of a run. *Movement*: its
  standard deviation there. Both are medians over seeds.
- *Held back*: share of the steps at which a module's rate is below a fiftieth of its base rate or at the controller's
  bound, in the worst seed.
- *Overhead*: wall time of measuring, control and regulariser, relative to the rest of the training loop. Constant LR
  measures too, as the recipe says.
- *Seconds*: a run with its evaluation, on a shared machine.

"""


def read_records(folder: Path) -> list[Record]:
    """Read every condensed comparison in a folder, in the order of the names.

    Raises:
        UserError: There is none, or one cannot be read.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"no record in {folder}; run the studies first: commit-lab study run")
    try:
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the records in {folder} ({error}); remove the broken one") from None


def read_findings(path: Path) -> dict[str, str]:
    """Map each study to the Markdown below its `## name` heading; nothing if there is no file."""
    if not path.is_file():
        return {}
    _, *sections = re.split(r"^## +", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = (section.partition("\n") for section in sections)
    return {name.strip(): text.strip() for name, _, text in parts}


def write_page(folder: Path, page: Path, order: Sequence[str]) -> None:
    """Write the page of the records in `folder`, and a figure for each study into `images` beside it.

    Args:
        folder: With the records and `findings.md`.
        page: The Markdown file to write.
        order: Studies as they come on the page; those not named come last.

    Raises:
        UserError: No record, one that cannot be read, or a finding about a study that has none.
    """
    records, findings = read_records(folder), read_findings(folder / FINDINGS)
    found = dict.fromkeys(record["study"] for record in records)
    strangers = sorted(findings.keys() - found.keys())
    if strangers:
        raise UserError(f"{folder / FINDINGS}: no record of study {strangers[0]!r}; found {', '.join(found)}")
    names = [*(name for name in order if name in found), *(name for name in found if name not in order)]
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    sections = []
    for name in names:
        parts = [record for record in records if record["study"] == name]
        save_png(draw(parts), images / image_name(name))
        sections.append(section(name, parts, findings.get(name)))
    machines = sorted({record["machine"] for record in records if record["machine"]})
    write_text(page, "\n".join([f"{_INTRODUCTION}Machine: {'; '.join(machines)}.\n", *sections]))


def image_name(study: str) -> str:
    """Return the file name of a study's figure."""
    return f"ablation-{study}.png"


def section(name: str, records: Sequence[Record], finding: str | None) -> str:
    """Write a study on the page: question, commands, a table for each model, figure, finding."""
    title = name.replace("-", " ").capitalize()
    blocks = [f"## {title}", records[0]["question"]]
    blocks.append("```\n" + "\n".join(record["command"] for record in records) + "\n```")
    for model, rows in _by_model(records).items():
        table = markdown_table(_HEAD, [_cells(row) for row in rows])
        blocks.append(f"{markdown_text(MODEL_TITLES.get(model, model))}:\n\n{table.strip()}")
    blocks.append(f"![{title}: test accuracy of each arm](images/{image_name(name)})")
    return "\n\n".join([*blocks, *([finding] if finding else [])]) + "\n"


def _by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Map each model to the rows of all its comparisons."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record["model"], []).extend(record["rows"])
    return rows


def _cells(row: Record) -> list[str]:
    difference = row["difference"] and Difference(**row["difference"])
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    return [
        *(row["label"], row["rates"], f"{row['seeds']}{failed}"),
        *(_spread(row["validation"], row["validation_sd"]), _spread(row["test"], row["test_sd"])),
        *(difference_text(difference), fixed(row["distance"], 2), fixed(row["movement"], 2)),
        *(_with_sign(row["held"]), _with_sign(row["overhead"]), fixed(row["seconds"], 0)),
    ]


def _spread(centre: float | None, sd: float | None) -> str:
    return percent(centre) + (f" ± {percent(sd)}" if sd is not None else "")


def _with_sign(share: float | None) -> str:
    return NOTHING if share is None else f"{percent(share)} %"


def draw(records: Sequence[Record]) -> Figure:
    """Draw a study: a panel for each model, of accuracy over the base rate where one was swept, else by arm."""
    panels = _by_model(records)
    tallest = max(len(rows) for rows in panels.values())
    swept = any(_swept(rows) for rows in panels.values())
    height = 3.6 if swept else 1.1 + 0.3 * tallest
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2 * len(panels), height), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (model, rows) in zip(every, panels.items(), strict=True):
            (_draw_sweep if _swept(rows) else _draw_arms)(axes, rows)
            axes.set_title(MODEL_TITLES.get(model, drawn(model)))
    return figure


def _swept(rows: Sequence[Record]) -> bool:
    """Tell whether an arm was run at several rates."""
    return len({row["label"] for row in rows}) < len(rows)


def _draw_arms(axes: Axes, rows: Sequence[Record]) -> None:
    for place, row in enumerate(rows):
        percents, colour = [100 * share for share in row["tests"]], COLOURS.get(row["method"], "#4d4d4d")
        axes.plot(percents, [place] * len(percents), "o", color=colour, alpha=0.55, markersize=6, markeredgewidth=0)
        if percents:
            axes.plot(sum(percents) / len(percents), place, "|", color=colour, markersize=15, markeredgewidth=2.4)
    axes.set_yticks(range(len(rows)), [drawn(row["label"]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy, %; a dot is a seed, the bar their mean")


def _draw_sweep(axes: Axes, rows: Sequence[Record]) -> None:
    seen: list[str] = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label and row["tests"]]
        points = sorted(((float(row["rates"]), row) for row in own), key=lambda point: point[0])
        method = next(row["method"] for row in rows if row["label"] == label)
        dashes: Any = DASHES[seen.count(method) % len(DASHES)]
        seen.append(method)
        rates, means = [rate for rate, _ in points], [100 * row["test"] for _, row in points]
        axes.errorbar(
            rates,
            means,
            [100 * (row["test_sd"] or 0) for _, row in points],
            color=COLOURS.get(method, "#4d4d4d"),
            linestyle=dashes,
            marker="o",
            markersize=5,
            capsize=2,
            label=drawn(label),
        )
    axes.set(xscale="log", xlabel="base learning rate", ylabel="test accuracy, %")
    axes.legend(frameon=False, fontsize=8.5)
