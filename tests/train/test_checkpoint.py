"""Checkpoints: whole or not there, and never of another run."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch

from commit_tuning.errors import UserError
from commit_tuning.storage import temporary_path
from commit_tuning.train import checkpoint
from commit_tuning.train.checkpoint import Checkpoints, newest, read, remove_checkpoints, stored

IDENTITY = {"recipe": {"train": {"steps": 9}}, "versions": {"torch": "2.6"}}


def save(run: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(run, IDENTITY, 100)
    for step in steps:
        checkpoints.save(step, {"steps": step, "weights": {"a": torch.full((3,), float(step))}})
    return checkpoints


def test_every_value_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"t": shared.t(), "same": shared, "scalar": torch.tensor(2), "half": torch.ones(2, dtype=torch.bfloat16)}
    plain = {0: (1, 2.5, [None, True, "é"]), "low": -math.inf, "tiny": 0.1 + 0.2, "big": 2**80, "nested": {"x": ()}}
    Checkpoints(tmp_path, IDENTITY, 1).save(1, {"tensors": tensors, "plain": plain})
    state = read(*stored(tmp_path))
    assert state["plain"] == plain
    assert state["identity"] == IDENTITY
    for name, tensor in tensors.items():
        assert state["tensors"][name].dtype == tensor.dtype
        assert state["tensors"][name].equal(tensor)


def test_what_no_checkpoint_can_hold_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"/odd/0: a checkpoint cannot hold a set"):
        Checkpoints(tmp_path, IDENTITY, 1).save(1, {"odd": [set()]})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_there_is_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    names = {path.name for path in stored(tmp_path)[0].iterdir()}
    assert names == {"manifest.json", "state.json", "tensors.safetensors"}


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 100, 200, 300)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000200", "step-000300"]
    temporary_path(stored(tmp_path)[0]).mkdir()  # as a process leaves it that is killed while it removes one
    remove_checkpoints(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_the_last_two_are_kept_past_a_million(tmp_path: Path) -> None:
    save(tmp_path, 999_998, 999_999, 1_000_000)
    assert [path.name for path in stored(tmp_path)] == ["step-999999", "step-1000000"]


def test_folders_of_other_names_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 100)
    for name in ("best", "step-12", "step-000100-old"):
        (tmp_path / "checkpoints" / name).mkdir()
    remove_checkpoints(tmp_path)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"best", "step-12", "step-000100-old"}


@pytest.mark.parametrize("kind", ["more files", "other files", "a link", "a file"])
def test_foreign_folders_of_the_name_are_kept(kind: str, tmp_path: Path) -> None:
    save(tmp_path, 100, 200)
    path = stored(tmp_path)[0]
    if kind == "more files":
        (path / "optimizer.pt").write_text("mine")
    elif kind == "other files":
        for name in ("manifest.json", "state.json"):
            (path / name).write_text("{}")
    else:
        moved = path.rename(tmp_path / "mine")
        path.symlink_to(moved) if kind == "a link" else path.write_text("mine")
    assert [other.name for other in stored(tmp_path)] == ["step-000200"]
    with pytest.raises(UserError, match=r"cannot write .*step-000100"):
        save(tmp_path, 100)
    save(tmp_path, 300, 400)
    remove_checkpoints(tmp_path)
    assert [other.name for other in (tmp_path / "checkpoints").iterdir()] == ["step-000100"]


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
@pytest.mark.parametrize("fault", ["gone", "empty", "cut", "one bit"])
def test_a_damaged_one_falls_back_to_the_last(name: str, fault: str, tmp_path: Path) -> None:
    save(tmp_path, 100, 200)
    path = stored(tmp_path)[-1] / name
    content = path.read_bytes()
    path.unlink()
    if fault != "gone":
        middle = len(content) // 2
        bit = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:middle], "one bit": bit}[fault])
    told: list[str] = []
    state = newest(tmp_path, told.append)
    assert state is not None
    assert state["steps"] == 100
    (line,) = told
    assert line.startswith(f"{path.parent} is damaged and not used: ")


def test_a_manifest_of_many_brackets_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 100)
    (stored(tmp_path)[0] / "manifest.json").write_text("[" * 10**5)
    told: list[str] = []
    assert newest(tmp_path, told.append) is None
    assert "it cannot be read (RecursionError" in told[0]


def test_manifest_damaged_in_any_byte_gives_no_mixture(tmp_path: Path) -> None:
    save(tmp_path, 100, 200)
    path = stored(tmp_path)[-1] / "manifest.json"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :])
        state = newest(tmp_path, lambda line: None)
        assert state is not None
        assert state["weights"]["a"].equal(torch.full((3,), float(state["steps"])))


@pytest.mark.parametrize("changed", ["recipe.train.steps", "versions.torch"])
def test_one_of_another_run_is_refused(changed: str, tmp_path: Path) -> None:
    save(tmp_path, 100)
    state = newest(tmp_path, pytest.fail)
    assert state is not None
    other = json.loads(json.dumps(IDENTITY))
    section, _, key = changed.rpartition(".")
    place = other
    for part in section.split("."):
        place = place[part]
    place[key] = "another"
    with pytest.raises(UserError, match=rf"differs in {changed}\).* --force to start again$"):
        Checkpoints(tmp_path, other, 1).refuse_another(state)
    Checkpoints(tmp_path, IDENTITY, 7).refuse_another(state)


def test_when_a_checkpoint_is_due(tmp_path: Path) -> None:
    every = Checkpoints(tmp_path, IDENTITY, 10)
    assert [step for step in range(1, 35) if every.due(step, 33)] == [10, 20, 30, 33]
    never = Checkpoints(tmp_path, IDENTITY, None)
    assert not any(never.due(step, 33) for step in range(1, 35))
    every._saved_at -= 601
    assert every.due(1, 33)
    never._saved_at -= 601
    assert not never.due(1, 33)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_full_disk_gives_one_line_and_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 100)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "rename", full)))
    with pytest.raises(UserError, match=r"step-000200: no space left on device; make room"):
        save(tmp_path, 200)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000100"]


def test_repeated_step_replaces_its_damaged_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 100, 200)
    (stored(tmp_path)[-1] / "state.json").write_text("")
    save(tmp_path, 200)
    state = newest(tmp_path, pytest.fail)
    assert state is not None
    assert state["steps"] == 200
    assert len(stored(tmp_path)) == checkpoint._KEPT
