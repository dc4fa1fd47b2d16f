"""What no record of ours names is neither overwritten nor removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commit_tuning.errors import UserError
from commit_tuning.train.ownership import refuse_foreign, refuse_taken, remove_named, start_over
from commit_tuning.train.record import RECORD, RunRecord, is_result

HOSTILE = [
    "../victim",
    "images/../../victim",
    "images/..",
    "images/",
    "",
    ".",
    "/etc/passwd",
    "images//etc",
    "images\\..\\victim",
    "images/a\0.png",
    "images/a/b.png",
    "run.json",
    "thesis.txt",
    "log.txt",
    "adapter",
]


def a_run(folder: Path, *names: str) -> RunRecord:
    """A begun run with some files, which its record names."""
    folder.mkdir(exist_ok=True)
    record = RunRecord(recipe={}, folder=folder)
    record.plan(())
    for name in names:
        record.store(name, name)
    record.write()
    return record


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_is_no_result(tmp_path: Path, name: str) -> None:
    assert not is_result(name)
    folder = tmp_path / "run"
    a_run(folder)
    (tmp_path / "victim").write_text("mine")
    record = RunRecord(recipe={}, folder=folder, files={name: None})
    remove_named(record)
    assert (tmp_path / "victim").read_text() == "mine"
    assert (folder / RECORD).is_file()
    assert record.file(name) is None
    (folder / RECORD).write_text(json.dumps({"recipe": {}, "status": "failed", "versions": {}, "files": {name: None}}))
    with pytest.raises(UserError, match="no run writes a file"):
        RunRecord.read(folder)


def test_only_named_files_are_removed(tmp_path: Path) -> None:
    record = a_run(tmp_path, "history.jsonl", "images/0000.png", "adapter/README.md")
    (tmp_path / "images" / "holiday.png").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    remove_named(record)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["images", "images/holiday.png", "notes.txt", "run.json"]


def test_linked_folder_is_not_entered(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0000.png").write_text("mine")
    record = a_run(tmp_path / "run")
    (tmp_path / "run" / "images").symlink_to(elsewhere)
    record.files = {"images/0000.png": None}
    remove_named(record)
    assert (elsewhere / "0000.png").read_text() == "mine"
    assert record.file("images/0000.png") is None
    with pytest.raises(UserError, match=r"images is there and no record"):
        refuse_taken(tmp_path / "run", ["images/0000.png"], ["images/0000.png"])


def test_output_folder_may_be_a_link(tmp_path: Path) -> None:
    a_run(tmp_path / "run", "images/0000.png")
    (tmp_path / "link").symlink_to("run")
    record = RunRecord.read(tmp_path / "link")
    assert not record.damage
    remove_named(record)
    assert not (tmp_path / "run" / "images").exists()


def test_linked_file_is_removed_not_its_target(tmp_path: Path) -> None:
    record = a_run(tmp_path / "run", "history.jsonl")
    (tmp_path / "target").write_text("mine")
    (tmp_path / "run" / "history.jsonl").unlink()
    (tmp_path / "run" / "history.jsonl").symlink_to(tmp_path / "target")
    remove_named(record)
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_folder_without_record_must_be_empty(tmp_path: Path) -> None:
    for name in (".lock", "log.txt", "cluster.json", "report.html", ".a.1.commit-tuning.tmp"):
        (tmp_path / name).touch()
    refuse_foreign(tmp_path, RECORD)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"'photo\.jpg', 1 in all.*--output, or give --force"):
        refuse_foreign(tmp_path, RECORD)
    a_run(tmp_path)
    refuse_foreign(tmp_path, RECORD)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_foreign_file_in_the_way_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "history.jsonl"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "target").touch()
        path.symlink_to("target" if kind == "link" else "nowhere")
    with pytest.raises(UserError, match="is there and no record of a run names it"):
        start_over(RunRecord(recipe={}, folder=tmp_path), None, ["history.jsonl"])
    assert path.is_symlink() or path.exists()
    assert not (tmp_path / RECORD).exists()


def test_new_run_lists_files_before_deleting_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = a_run(tmp_path, "history.jsonl", "adapter/README.md")
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        assert RunRecord.read(tmp_path).files == dict.fromkeys(
            ["history.jsonl", "images/0000.png", "adapter/README.md"]
        )
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    start_over(RunRecord(recipe={"a": 1}, folder=tmp_path), before, ["history.jsonl", "images/0000.png"])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_half_written_leftovers_are_removed(tmp_path: Path) -> None:
    record = a_run(tmp_path, "images/0000.png")
    for leftover in (tmp_path / ".run.json.7.commit-tuning.tmp", tmp_path / "images" / ".0001.png.7.commit-tuning.tmp"):
        leftover.touch()
    remove_named(record)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
