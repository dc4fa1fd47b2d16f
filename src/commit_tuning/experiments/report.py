"""One self-contained HTML page about a run, or about all runs of a comparison."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from commit_tuning.errors import UserError
from commit_tuning.experiments.arms import METHOD_LABELS, STATIC
from commit_tuning.experiments.compare import MANIFEST, TABLE, read_manifest
from commit_tuning.experiments.curves import Group
from commit_tuning.experiments.evaluation import score
from commit_tuning.experiments.record import RunRecord, load_records
from commit_tuning.experiments.table import NOTHING, Difference, difference_text, fixed, mean, percent
from commit_tuning.experiments.tasks import TASKS
from commit_tuning.metrics.score import METRICS
from commit_tuning.storage import write_text

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Arm:
    """A line of the report's table, with the runs behind it.

    Attributes:
        label: Name of the method and its settings.
        method: The method's name.
        rates: Base learning rates as text.
        drawn: Whether curves and answers of this arm are shown.
        cells: The cells of the table after the label.
        records: Its finished runs.
    """

    label: str
    method: str
    rates: str
    drawn: bool
    cells: dict[str, str]
    records: tuple[RunRecord, ...]


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the output folder of a run or of a comparison.

    Returns:
        Where the page lies.

    Raises:
        UserError: There is no finished run in or below the folder, or the page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    from commit_tuning.experiments.figure_style import legend
    from commit_tuning.experiments.plots import draw_accuracy, draw_curves

    folder = Path(folder)
    arms = read_arms(folder)
    shown = [arm for arm in arms if arm.drawn and arm.records]
    if not shown:
        raise UserError(f"no finished run in or below {folder}; finish one with 'commit-tuning train' first")
    groups = [Group.of(f"{arm.label}, {arm.rates}", arm.method, arm.records) for arm in shown]
    dots = [
        (f"{arm.label}, {arm.rates}", arm.method, [record.accuracy("test") for record in arm.records]) for arm in arms
    ]
    keys = legend(groups)
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=select_autoescape(), trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        title=_title(shown),
        compared=(folder / TABLE).is_file(),
        setup=describe(shown[0].records[0], max(len(arm.records) for arm in shown)),
        failures=_failures(folder),
        arms=arms,
        screening=_screening(folder),
        columns=[column for column in arms[0].cells if any(arm.cells[column] not in (NOTHING, "0") for arm in arms)],
        accuracy=draw_accuracy(dots) if len(dots) > 1 else None,
        plots=draw_curves(groups),
        legend=keys,
        questions=gallery(shown, keys),
        recipe=yaml.safe_dump(shown[0].records[0].recipe, sort_keys=False),
    )
    try:
        write_text(folder / "report.html", page)
    except OSError as error:
        raise UserError(f"cannot write {folder / 'report.html'}: {error.strerror}; check the folder") from None
    return folder / "report.html"


def read_arms(folder: Path) -> list[Arm]:
    """The arms of a comparison as its table has them, or the runs below a folder grouped by method and rates.

    Raises:
        UserError: Neither is there.
    """
    if (folder / TABLE).is_file():
        rows = json.loads((folder / TABLE).read_text(encoding="utf-8"))["rows"]
        return [_arm_of_row(folder, row) for row in rows]
    if (folder / MANIFEST).is_file():
        raise UserError(f"the comparison in {folder} is not finished; run the same 'commit-tuning compare' again")
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in load_records(folder):
        if record.complete:
            groups.setdefault(_method_and_rates(record), []).append(record)
    return [_arm_of_records(method, rates, tuple(records)) for (method, rates), records in groups.items()]


def describe(record: RunRecord, seeds: int) -> dict[str, str]:
    """What a reader has to know about the runs, by name."""
    recipe, train = record.recipe, record.recipe["train"]
    lora = recipe["model"]["lora"]
    tuned = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in record.parameters.items())
    commit = recipe["commit"]
    return {
        "Model": recipe["model"]["name"] + (f", LoRA r = {lora['r']}" if lora else ", language model tuned in full"),
        "Tuned parameters": tuned,
        "Data": f"{recipe['data']['dataset']}, {record.metrics['test']['questions']:,} test questions, scored by "
        f"{METRICS[TASKS[recipe['data']['dataset']].metric].name}",
        "Training": f"{train['steps']} steps of {train['batch_size']}, {train['optimizer']}, {train['scheduler']} rate",
        "Seeds": str(seeds),
        "κ": f"every {commit['probe_interval']} steps; {commit['kappa_estimator']} mean of {commit['kappa_window']}",
        "Machine": f"{record.hardware['cpu']}, {record.hardware['torch_threads']} thread(s)",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Data checksum": record.data_checksum or "unknown",
    }


def gallery(arms: Sequence[Arm], keys: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Some test questions with picture, truth and the answer of each arm's first run."""
    metric = TASKS[arms[0].records[0].recipe["data"]["dataset"]].metric
    given = [{row["id"]: row["answer"] for row in arm.records[0].predictions()} for arm in arms]
    asked = []
    for row in arms[0].records[0].predictions():
        picture = arms[0].records[0].file(row.get("picture", f"images/{row['id']}.png") or "")  # older runs: by id
        if picture is None:
            continue
        answers = [
            {"name": arm.label, "colour": key["colour"], "text": text, "right": _is_right(row, text, metric)}
            for arm, key, answer in zip(arms, keys, given, strict=True)
            if (text := answer.get(row["id"])) is not None
        ]
        code = base64.b64encode(picture.read_bytes()).decode()
        asked.append({**row, "picture": code, "answers": answers, "choices": ", ".join(row.get("choices") or ())})
    return asked


