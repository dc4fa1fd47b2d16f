"""kill -9 at moments that are chosen and at random ones; the same command then ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from campaign import say, sized
from commands import Command, Moment, complete, is_free, lines, results, table, wait_for
from small_experiment import make_experiment

from commit_tuning.storage import is_temporary
from commit_tuning.train.record import RECORD, RunRecord

STEPS = 20
SETTINGS = (f"train.steps={STEPS}", "train.checkpoint_interval=2", "train.save_weights=true", "model.lora.dropout=0.1")
COMPARISON = ("--seeds", "1", "--jobs", "2", *SETTINGS)
RUNS = ("constant_lr-0.001/seed-0", "commit-clr_lr-0.001/seed-0")
KILLS: Counter[str] = Counter()  # by what was under way


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """Print how many kills there were, and of what (`pytest -s`)."""
    KILLS.clear()
    yield
    say(f"{KILLS.total()} kills: {', '.join(f'{count} at {what}' for what, count in KILLS.most_common())}")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


def halves(folder: Path) -> bool:
    """Whether something half-written lies there."""
    return folder.is_dir() and any(map(is_temporary, folder.iterdir()))


def under_way(run: Path) -> str:
    """What a run was at, by what it has left."""
    for folder, what in ((run / "checkpoints", "a save"), (run, "a write"), (run / "images", "a write")):
        if halves(folder):
            return what
    if not (run / RECORD).exists():
        return "the start"
    if RunRecord.read(run).complete:
        return "the end"
    return "a step" if lines(run) < STEPS else "the evaluation"


def has_more_lines(run: Path, more: int) -> Moment:
    begun: list[int] = []

    def moment() -> bool:
        begun[:] = begun or [lines(run)]
        return lines(run) > begun[0] + more

    return moment


def after(seconds: float) -> Moment:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


MOMENTS: dict[str, Callable[[Path], Moment]] = {
    "the record is written": lambda run: lambda: halves(run),
    "some steps": lambda run: has_more_lines(run, 2),
    "a save": lambda run: lambda: halves(run / "checkpoints"),
    "a new checkpoint": lambda run: (run / "checkpoints" / f"step-{STEPS - 2:06d}").exists,
    "the evaluation": lambda run: lambda: lines(run) == STEPS and (run / "tuned.safetensors").exists(),
    "the weights": lambda run: (run / "adapter").exists,
    "the pictures": lambda run: (run / "images").exists,
    "the answers": lambda run: (run / "predictions.jsonl").exists,
}


def killed(arguments: list[str | Path], moment: Moment, said: Path, run: Path) -> bool:
    """Kill a command at a moment of a run of it; returns whether it was still at work."""
    command = Command(arguments, said)
    if not command.until(moment):
        assert command.end() == 0, said.read_text()
        return False
    command.kill()
    KILLS[under_way(run)] += 1
    return True


def check_not_taken_for_whole(run: Path, whole: Path) -> None:
    if (run / RECORD).exists() and RunRecord.read(run).complete:
        assert results(run) | {"left": 0} == results(whole) | {"left": 0}


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run that nothing disturbs, and how many seconds it takes."""
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    complete(["train", recipe, "-o", folder / "warm", *SETTINGS], folder / "said")
    began = time.monotonic()
    complete(["train", recipe, "-o", folder / "run", *SETTINGS], folder / "said")
    return folder / "run", time.monotonic() - began


