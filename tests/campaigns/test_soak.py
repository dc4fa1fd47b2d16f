"""Many steps of a run: memory and file handles stay where they are."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from statistics import median

import pytest
from campaign import say, sized
from small_experiment import make_experiment

from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord
from commit_tuning.train.runner import train

STEPS = sized(300, 20_000)
WARM_UP = 100  # steps until allocator and caches have taken what they keep
SLACK = 16 << 20  # bytes: the history's page cache is not counted, the allocator's pools wander by a few MiB
PROC = Path("/proc/self")


class Looks:
    """A progress that looks at the process after each step."""

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.memory: list[int] = []

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        if task == "training" and done > WARM_UP and done % (STEPS // 100) == 0:
            gc.collect()
            self.handles.append(len(list((PROC / "fd").iterdir())))
            self.memory.append(int((PROC / "statm").read_text().split()[1]) * resource.getpagesize())


@pytest.mark.filterwarnings("ignore:module .* starves", "ignore:the drift of module")  # 24 questions learnt by heart
@pytest.mark.skipif(not PROC.exists(), reason="no /proc here")
def test_memory_and_handles_are_flat(tmp_path: Path) -> None:
    settings = [f"train.steps={STEPS}", f"train.checkpoint_interval={STEPS // 20}", "train.batch_size=2"]
    settings += ["train.learning_rate=1e-4", "commit.probe.interval=5"]
    recipe = load_recipe(make_experiment(tmp_path), settings)
    looks = Looks()
    assert train(recipe, tmp_path / "run", progress=looks).complete
    assert len(RunRecord.read(tmp_path / "run").history()) == STEPS
    quarter = len(looks.memory) // 4
    first, last = (round(median(part) / 2**20) for part in (looks.memory[:quarter], looks.memory[-quarter:]))
    say(f"{STEPS} steps: {first} MiB in the first quarter, {last} MiB in the last; {max(looks.handles)} handles")
    assert set(looks.handles[:quarter]) == set(looks.handles[-quarter:])
    assert median(looks.memory[-quarter:]) - median(looks.memory[:quarter]) < SLACK
