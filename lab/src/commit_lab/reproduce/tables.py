"""Tables 1 and 2 from finished comparisons, beside the paper's numbers."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch

from commit_lab.reproduce.plan import METHODS, OURS, Row
from commit_lab.reproduce.published import TABLE1, TABLE2
from commit_tuning.data.tasks import TASKS
from commit_tuning.shown import Markdown, strong
from commit_tuning.storage import write_text
from commit_tuning.train.compare.arms import CONSTANT, METHOD_LABELS, Arm
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.compare.table import (
    NOTHING,
    Difference,
    difference_text,
    markdown_table,
    paired_difference,
    percent,
)
from commit_tuning.train.dataset import decoded, ensure_data
from commit_tuning.train.evaluate import ask
from commit_tuning.train.readable import Floors, read_json
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.scoring import score

FLOORS = "floors.json"
WANTED = 0.02  # half of the interval's width that a row's seeds should reach, as a share


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        rates: Its base rates, chosen on validation questions.
        by_seed: Seed to test score, in [0, 1].
        failed: Runs that did not finish.
        collapsed: Runs in which a module's rate fell below a hundredth of its base rate.
        difference: To Constant LR at its best rate, seed by seed; None for Constant LR.
    """

    rates: str
    by_seed: dict[int, float]
    failed: int
    collapsed: int
    difference: Difference | None

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Cell:
        """Make a cell from plain JSON values."""
        scores = {int(seed): score for seed, score in plain["by_seed"].items()}
        difference = plain["difference"] and Difference(**plain["difference"])
        return cls(**plain | {"by_seed": scores, "difference": difference})

    @property
    def mean(self) -> float:
        """Over the seeds that finished; 0 where none did."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else 0.0


@dataclass(frozen=True)
class Line:
    """A row of Table 1.

    Attributes:
        row: Its name.
        title: As the paper has it.
        metric: Its name.
        untuned: The model's score before tuning; None where it was not asked.
        blind: Score of always giving the most common training answer of the question's kind; None as well.
        cells: Method to its result.
        constant: Rate to Constant LR's cell, for every rate of the sweep.
    """

    row: str
    title: str
    metric: str
    untuned: float | None
    blind: float | None
    cells: dict[str, Cell]
    constant: dict[str, Cell]

    @property
    def best(self) -> str:
        """The method with the highest mean."""
        return max(self.cells, key=lambda method: self.cells[method].mean)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Line:
        """Restore what :meth:`to_dict` made, also after it was written as JSON."""
        cells = ({key: Cell.from_dict(cell) for key, cell in plain[name].items()} for name in ("cells", "constant"))
        return cls(**plain | dict(zip(("cells", "constant"), cells, strict=True)))


def line_of(row: Row, comparison: Comparison, floors: Mapping[str, float | None] = MappingProxyType({})) -> Line:
    """Make a row of Table 1.

    Args:
        row: Which.
        comparison: Of that row; has run.
        floors: Of `floors_of`.
    """
    table = {(entry.method, entry.rates): entry for entry in comparison.rows}

    def cell(arm: Arm) -> Cell:
        entry, records = table[arm.method, arm.rates], comparison.results[arm]
        scores = {seed: record.accuracy("test") for seed, record in sorted(records.items()) if record.complete}
        return Cell(arm.rates, scores, entry.failed, entry.collapsed, entry.difference)

    constants = sorted((arm for arm in comparison.results if arm.method == CONSTANT), key=lambda arm: arm.learning_rate)
    return Line(
        row=row.name,
        title=row.title,
        metric=TASKS[comparison.recipe.data.dataset].metric,
        untuned=floors.get("untuned"),
        blind=floors.get("blind"),
        cells={arm.method: cell(arm) for arm in comparison.chosen},
        constant={arm.rates: cell(arm) for arm in constants},
    )


def floors_of(comparison: Comparison) -> dict[str, float | None]:
    """Return what any method must beat: the scores `untuned` and `blind` of a :class:`Line`, kept beside the runs.

    The untuned model is not asked where there is no such device, as on the head of a cluster: None, and not kept.
    """
    recipe, path = comparison.recipe, comparison.folder / FLOORS
    if path.is_file():
        return read_json(path, Floors).model_dump()
    floors: dict[str, float | None] = {"untuned": None, "blind": blind_score(recipe)}
    try:
        torch.empty(0, device=recipe.train.device)
    except (RuntimeError, AssertionError):
        return floors
    floors["untuned"] = ask(recipe, "test").scores["accuracy"]
    write_text(path, json.dumps(floors) + "\n")
    return floors


def blind_score(recipe: Recipe) -> float:
    """Score the most common training answer of each kind on the test questions: the score without looking.

    Args:
        recipe: Its `data` section says which dataset.
    """
    task, root = TASKS[recipe.data.dataset], ensure_data(recipe.data)
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    strict = recipe.data.strict
    train, test = (task.read(root, name, getattr(recipe.data, f"{name}_limit"), strict) for name in ("train", "test"))
    for _, sample in decoded(train, range(len(train)), strict):
        counts[sample.kind][sample.answer] += 1
    rows = [
        {
            "kind": sample.kind,
            "choices": sample.choices,
            "truth": sample.answer,
            "answers": sample.answers,
            "answer": _commonest(counts[sample.kind], sample.choices),
        }
        for _, sample in decoded(test, range(len(test)), strict)
    ]
    return float(score(rows, task.metric)["accuracy"])


def _commonest(answers: Counter[str], choices: Sequence[str] | None) -> str:
    """Return the most common answer, among the choices if there are any."""
    return max(choices or answers, key=lambda answer: answers[answer], default="")


def table1(lines: Sequence[Line]) -> str:
    """Write Table 1 as Markdown, with the paper's number in brackets where it has one.

    The best of a row, to the digit that is shown, is in bold; runs that collapsed or failed are counted.
    """
    head = ["Model and task", "Seeds", *map(_label, METHODS), "Default over Constant LR [95 % CI]"]
    rows = [
        [line.title, _seeds(line), *(_cell(line, method) for method in METHODS), _difference(line)] for line in lines
    ]
    return markdown_table(head, rows) + f"\n{_MARKS}\n\n{summary(lines)}\n"


def summary(lines: Sequence[Line]) -> str:
    """Count, in one paragraph, the rows in which the default is ahead."""
    ours = [line.cells[OURS] for line in lines]
    above = sum(cell.difference is not None and cell.difference.mean > 0 for cell in ours)
    sure = sum(cell.difference is not None and (cell.difference.low or 0) > 0 for cell in ours)
    below = sum(cell.difference is not None and (cell.difference.high or 0) < 0 for cell in ours)
    best = sum(line.best == OURS for line in lines)
    either = sum(line.best in (OURS, "commit") for line in lines)
    literal = sum(line.cells["literal"].mean > line.cells[CONSTANT].mean for line in lines if "literal" in line.cells)
    return (
        f"The default is above Constant LR at its best rate in {above} of {len(lines)} rows (the whole interval above "
        f"in {sure}, below in {below}) and the best of all methods in {best}, with or without the regulariser in "
        f"{either}; literal CoMMIT is above Constant LR in {literal}. In the paper CoMMIT is above Constant LR in 12 "
        "of 12 and CoMMIT-CLR in 7, and one of the two is the best in 9."
    )


def tasks_table(lines: Sequence[Line]) -> str:
    """Show whether a row can tell methods apart: floor, ceiling, spread, and the seeds that its spread asks for."""
    head = ["Model and task", "Metric", "Untuned", "Blind", "Constant LR", "SD of the difference", "Seeds", "Asked for"]
    rows = []
    for line in lines:
        constant, spread = line.cells[CONSTANT], _spread(line)
        cells = [line.metric, percent(line.untuned), percent(line.blind), percent(constant.mean), percent(spread)]
        rows.append([line.title, *cells, _seeds(line), str(seeds_for(spread))])
    return markdown_table(head, rows) + (
        f"\nAsked for: seeds for a 95 % interval of ± {WANTED * 100:g} points, if the standard deviation is what so "
        "few seeds say.\n"
    )


def _spread(line: Line) -> float | None:
    """Return the standard deviation over seeds of the default's difference to Constant LR."""
    ours, constant = line.cells[OURS].by_seed, line.cells[CONSTANT].by_seed
    pairs = [ours[seed] - constant[seed] for seed in ours.keys() & constant.keys()]
    return statistics.stdev(pairs) if len(pairs) > 1 else None


