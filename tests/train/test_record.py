"""Records never look finished before they are, and say so when they cannot be read."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from commit_tuning.errors import UserError
from commit_tuning.train.record import RunRecord, alone_in, json_line, load_records, read_lines, writable_folder


def test_round_trip(tmp_path: Path) -> None:
    record = RunRecord(recipe={"a": 1}, seed=3, metrics={"train_loss": float("nan")}, folder=tmp_path)
    record.write()
    read = RunRecord.read(tmp_path)
    assert (read.recipe, read.seed, read.status) == ({"a": 1}, 3, "running")
    assert read.metrics == {"train_loss": None}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_incomplete_run_has_no_accuracy() -> None:
    metrics = {"test": {"accuracy": 0.9}}
    assert RunRecord(recipe={}, metrics=metrics).accuracy("test") == 0.0
    assert RunRecord(recipe={}, metrics=metrics, status="complete").accuracy("test") == 0.9


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"status": "complete"}'])
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


def test_truncated_line_ends_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1}]
    assert read_lines(tmp_path / "none") == []


SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    rows = [{"question": f"{separator}?{separator}"} for separator in SEPARATORS]
    (tmp_path / "rows.jsonl").write_text("".join(map(json_line, rows)), encoding="utf-8", newline="")
    assert read_lines(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("damage", [b'{"a": 1', b"[1]", b"\xff\xfe", b"\0\0", b"[" * 100_000])
def test_damaged_line_in_the_middle_is_an_error(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n' + damage + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2 is no JSON object"):
        read_lines(path)
    path.write_bytes(b'{"a": 0}\n' + damage)
    assert read_lines(path) == [{"a": 0}]


def a_complete_run(folder: Path) -> RunRecord:
    record = RunRecord(recipe={}, metrics={"test": {"accuracy": 0.5}}, folder=folder)
    record.plan(["history.jsonl", "predictions.jsonl", "tuned.safetensors", "skipped.jsonl"])
    for name in ("history.jsonl", "predictions.jsonl", "tuned.safetensors"):
        record.store(name, f"{name} of ours\n")
    record.finish()
    return record


NAMES = ("history.jsonl", "predictions.jsonl", "tuned.safetensors")
KINDS = ("cut", "changed", "gone", "a folder", "a link")
DAMAGES = [pair for pair in itertools.product(NAMES, KINDS) if pair != ("tuned.safetensors", "gone")]  # see below


def test_finished_run_names_what_it_wrote(tmp_path: Path) -> None:
    assert set(a_complete_run(tmp_path).files or ()) == {"history.jsonl", "predictions.jsonl", "tuned.safetensors"}
    read = RunRecord.read(tmp_path)
    assert (read.complete, read.damage, read.fault, read.accuracy("test")) == (True, (), None, 0.5)


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_run_with_damaged_file_is_not_complete(tmp_path: Path, name: str, damage: str) -> None:
    a_complete_run(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage in ("cut", "changed"):
        path.write_bytes(content[:-3] if damage == "cut" else b"X" + content[1:])
    elif damage == "a folder":
        path.mkdir()
    elif damage == "a link":
        (tmp_path / "copy").write_bytes(content)
        path.symlink_to("copy")
    read = RunRecord.read(tmp_path)
    assert (read.complete, read.damage, read.accuracy("test")) == (False, (name,), 0.0)
    with pytest.raises(UserError, match=rf"{name} is missing or not as the run wrote it \(1 such in all\); restore it"):
        read.refuse_damage()


def test_removed_weights_leave_a_run_complete(tmp_path: Path) -> None:
    a_complete_run(tmp_path)
    (tmp_path / "tuned.safetensors").unlink()
    read = RunRecord.read(tmp_path)
    assert (read.complete, read.damage, read.removed) == (True, (), ("tuned.safetensors",))
    assert read.accuracy("test") == 0.5


def test_complete_run_must_name_its_history(tmp_path: Path) -> None:
    RunRecord(recipe={}, status="complete", files={}, folder=tmp_path).write()
    assert RunRecord.read(tmp_path).damage == ("history.jsonl", "predictions.jsonl")


def test_older_run_is_complete_unchecked(tmp_path: Path) -> None:
    RunRecord(recipe={}, status="complete", folder=tmp_path).write()
    assert RunRecord.read(tmp_path).complete


@pytest.mark.parametrize(
    "change",
    [
        {"status": "done"},
        {"seed": "0"},
        {"files": ["history.jsonl"]},
        {"files": {"history.jsonl": 1}},
        {"metrics": []},
        {"recipe": None},
        {"skipped": {"test": 3}},
    ],
)
def test_record_of_wrong_types_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {}} | change))
    with pytest.raises(UserError, match="is not a run record") as refused:
        RunRecord.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_stored_folder_does_not_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        json.dumps({"recipe": {}, "status": "running", "versions": {}, "folder": "/etc"})
    )
    assert RunRecord.read(tmp_path).folder == tmp_path


def test_lock_of_dead_process_keeps_nobody_out(tmp_path: Path) -> None:
    code = f"import os; from filelock import FileLock; FileLock({str(tmp_path / '.lock')!r}).acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (tmp_path / ".lock").exists()
    with alone_in(tmp_path), pytest.raises(UserError, match="another process is at work"), alone_in(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        writable_folder(tmp_path / "file" / "below")


def test_lock_that_is_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*/\.lock: is a directory"), alone_in(tmp_path):
        pass


def test_dangling_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"run\.json is a link to nothing; remove it"):
        RunRecord.read(tmp_path)
