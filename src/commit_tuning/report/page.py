"""One self-contained HTML page about a run, or about all runs of a comparison, finished or not."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from commit_tuning.data.files import FaultError, check_inside
from commit_tuning.data.pictures import load_picture
from commit_tuning.data.tasks import tasks
from commit_tuning.errors import UserError
from commit_tuning.metrics.score import METRICS
from commit_tuning.report.curves import Group
from commit_tuning.shown import visible
from commit_tuning.storage import write_text
from commit_tuning.train.compare.arms import METHOD_LABELS, STATIC, rates_text, screening_arms
from commit_tuning.train.compare.comparison import MANIFEST, TABLE
from commit_tuning.train.compare.table import NOTHING, fixed, mean, percent
from commit_tuning.train.readable import Answered, ArmRow, Manifest, Table, answered, read_json, read_runs
from commit_tuning.train.recipe.load import build_recipe
from commit_tuning.train.record import IMAGES, RECORD, REPORT, RunRecord
from commit_tuning.train.scoring import score

LONGEST = 20_000
"""Longest text that a page shows whole, in characters."""

SIDE = 480
"""Longest side of a picture in a page, in pixels; larger ones are reduced."""

_TEMPLATES = Path(__file__).parent / "templates"
_KIND = "kind/"
_GENERATOR = '<meta name="generator" content="commit-tuning">'


@dataclass(frozen=True)
class Arm:
    """A line of the report's table, with the runs behind it.

    Attributes:
        label: Name of the method and its settings.
        method: The method's name.
        rates: Base learning rates as text.
        drawn: Whether curves and answers of this arm are shown.
        cells: The cells of the table after the label, by the column's name; that of a kind of question is `kind/NAME`.
        records: Its finished runs; those that are not finished where none is.
    """

    label: str
    method: str
    rates: str
    drawn: bool
    cells: dict[str, str]
    records: tuple[RunRecord, ...]

    @property
    def name(self) -> str:
        """What curves and answers are called by."""
        return f"{self.label}, {self.rates}"


@dataclass(frozen=True)
class Contents:
    """What a page is about.

    Attributes:
        arms: In the order of the table.
        compared: Whether it is a finished comparison.
        unfinished: A line for each thing that is not finished.
        failures: A line for each run that failed.
        left_out: A line for each run that cannot be shown.
        screening: Every arm of the screening.
    """

    arms: list[Arm]
    compared: bool = False
    unfinished: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    screening: list[ArmRow] = field(default_factory=list)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the output folder of a run or of a comparison, with what there is so far.

    Returns:
        Where the page lies.

    Raises:
        UserError: There is no run in or below the folder that can be shown, or the page cannot be written, or a file
            of that name is no report of ours.
    """
    folder = Path(folder)
    _refuse_foreign(folder / REPORT)
    try:
        write_text(folder / REPORT, _render(folder, read_contents(folder)))
    except RecursionError:
        raise UserError(f"a record in or below {folder} is nested too deeply to be shown; remove it") from None
    return folder / REPORT


def _refuse_foreign(page: Path) -> None:
    try:
        with page.open("rb") as file:
            ours = _GENERATOR.encode() in file.read(1000)
    except FileNotFoundError:
        ours = not page.is_symlink()
    except (OSError, ValueError):  # no name that a file can have
        ours = False
    if not ours:
        raise UserError(f"{page} is there and is no report of this version; move it away, and ask for the report again")


def _render(folder: Path, contents: Contents) -> str:
    from jinja2 import Environment, FileSystemLoader

    from commit_tuning.report.figure_style import legend
    from commit_tuning.report.plots import draw_accuracy, draw_curves

    arms = contents.arms
    shown = [arm for arm in arms if arm.drawn and arm.records]
    if not shown:
        raise UserError(contents.left_out[0] if contents.left_out else f"no run below {folder} has begun")
    groups = [Group.of(arm.name, arm.method, arm.records) for arm in shown]
    dots = [(arm.name, arm.method, [r.accuracy("test") for r in arm.records if r.complete]) for arm in arms]
    keys = legend(groups)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, finalize=_shown_in_page
    )
    return environment.get_template("report.html.j2").render(
        title=_title(shown),
        contents=contents,
        removed=_without_weights(shown),
        setup=describe(shown[0].records[0], max(len(arm.records) for arm in shown)),
        columns=_columns(arms),
        accuracy=draw_accuracy(dots) if len(dots) > 1 and any(shares for _, _, shares in dots) else None,
        plots=draw_curves(groups),
        legend=keys,
        questions=gallery(shown, keys),
        recipe=yaml.safe_dump(shown[0].records[0].recipe, sort_keys=False, allow_unicode=True),
        percent=percent,
        nothing=NOTHING,
    )


