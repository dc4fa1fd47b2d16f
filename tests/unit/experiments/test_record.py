"""Records never look finished before they are, and say so when they cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commit_tuning.errors import UserError
from commit_tuning.experiments.record import RunRecord, load_records, read_lines, writable_folder


def test_round_trip(tmp_path: Path) -> None:
    record = RunRecord(recipe={"a": 1}, seed=3, metrics={"train_loss": float("nan")}, folder=tmp_path)
    record.write()
    read = RunRecord.read(tmp_path)
    assert (read.recipe, read.seed, read.status) == ({"a": 1}, 3, "running")
    assert read.metrics == {"train_loss": None}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_that_is_not_complete_has_no_accuracy() -> None:
    metrics = {"test": {"accuracy": 0.9}}
    assert RunRecord(recipe={}, metrics=metrics).accuracy("test") == 0.0
    assert RunRecord(recipe={}, metrics=metrics, status="complete").accuracy("test") == 0.9


@pytest.mark.parametrize("text", ["", "[]", "{", '{"status": "complete"}'])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="is not a run record"):
        RunRecord.read(tmp_path)


def test_load_records(tmp_path: Path) -> None:
    for seed in (1, 0):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        RunRecord(recipe={}, seed=seed, folder=folder).write()
    assert [record.seed for record in load_records(tmp_path)] == [0, 1]
    with pytest.raises(UserError, match=r"no run\.json"):
        load_records(tmp_path / "elsewhere")


def test_a_line_that_was_cut_off_ends_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1}]
    assert read_lines(tmp_path / "none") == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        writable_folder(tmp_path / "file" / "below")