def test_run_survives_kills_at_every_moment(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", recipe, "-o", run, *SETTINGS]
    kinds = list(MOMENTS)[:: sized(2, 1)]
    for kind in kinds * sized(1, 2):
        if killed(arguments, MOMENTS[kind](run), tmp_path / "said", run):
            check_not_taken_for_whole(run, whole[0])
    complete(arguments, tmp_path / "said")
    assert results(run) == results(whole[0])


@pytest.mark.parametrize("seed", range(sized(1, 8)))
def test_a_run_survives_kills_at_random(seed: int, recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    run, chance = tmp_path / "run", random.Random(seed)
    arguments = ["train", recipe, "-o", run, *SETTINGS]
    for _ in range(sized(2, 5)):
        killed(arguments, after(chance.uniform(0, whole[1])), tmp_path / "said", run)
        check_not_taken_for_whole(run, whole[0])
    complete(arguments, tmp_path / "said")
    assert results(run) == results(whole[0])


@pytest.fixture(scope="module")
def compared(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder, began = tmp_path_factory.mktemp("compared"), time.monotonic()
    complete(["compare", recipe, "-o", folder / "table", *COMPARISON], folder / "said")
    return folder / "table", time.monotonic() - began


@pytest.mark.parametrize("seed", range(sized(1, 5)))
def test_a_comparison_survives_kills(seed: int, recipe: Path, compared: tuple[Path, float], tmp_path: Path) -> None:
    """The command starts again at once, while workers of the killed one may still be ending."""
    folder, chance = tmp_path / "table", random.Random(seed)
    runs = [folder / "runs" / name for name in RUNS]
    arguments = ["compare", recipe, "-o", folder, *COMPARISON]
    for number in range(sized(2, 5)):
        moment = after(chance.uniform(0, compared[1])) if number % 2 else MOMENTS[chance.choice(list(MOMENTS))](runs[0])
        killed(arguments, moment, tmp_path / "said", runs[0])
        for name, run in zip(RUNS, runs, strict=True):
            check_not_taken_for_whole(run, compared[0] / "runs" / name)
    complete(arguments, tmp_path / "said")
    assert table(folder) == table(compared[0])
    for name, run in zip(RUNS, runs, strict=True):
        assert is_free(run)
        assert results(run) == results(compared[0] / "runs" / name)


def tree(process: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(below for child in children for below in tree(int(child)))]


@pytest.mark.parametrize("steps", [1, 5, 9][: sized(1, 3)])
def test_a_cluster_survives_kills(steps: int, recipe: Path, compared: tuple[Path, float], tmp_path: Path) -> None:
    """First the command is killed, whose job trains on; then the job."""
    pytest.importorskip("submitit")
    folder = tmp_path / "table"
    run, methods = folder / "runs" / RUNS[0], ("--methods", "constant", "--cluster", "local")
    arguments = ["compare", recipe, "-o", folder, *COMPARISON, *methods]
    assert killed(arguments, (run / "cluster.json").exists, tmp_path / "said", run)
    job = json.loads((run / "cluster.json").read_text())["job"]
    assert wait_for(lambda: lines(run) >= steps)
    for process in tree(int(job)):
        os.kill(process, signal.SIGKILL)
    KILLS[under_way(run)] += 1
    check_not_taken_for_whole(run, compared[0] / "runs" / RUNS[0])
    complete(arguments, tmp_path / "said")
    assert results(run) == results(compared[0] / "runs" / RUNS[0])


def test_a_complete_run_keeps_no_checkpoint(recipe: Path, compared: tuple[Path, float], tmp_path: Path) -> None:
    """Where the process was killed between the record and their removal."""
    folder = shutil.copytree(compared[0], tmp_path / "table")
    for name in RUNS:
        (folder / "runs" / name / "checkpoints" / f"step-{STEPS:06d}").mkdir(parents=True)
    complete(["compare", recipe, "-o", folder, *COMPARISON], tmp_path / "said")
    assert not list(folder.rglob("checkpoints"))


def test_a_cut_history_is_never_gone_on_from(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """Checkpoints and history go together: where they do not, the run says so and begins anew."""
    run = tmp_path / "run"
    arguments = ["train", recipe, "-o", run, *SETTINGS]
    assert killed(arguments, MOMENTS["a new checkpoint"](run), tmp_path / "said", run)
    history = run / "history.jsonl"
    history.write_bytes(b"".join(history.read_bytes().splitlines(keepends=True)[:3]))
    complete(arguments, tmp_path / "again")
    assert f"history.jsonl does not begin with its {STEPS - 2} steps" in (tmp_path / "again").read_text()
    assert results(run) == results(whole[0])
    shutil.rmtree(run)