def _without_weights(arms: Iterable[Arm]) -> list[str]:
    """Return one line on the runs whose weights were removed, which are shown like the others; or none."""
    folders = [record.folder for arm in arms for record in arm.records if record.removed]
    return [f"{len(folders)} runs, first: {folders[0]}; their numbers are as they were"] if folders else []


def _shown_in_page(value: Any) -> Any:
    """Return a value as the page shows it: a text of limited length without characters that act or hide."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    cut = f" … ({len(value):,} characters)" if len(value) > LONGEST else ""
    return visible(value[:LONGEST]) + cut


def _columns(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the columns with any content, in order, with their headings."""
    names = list(dict.fromkeys(name for arm in arms for name in arm.cells))
    kinds = sorted(name for name in names if name.startswith(_KIND))
    place = names.index("Validation")
    ordered = [name for name in names[:place] if name not in kinds] + kinds
    ordered += [name for name in names[place:] if name not in kinds]
    said = [name for name in ordered if any(arm.cells.get(name, NOTHING) not in (NOTHING, "0") for arm in arms)]
    return {name: _heading(name) for name in said}


def _heading(column: str) -> str:
    return column.removeprefix(_KIND).replace("_", " ") if column.startswith(_KIND) else column


def read_contents(folder: Path) -> Contents:
    """Read a comparison's arms, from its table or the runs so far, or the runs below a folder by recipe.

    Raises:
        UserError: Neither is there, or the comparison's own files are damaged.
    """
    if (folder / TABLE).is_file():
        return _finished_comparison(folder)
    if (folder / MANIFEST).is_file():
        return _comparison_so_far(folder)
    folders = [path.parent for path in sorted(folder.rglob(RECORD))]
    if not folders:
        raise UserError(f"no {RECORD} in or below {folder}; give the output folder of 'train' or 'compare'")
    records, left_out = read_runs(folders)
    return _runs_so_far(folder, _by_recipe(records), left_out)


def _finished_comparison(folder: Path) -> Contents:
    table, manifest = read_json(folder / TABLE, Table), read_json(folder / MANIFEST, Manifest)
    arms, left_out = [], []
    for row in table.rows:
        records, damaged = read_runs(_inside(folder, row.runs))
        arms.append(_arm_of_row(row, tuple(record for record in records if record.complete)))
        left_out += damaged
        left_out += [f"{record.folder}: {_state(record)}" for record in records if not record.complete]
    return Contents(arms, True, failures=manifest.failures, left_out=left_out, screening=table.screening)


def _inside(folder: Path, runs: Iterable[str]) -> list[Path]:
    """Return the folders of a table's runs.

    Raises:
        UserError: One lies elsewhere.
    """
    for run in runs:
        try:
            check_inside(folder.resolve(), folder / run)
        except FaultError:
            raise UserError(f"{folder / TABLE} names a run outside of its folder: {run}; make it anew") from None
    return [folder / run for run in runs]


def _comparison_so_far(folder: Path) -> Contents:
    manifest = read_json(folder / MANIFEST, Manifest)
    recipe = build_recipe(manifest.recipe | {"compare": manifest.compare}, {}, source=str(folder / MANIFEST))
    axes = tuple((key, tuple(values)) for key, values in manifest.axes.items())
    found, left_out = [], []
    for arm in screening_arms(recipe, axes):
        paths = sorted((folder / "runs" / arm.slug).glob(f"seed-*/{RECORD}"))
        records, damaged = read_runs(path.parent for path in paths)
        left_out += damaged
        if records:
            found.append(((arm.family, arm.method, arm.rates), sorted(records, key=lambda record: record.seed)))
    contents = _runs_so_far(folder, found, left_out)
    counts = Counter("complete" if record.complete else "not complete" for _, records in found for record in records)
    said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none"
    again = f"The comparison is not finished; runs so far: {said}. The same 'commit-tuning compare' goes on with it."
    contents.unfinished.insert(0, again)
    return contents


_Family = tuple[tuple[str, str, str], list[RunRecord]]  # label, method and rates of some runs


