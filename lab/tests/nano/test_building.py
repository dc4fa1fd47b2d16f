"""A built dataset is whole and as it was built, or one line says what is wrong; a killed build leaves nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from commit_lab.nano import building
from commit_lab.nano.building import MANIFEST, build, cache_dir, check_built, in_processes
from commit_tuning.data.tasks import tasks
from commit_tuning.errors import UserError

RECIPE = {"format": 1, "seed": 0}


def write(root: Path) -> dict[str, Any]:
    (root / "questions").mkdir()
    for name in ("problems.json", "questions/1.txt"):
        (root / name).write_text(name)
    return {"told": "so"}


def made(root: Path) -> Path:
    return build(root, "Nano", RECIPE, write)


def slow(go: Path, root: Path) -> dict[str, Any]:
    """Write a part, say so, and wait for leave to go on."""
    told = write(root)
    (go.parent / "began").touch()
    wait_for(go.exists)
    return told


def build_slowly(root: Path, go: Path) -> None:
    build(root, "Nano", RECIPE, partial(slow, go))


def wait_for(moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(root: Path, go: Path) -> multiprocessing.process.BaseProcess:
    """A builder that has written a part."""
    process = multiprocessing.get_context("fork").Process(target=build_slowly, args=(root, go))
    process.start()
    wait_for((go.parent / "began").exists)
    return process


def partials(folder: Path) -> list[Path]:
    return list(folder.glob(".*.partial"))


def test_killed_builds_leave_nothing_for_long(tmp_path: Path) -> None:
    for number in range(3):
        process = started(tmp_path / "data", tmp_path / "go")
        process.kill()
        process.join()
        (tmp_path / "began").unlink()
        assert len(partials(tmp_path)) == 1, number
    made(tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {".data.lock", "data"}


def test_foreign_partial_folders_stay(tmp_path: Path) -> None:
    mine, another, linked = (tmp_path / f".{name}.partial" for name in ("data-mine", "data2-x", "data-link"))
    for folder in (mine, another, tmp_path / "target"):
        folder.mkdir()
        (folder / "thesis.txt").touch()
    for folder in (another, tmp_path / "target"):
        (folder / building._MARKER).touch()
    linked.symlink_to("target")
    made(tmp_path / "data")
    assert all((folder / "thesis.txt").is_file() for folder in (mine, another, linked))


def test_another_datasets_builder_is_left_alone(tmp_path: Path) -> None:
    other = started(tmp_path / "data-big", tmp_path / "go")
    made(tmp_path / "data")
    (tmp_path / "go").touch()
    other.join(60)
    assert other.exitcode == 0
    assert not partials(tmp_path)


def test_second_builder_waits_for_the_first(tmp_path: Path) -> None:
    first = started(tmp_path / "data", tmp_path / "go")
    second = multiprocessing.get_context("fork").Process(target=build_slowly, args=(tmp_path / "data", tmp_path / "no"))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert len(partials(tmp_path)) == 1
    (tmp_path / "go").touch()
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    assert not partials(tmp_path)


def remove_file(root: Path) -> None:
    (root / "questions" / "1.txt").unlink()


def add_file(root: Path) -> None:
    (root / "questions" / "2.txt").write_text("2")


def cut_file(root: Path) -> None:
    (root / "problems.json").write_text("prob")


def change_letter(root: Path) -> None:
    (root / "problems.json").write_text("Problems.json")


def break_picture(root: Path) -> None:
    (root / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def cut_manifest(root: Path) -> None:
    (root / MANIFEST).write_bytes((root / MANIFEST).read_bytes()[:-9])


def change_manifest(root: Path) -> None:
    (root / MANIFEST).write_text((root / MANIFEST).read_text().replace('"so"', '"No"'))


def nest_manifest(root: Path) -> None:
    (root / MANIFEST).write_text("[" * 100_000)


def list_manifest(root: Path) -> None:
    (root / MANIFEST).write_text("[]")


DAMAGE = [remove_file, add_file, cut_file, change_letter, break_picture]
DAMAGE += [cut_manifest, change_manifest, nest_manifest, list_manifest]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_dataset_is_refused_when_opened(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(made(tmp_path / "data"))
    line = r"the dataset in .*/data is damaged \(.*\); remove that folder, and it is built again$"
    with pytest.raises(UserError, match=line):
        made(tmp_path / "data")
    with pytest.raises(UserError, match=line):
        tasks()["nano-iconqa"].root(str(tmp_path / "data"))


def test_untouched_dataset_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made(tmp_path / "data")
    monkeypatch.setattr(building, "dataset_checksum", lambda root: "nothing")
    assert made(root) == root


def test_copied_dataset_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "data")
    root = shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)
    for path in root.rglob("*.txt"):
        os.utime(path, (1, 1))
    check_built(root)
    monkeypatch.setattr(building, "dataset_checksum", lambda root: "nothing")
    check_built(root)


def test_manifest_of_an_older_version_is_checked(tmp_path: Path) -> None:
    root = made(tmp_path / "data")
    manifest = json.loads((root / MANIFEST).read_text())
    older = {key: value for key, value in manifest.items() if key not in ("listing", "manifest_sha256")}
    (root / MANIFEST).write_text(json.dumps(older))
    made(root)
    assert json.loads((root / MANIFEST).read_text()) == manifest
    (root / MANIFEST).write_text(json.dumps(older))
    change_letter(root)
    with pytest.raises(UserError, match="damaged"):
        made(root)


def test_hidden_files_of_a_system_are_no_damage(tmp_path: Path) -> None:
    root = made(tmp_path / "data")
    (root / ".cache").mkdir()
    for name in (".DS_Store", ".cache/thumb.png"):
        (root / name).touch()
    assert made(root) == root


@pytest.mark.parametrize("name", ["file", "file/below", "n" * 300, "dangling"])
def test_place_that_no_dataset_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"cannot write|exists and is no Nano") as refused:
        made(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} - before <= {".dangling.lock"}


def test_cache_of_nobody_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT_TUNING_CACHE", "~no-such-user/cache")
    with pytest.raises(UserError, match="no home folder of that user"):
        cache_dir()


def hold(lock: str) -> None:
    """What a builder's worker does here: hold a lock for as long as it lives."""
    with FileLock(lock):
        Path(lock + ".held").touch()
        time.sleep(300)


def hold_all(locks: list[str]) -> None:
    list(in_processes(hold, locks, len(locks)))


def test_builders_end_with_a_killed_parent(tmp_path: Path) -> None:
    locks = [str(tmp_path / name) for name in "ab"]
    parent = multiprocessing.get_context("spawn").Process(target=hold_all, args=(locks,))
    parent.start()
    deadline = time.monotonic() + 60
    while not all(Path(f"{lock}.held").exists() for lock in locks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.join()
    for lock in locks:
        with FileLock(lock, timeout=60):
            pass
