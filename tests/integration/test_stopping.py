"""What becomes of a run that is stopped: by SIGTERM, by Ctrl-C, or because its parent is gone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from commands import Command, complete
from small_experiment import make_experiment

from commit_tuning.experiments.record import RunRecord

STEPS = 12
SETTINGS = (f"train.steps={STEPS}", "train.checkpoint_interval=4")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it is when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    complete(["train", recipe, "-o", folder / "run", *SETTINGS], folder / "said")
    return folder / "run"


def lines(folder: Path) -> int:
    path = folder / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def results(folder: Path) -> dict[str, object]:
    """Everything that a run leaves but wall time."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "log.txt", ".lock")
    }
    metrics = RunRecord.read(folder).metrics | {"overhead": None}
    return {**files, "metrics": metrics}


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_run_is_saved_and_goes_on(
    number: int, code: int, word: str, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    folder, arguments = tmp_path / "run", ["train", recipe, "-o", tmp_path / "run", *SETTINGS]
    command = Command(arguments, tmp_path / "said")
    assert command.until(lambda: lines(folder) >= 2)
    command.send(number)
    assert command.end() == 128 + number
    done = lines(folder)
    assert command.errors == [
        f"commit-tuning: {word}; the same command goes on after step {done} of {STEPS}, which is saved"
    ]
    assert RunRecord.read(folder).status == "running"
    complete(arguments, tmp_path / "again")
    assert f"training {done}/{STEPS}  goes on from the checkpoint" in (tmp_path / "again").read_text()
    assert results(folder) == results(whole)
