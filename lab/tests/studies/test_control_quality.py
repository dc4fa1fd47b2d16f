"""What a controller did, from records made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from commit_lab.studies.control_quality import control_table, read_control
from commit_tuning import CoMMITConfig
from commit_tuning.errors import UserError
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord


def write_run(folder: Path, rows: list[dict[str, Any]], *changes: str) -> None:
    recipe = load_recipe("iconqa-nano-blip2", ["train.learning_rate=1e-3", *changes])
    folder.mkdir()
    record = RunRecord(recipe=recipe.for_record(), seed=0, folder=folder)
    record.status, record.metrics = "complete", {"val": {"accuracy": 0.5}}
    record.write()
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(kappa: float | None, language: float, vision: float) -> dict[str, Any]:
    return {"smoothed_kappa": kappa, "lr/language_model": language * 1e-3, "lr/vision": vision * 1e-3, "loss": 1.0}


def test_a_run_by_hand(tmp_path: Path) -> None:
    bound = CoMMITConfig().controller.bound
    rows = [
        row(None, 1.0, 1.0),
        row(100.0, 2 * bound / (1 + bound), 2 / (1 + bound)),
        row(4.0, 1.5, 0.5),
        row(1.0, 1, 1),
    ]
    write_run(tmp_path / "a", rows, "commit.method=commit-clr", "commit.controller.kappa_target=2.0")
    [run] = read_control([tmp_path])
    assert run.held == 0.25
    logs = [math.log(100.0), math.log(4.0), 0.0]
    assert run.distance == pytest.approx(abs(sum(logs) / 3 - math.log(2.0)))
    assert run.movement == pytest.approx(math.sqrt(sum((x - sum(logs) / 3) ** 2 for x in logs) / 3))
    assert run.accuracy == 0.5


def test_starved_module_counts_as_held_without_bound(tmp_path: Path) -> None:
    rows = [row(1.0, 1.99, 0.01), row(1.0, 1.0, 1.0)]
    write_run(tmp_path / "literal", rows, "commit.method=commit-clr", "commit.controller=literal")
    assert [run.held for run in read_control([tmp_path])] == [0.5]


def test_the_table_has_a_row_for_each_arm(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"clr-{seed}", [row(1.0, 1.0, 1.0)] * 4, "commit.method=commit-clr")
    write_run(tmp_path / "constant", [row(4.0, 1.0, 1.0)] * 4, "commit.method=constant")
    write_run(tmp_path / "cd", [row(4.0, 1.0, 0.0)] * 4, "commit.method=feature-cd")
    lines = control_table(read_control([tmp_path])).splitlines()[2:]
    assert lines[0] == "| nano-blip2 | Constant LR | 0.001 | 1 | 0.0 % | 1.39 | 0.00 | 50.0 |"
    assert len(lines) == 2
    assert "commit-clr" in lines[1]
    assert "| 2 | 0.0 % | 0.00 |" in lines[1]


def test_folders_without_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete run"):
        read_control([tmp_path])
