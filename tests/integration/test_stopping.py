"""What becomes of a run that is stopped: by SIGTERM, by Ctrl-C, or because its parent is gone."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from commands import Command, complete, interrupt_at, is_free, lines, results, table, wait_for
from small_experiment import make_experiment, run

from commit_tuning.train.evaluate import Evaluation, evaluate
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord
from commit_tuning.train.runner import train

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


WORDS = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}


@pytest.mark.parametrize("number", WORDS)
def test_a_stopped_run_is_saved_and_goes_on(number: signal.Signals, recipe: Path, whole: Path, tmp_path: Path) -> None:
    folder, arguments = tmp_path / "run", ["train", recipe, "-o", tmp_path / "run", *SETTINGS]
    command = Command(arguments, tmp_path / "said")
    assert command.until(lambda: lines(folder) >= 2)
    command.send(number)
    assert command.end() == 128 + number
    done = lines(folder)
    kept = f"the same command goes on after step {done} of {STEPS}, which is saved"
    assert command.errors == [f"commit-tuning: {WORDS[number]}; {kept}"]
    assert RunRecord.read(folder).status == "running"
    complete(arguments, tmp_path / "again")
    assert f"training {done}/{STEPS}  goes on from the checkpoint" in (tmp_path / "again").read_text()
    assert results(folder) == results(whole)


@pytest.fixture(scope="module")
def stopped(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    command = Command(["train", recipe, "-o", folder / "run", *SETTINGS], folder / "said")
    assert command.until((folder / "run" / "checkpoints" / "step-000008").exists)
    assert command.kill() == -signal.SIGKILL
    return folder / "run"


def test_a_run_that_is_not_finished_is_evaluated(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", stopped]) == 0
    said = capsys.readouterr().out
    assert f"the run is not finished: step 8 of {STEPS}\niconqa, test: accuracy " in said


def test_a_run_without_a_checkpoint_is_not_evaluated(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    for path in folder.glob("checkpoints/*/state.json"):
        path.write_text("{")
    assert run(["evaluate", folder]) == 2
    said = capsys.readouterr()
    assert said.out.count("is damaged and not used: state.json") == 2
    assert f"the run in {folder} is not finished and has no whole checkpoint; let 'train' go on" in said.err


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("place", ["build_model", "answer_questions", "answer_loss"])
def test_a_signal_before_or_after_the_steps(
    place: str,
    number: signal.Signals,
    recipe: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train", recipe, "-o", tmp_path / "run", *SETTINGS]
    monkeypatch.setattr(f"commit_tuning.train.runner.{place}", lambda *_, **__: signal.raise_signal(number))
    assert run(arguments) == 128 + number
    again = "the same command starts again with what is missing"
    assert capsys.readouterr().err.splitlines()[-1] == f"commit-tuning: {WORDS[number]}; {again}"
    monkeypatch.undo()
    assert run(arguments) == 0
    assert results(tmp_path / "run") == results(whole)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_each_optimizer_goes_on_bit_for_bit(optimizer: str, recipe: Path, tmp_path: Path) -> None:
    """With dropout, a schedule and a damaged picture in training, so that nothing of the state is idle."""
    data = shutil.copytree(recipe.parent / "data", tmp_path / "data")
    next((data / "iconqa" / "train").rglob("image.png")).write_bytes(b"")
    settings = [f"train.optimizer={optimizer}", "train.steps=6", "train.checkpoint_interval=4", f"data.root={data}"]
    settings += ["model.lora.dropout=0.1", "train.scheduler=cosine", "train.warmup_steps=2", "commit.method=commit"]
    arguments = load_recipe(recipe, settings)
    train(arguments, tmp_path / "whole")
    with interrupt_at(5), pytest.raises(KeyboardInterrupt):
        train(arguments, tmp_path / "run")
    assert evaluated(tmp_path / "run").unfinished == "the run is not finished: step 4 of 6"
    train(arguments, tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert RunRecord.read(tmp_path / "run").skipped


def test_checkpoint_evaluates_as_a_run_of_its_length(recipe: Path, tmp_path: Path) -> None:
    settings = ["commit.method=commit", "train.checkpoint_interval=2"]
    train(load_recipe(recipe, [*settings, "train.steps=2", "commit.switch.latest=9"]), tmp_path / "short")
    with interrupt_at(3), pytest.raises(KeyboardInterrupt):
        train(load_recipe(recipe, [*settings, "train.steps=4", "commit.switch.latest=9"]), tmp_path / "run")
    assert evaluated(tmp_path / "run").answers == evaluated(tmp_path / "short").answers


LONG = 100  # steps, of which some are left when a signal comes
COMPARISON = ("--seeds", "1", "--jobs", "2", f"train.steps={LONG}", "train.checkpoint_interval=4")
RUNS = ("constant_lr-0.001", "commit-clr_lr-0.001")


@pytest.fixture(scope="module")
def compared(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison as it is when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("compared")
    complete(["compare", recipe, "-o", folder / "table", *COMPARISON], folder / "said")
    return folder / "table"


def test_stopped_comparison_ends_its_workers_and_resumes(recipe: Path, compared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    runs = [folder / "runs" / name / "seed-0" for name in RUNS]
    arguments = ["compare", recipe, "-o", folder, *COMPARISON]

    command = Command(arguments, tmp_path / "terminated")
    assert command.until(lambda: all(lines(run) >= 2 for run in runs))
    command.send(signal.SIGTERM)
    assert command.end() == 143
    assert command.errors == ["commit-tuning: stopped by SIGTERM; the same command starts again with what is missing"]
    assert all(map(is_free, runs))
    for folder_of_run in runs:
        kept = f"goes on after step {lines(folder_of_run)} of {LONG}, which is saved"
        assert (folder_of_run / "log.txt").read_text().splitlines()[-1].endswith(kept)

    before = [lines(run) for run in runs]
    command = Command(arguments, tmp_path / "killed")
    assert command.until(lambda: any(lines(run) > done for run, done in zip(runs, before, strict=True)))
    assert command.kill() == -signal.SIGKILL
    assert wait_for(lambda: all(map(is_free, runs)))
    assert not all(RunRecord.read(run).complete for run in runs)

    complete(arguments, tmp_path / "again")
    assert table(folder) == table(compared)
    for name in RUNS:
        assert results(folder / "runs" / name / "seed-0") == results(compared / "runs" / name / "seed-0")


def test_second_command_on_a_running_folder_is_refused(recipe: Path, compared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    first = folder / "runs" / RUNS[0] / "seed-0"
    arguments = ["compare", recipe, "-o", folder, *COMPARISON]
    command = Command(arguments, tmp_path / "first")
    assert command.until(lambda: lines(first) >= 2)
    for others in (arguments, ["train", recipe, "-o", first, *SETTINGS], ["train", recipe, "-o", first, "--force"]):
        second = Command(others, tmp_path / "second")
        assert second.end() == 2
        assert "another process is at work" in second.errors[-1]
    assert command.end() == 0
    assert table(folder) == table(compared)
    assert results(first) == results(compared / "runs" / RUNS[0] / "seed-0")


def evaluated(folder: Path) -> Evaluation:
    return evaluate(str(folder))