def _runs_so_far(folder: Path, families: Sequence[_Family], left_out: list[str]) -> Contents:
    """Return the contents of a page about runs of which some may not be complete."""
    contents = Contents([_arm_of_records(*key, records) for key, records in families], left_out=left_out)
    for record in (record for _, records in families for record in records if not record.complete):
        name = record.folder.relative_to(folder).as_posix()
        failed = record.status == "failed"
        (contents.failures if failed else contents.unfinished).append(
            ("" if name == "." else f"{name}: ") + _state(record)
        )
    return contents


def _state(record: RunRecord) -> str:
    """Say how far an incomplete run came."""
    done = max((int(row["step"] or 0) for row in record.history()), default=0)
    where = f"step {done} of {record.recipe['train']['steps']}"
    return f"failed after {where}: {record.error}" if record.status == "failed" else f"running or interrupted: {where}"


def _by_recipe(records: Sequence[RunRecord]) -> list[_Family]:
    """Group runs by everything but the seed; labels carry what tells groups of one method and rate apart."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(json.dumps(_flat(_without_seed(record.recipe)), sort_keys=True), []).append(record)
    plain = [(*_method_and_rates(found[0]), _flat(_without_seed(found[0].recipe)), found) for found in groups.values()]
    families = []
    for method, rates, recipe, found in plain:
        twins = [other for name, rate, other, _ in plain if (name, rate) == (method, rates)]
        keys = sorted(
            {key for twin in twins for key in twin.keys() | recipe.keys() if twin.get(key) != recipe.get(key)}
        )
        varied = ", ".join(f"{key} {json.dumps(recipe.get(key), ensure_ascii=False)}" for key in keys)
        label = METHOD_LABELS.get(method, method) + (f" ({varied})" if varied else "")
        families.append(((label, method, rates), found))
    return families


def _without_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    ours = ("seed", "save_weights")
    return recipe | {"train": {key: value for key, value in recipe["train"].items() if key not in ours}}


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Map dotted keys of a recipe's sections to their values."""
    sections = ((name, section if isinstance(section, dict) else {"": section}) for name, section in recipe.items())
    return {f"{name}.{key}": value for name, section in sections for key, value in section.items()}


def describe(record: RunRecord, seeds: int) -> dict[str, str]:
    """Return what a reader must know about the runs, by name, without what an older record lacks."""
    recipe, train, commit = record.recipe, record.recipe["train"], record.recipe["commit"]
    lora, task, hardware = recipe["model"].get("lora"), tasks().get(recipe["data"]["dataset"]), record.hardware
    scores = record.metrics.get("test")
    tuned = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in record.parameters.items())
    data = [recipe["data"]["dataset"]]
    data += [f"{scores['questions']:,} test questions"] if scores else []
    data += [f"scored by {METRICS[task.metric].name}"] if task else []
    steps = f"{train['steps']} steps" + (f" of {train['batch_size']}" if "batch_size" in train else "")
    rate = [f"{train['scheduler']} rate"] if "scheduler" in train else []
    probe = commit.get("probe")
    kappa = [f"every {probe['interval']} steps"] if isinstance(probe, dict) and "interval" in probe else []
    kappa += (
        [f"{commit.get('kappa_estimator', '')} mean of {commit['kappa_window']}"] if "kappa_window" in commit else []
    )
    machine = [str(hardware["cpu"])] if "cpu" in hardware else []
    machine += [f"{hardware['torch_threads']} thread(s)"] if "torch_threads" in hardware else []
    said = {
        "Model": recipe["model"]["name"]
        + (f", LoRA r = {lora.get('r')}" if lora else ", language model tuned in full"),
        "Tuned parameters": tuned,
        "Data": ", ".join(data),
        "Training": ", ".join([steps, *([str(train["optimizer"])] if "optimizer" in train else []), *rate]),
        "Seeds": str(seeds),
        "κ": "; ".join(kappa),
        "Machine": ", ".join(machine),
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Data checksum": record.data_checksum or "unknown",
    }
    return {name: text for name, text in said.items() if text}


