"""A run that ended between two checkpoints, and the same run undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import interrupt_at, results

from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord
from commit_tuning.train.runner import train

STEPS = ("train.steps=7", "train.checkpoint_interval=4", "commit.probe.interval=2", "commit.lr_update_interval=2")
MOVING = ("model.lora.dropout=0.1", "train.scheduler=cosine", "train.warmup_steps=2")  # so that no state is idle


def check_goes_on(recipe: Path, settings: tuple[str, ...], folder: Path) -> RunRecord:
    """Let a run of a recipe end at its sixth step and go on: it ends as the undisturbed one, to the last bit."""
    loaded = load_recipe(recipe, [*STEPS, *MOVING, *settings])
    train(loaded, folder / "whole")
    with interrupt_at(6), pytest.raises(KeyboardInterrupt):
        train(loaded, folder / "run")
    said: list[str] = []
    record = train(loaded, folder / "run", progress=lambda task, done, total, note="": said.append(note))
    assert "goes on from the checkpoint" in said
    assert results(folder / "run") == results(folder / "whole")
    return record