def seeds_for(spread: float | None) -> int | str:
    """Return how many seeds a 95 % interval of ± `WANTED` takes, where seeds differ by `spread`.

    Example:
        >>> seeds_for(0.01), seeds_for(0.02)
        (4, 7)
    """
    from scipy.stats import t

    if spread is None:
        return NOTHING
    return next(n for n in range(2, 1000) if t.ppf(0.975, n - 1) * spread / math.sqrt(n) <= WANTED)


def table2(lines: Sequence[Line]) -> str:
    """Write Table 2 as Markdown: Constant LR at every rate of the sweep and CoMMIT, then the paper's own table."""
    rates = list(lines[0].constant)
    tasks = [line.title for line in lines]
    ours = [[f"Constant LR, {rate}", *(_mean(line.constant[rate]) for line in lines)] for rate in rates]
    ours += [[_label(method), *(_mean(line.cells[method]) for line in lines)] for method in METHODS[3:]]
    paper = [
        ["CoMMIT" if rate == "commit" else f"Constant LR, {rate}", *(f"{cells[line.row]:.2f}" for line in lines)]
        for rate, cells in TABLE2.items()
    ]
    head = ["Method", *tasks]
    return f"{markdown_table(head, ours)}\nThe paper's:\n\n{markdown_table(head, paper)}"


_MARKS = "†: in how many runs a module's rate fell below a hundredth of its base rate. ‡: how many runs did not finish."


def _label(method: str) -> str:
    return f"{METHOD_LABELS[method]} (default)" if method == OURS else METHOD_LABELS[method]


def _seeds(line: Line) -> str:
    return str(len(line.cells[CONSTANT].by_seed))


def _cell(line: Line, method: str) -> str:
    if method not in line.cells:
        return NOTHING
    cell, published = line.cells[method], TABLE1[line.row].get(method)
    text = _mean(cell)
    if percent(cell.mean) == percent(line.cells[line.best].mean):
        text = strong(text)
    marks = [f" {mark}{runs}" for mark, runs in (("†", cell.collapsed), ("‡", cell.failed)) if runs]
    return Markdown("".join([text, "" if published is None else f" ({published:.1f})", *marks]))


def _mean(cell: Cell) -> str:
    """Write the mean and half of its 95 % interval over seeds, in percent."""
    if not cell.by_seed:
        return "failed"
    found = paired_difference(cell.by_seed, dict.fromkeys(cell.by_seed, 0.0))
    if found is None or found.high is None:
        return percent(cell.mean)
    return f"{percent(cell.mean)} ± {percent(found.high - found.mean)}"


def _difference(line: Line) -> str:
    return difference_text(line.cells[OURS].difference)