def _is_right(row: dict[str, Any], answer: str, metric: str) -> bool:
    """Whether an answer gets at least half of the points."""
    asked = {"answers": [row["truth"]], "choices": None} | row | {"answer": answer}  # older runs kept the truth alone
    return bool(score([asked], metric)["accuracy"] >= 0.5)


def _arm_of_row(folder: Path, row: dict[str, Any]) -> Arm:
    records = tuple(RunRecord.read(folder / run) for run in row["runs"])
    difference = row["difference"]
    interval = difference_text(None if difference is None else Difference(**difference))
    test, *others = _cells(records, row["test_sd"]).items()
    cells = dict([test, ("Difference [95 % CI]", interval), *others])
    cells |= {"Collapsed": str(row["collapsed"]), "Failed": str(row["failed"])}
    return Arm(row["label"], row["method"], row["rates"], row["chosen"], cells, records)


def _arm_of_records(method: str, rates: str, records: tuple[RunRecord, ...]) -> Arm:
    return Arm(METHOD_LABELS.get(method, method), method, rates, True, _cells(records, None), records)


def _cells(records: Sequence[RunRecord], spread: float | None) -> dict[str, str]:
    """The numbers of the table that come from the records alone."""
    kinds = sorted({kind for record in records for kind in record.metrics["test"]["by_kind"]})
    test = percent(mean([record.accuracy("test") for record in records]))
    by_kind = {
        kind.replace("_", " "): percent(mean([record.metrics["test"]["by_kind"][kind] for record in records]))
        for kind in kinds
    }
    return {
        "Test accuracy": test + (f" ± {percent(spread)}" if spread is not None else ""),
        "Seeds": str(len(records)),
        **by_kind,
        "Validation": percent(mean([record.accuracy("val") for record in records])),
        "Starving": starvation(records),
        "Loss": fixed(mean([record.metrics["train_loss"] for record in records]), 3),
        "Seconds": fixed(mean([sum(record.seconds.values()) for record in records]), 0),
    }


def starvation(records: Sequence[RunRecord]) -> str:
    """Modules that starve at the end of runs, with the steps since which they do."""
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
    language, encoder = train["learning_rate"], train["encoder_learning_rate"]
    if encoder in (None, language):
        return method, f"{language:g}"
    return STATIC if method == "constant" else method, f"{language:g} / {encoder:g}"


def _failures(folder: Path) -> list[str]:
    return list(read_manifest(folder).get("failures", [])) if (folder / MANIFEST).is_file() else []


def _screening(folder: Path) -> list[dict[str, Any]]:
    """Every arm of the screening, with what chose among them."""
    if not (folder / TABLE).is_file():
        return []
    rows = json.loads((folder / TABLE).read_text(encoding="utf-8"))["screening"]
    return [{**row, "validation": percent(row["validation"])} for row in rows]


def _title(arms: Sequence[Arm]) -> str:
    recipe = arms[0].records[0].recipe
    what = f"{Path(recipe['model']['name']).name} on {recipe['data']['dataset']}"
    return f"{arms[0].label}: {what}" if len(arms) == 1 else f"Comparison of methods: {what}"