def gallery(arms: Sequence[Arm], keys: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Return some test questions with picture, truth and the answer of each arm's first run."""
    given = [{row.id: row.answer for row in answered(arm.records[0])} for arm in arms]
    first = arms[0].records[0]
    asked = []
    for row in answered(first):
        picture = _picture(first, row)
        if not picture:
            continue
        answers = [
            {
                "name": arm.label,
                "colour": key["colour"],
                "text": answer[row.id],
                "right": _is_right(row, answer[row.id], first),
            }
            for arm, key, answer in zip(arms, keys, given, strict=True)
            if row.id in answer
        ]
        asked.append({"row": row, **picture, "answers": answers, "choices": ", ".join(row.choices or ())})
    return asked


def _picture(record: RunRecord, row: Answered) -> dict[str, str]:
    """Return a question's `picture` as the address of its own bytes, or its `fault`; nothing where it has none."""
    try:
        path = record.file(row.picture or f"{IMAGES}/{row.id}.png")  # older runs named pictures by id
        return {"picture": picture_address(path)} if path else {}
    except (FaultError, OSError) as fault:
        return {"fault": str(fault)}


def picture_address(path: Path) -> str:
    """Return a picture as a `data:` address: PNG, or JPEG if it had to be reduced.

    Raises:
        FaultError: It is no whole picture, or too large to be decoded.
    """
    image, buffer = load_picture(path), io.BytesIO()
    form = "JPEG" if max(image.size) > SIDE else "PNG"
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _is_right(row: Answered, answer: str, run: RunRecord) -> bool | None:
    """Tell whether an answer gets at least half of the points; None where no metric says."""
    task = tasks().get(run.recipe["data"]["dataset"])
    asked = {"kind": row.kind, "choices": row.choices, "truth": row.truth, "answers": row.answers or [row.truth]}
    try:
        return bool(score([asked | {"answer": answer}], task.metric)["accuracy"] >= 0.5) if task else None
    except UserError:
        return None


def _arm_of_row(row: ArmRow, records: tuple[RunRecord, ...]) -> Arm:
    test, *others = _cells(records, row.test_sd).items()
    cells = dict([test, ("Difference [95 % CI]", row.interval), *others])
    cells |= {"Collapsed": str(row.collapsed), "Failed": str(row.failed)}
    return Arm(row.label, row.method, row.rates, row.chosen, cells, records)


def _arm_of_records(label: str, method: str, rates: str, records: Sequence[RunRecord]) -> Arm:
    complete = tuple(record for record in records if record.complete)
    return Arm(label, method, rates, True, _cells(complete, None), complete or tuple(records))


def _cells(records: Sequence[RunRecord], spread: float | None) -> dict[str, str]:
    """Return the numbers of the table that come from complete records alone."""
    scores = [record.metrics["test"].get("by_kind", {}) for record in records]
    kinds = sorted({kind for by_kind in scores for kind in by_kind})
    test = percent(mean([record.accuracy("test") for record in records]))
    losses = [record.metrics.get("train_loss") for record in records]
    return {
        "Test accuracy": test + (f" ± {percent(spread)}" if spread is not None else ""),
        "Seeds": str(len(records)),
        **{_KIND + kind: percent(mean([one[kind] for one in scores if kind in one])) for kind in kinds},
        "Validation": percent(mean([record.accuracy("val") for record in records])),
        "Starving": starvation(records),
        "Loss": fixed(mean([loss for loss in losses if loss is not None]), 3),
        "Seconds": fixed(mean([sum(record.seconds.values()) for record in records]), 0),
    }


def starvation(records: Sequence[RunRecord]) -> str:
    """Name the modules that starve at the end of runs, with the steps since which they do."""
    found: dict[str, list[int]] = {}
    for record in records:
        for module, since in record.metrics.get("starving", {}).items():
            found.setdefault(module, []).append(since)
    named = (
        f"{module.replace('_', ' ')} in {len(steps)} of {len(records)}, since step {', '.join(map(str, sorted(steps)))}"
        for module, steps in sorted(found.items())
    )
    return "; ".join(named) or NOTHING


def _method_and_rates(record: RunRecord) -> tuple[str, str]:
    train, method = record.recipe["train"], record.recipe["commit"]["method"]
    language, encoder = train["learning_rate"], train.get("encoder_learning_rate") or train["learning_rate"]
    return (STATIC if method == "constant" and encoder != language else method), rates_text(language, encoder)


def _title(arms: Sequence[Arm]) -> str:
    recipe = arms[0].records[0].recipe
    what = f"{Path(recipe['model']['name']).name} on {recipe['data']['dataset']}"
    return f"{arms[0].label}: {what}" if len(arms) == 1 else f"Comparison of methods: {what}"
