"""Stopped after any step and resumed, a run goes on bit for bit as if it had not been stopped, whoever trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import LOOPS, METHODS, Task, plain_loop
from modalities import start, train

from commit_tuning import CoMMITConfig, Coordinator

INTERVALS = {"probe": {"interval": 3}, "lr_update_interval": 3}
STOPS = (3, 7)  # on the edge of both intervals; inside them, with no measurement to come


def differences(loop: Any, task: Task) -> list[str]:
    """What resumed runs have that the uninterrupted one has not."""
    whole = loop(replace(task, saves=True)).exact()
    resumed = {stop: loop(replace(task, start=stop)).exact() for stop in STOPS}
    return [f"{part} after {stop}" for stop, run in resumed.items() for part in whole if run[part] != whole[part]]


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")  # Lightning 2.6
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL 1.16
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("loop", list(LOOPS))
def test_a_resumed_run_is_the_uninterrupted_one(loop: str, tmp_path: Path) -> None:
    task = Task(tmp_path, CoMMITConfig(**INTERVALS), dropout=0.2, accumulation=2, shuffled=True)
    assert differences(LOOPS[loop], task) == []


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_method_resumes(settings: dict[str, Any], tmp_path: Path) -> None:
    config = CoMMITConfig(kappa_window=9, **INTERVALS, **settings)
    assert differences(plain_loop, Task(tmp_path, config, kind="plain")) == []


def test_manual_schedule_resumes_from_its_first_rates(tmp_path: Path) -> None:
    """No scheduler keeps them in the groups, and a trainer may load the optimizer before the coordinator is made."""
    model, partition = Task(tmp_path, kind="plain").build()
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2))
    saved = Coordinator(model, optimizer, None, partition).state_dict()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    resumed = Coordinator(model, optimizer, None, partition)
    resumed.load_state_dict(saved)
    assert set(resumed.state_dict()["full_rates"]) == {1e-2}


ONE_MODALITY = "TIITTAIATTIIA"


@pytest.mark.parametrize("stop", range(1, len(ONE_MODALITY)))
def test_a_resume_knows_which_encoders_are_still_owed(stop: int, tmp_path: Path) -> None:
    settings = {"probe": {"interval": 4}, "lr_update_interval": 2, "starvation_patience": 4}
    whole = train(start(**settings), ONE_MODALITY)
    first = start(**settings)
    seen = train(first, ONE_MODALITY[:stop])
    torch.save(
        [part.state_dict() for part in (first._meter.forward.model, first._optimizer, first)], tmp_path / "state.pt"
    )
    second = start(**settings)
    for part, state in zip(
        (second._meter.forward.model, second._optimizer, second),
        torch.load(tmp_path / "state.pt", weights_only=True),
        strict=True,
    ):
        part.load_state_dict(state)
    assert repr(seen + train(second, ONE_MODALITY[stop:], first=stop)) == repr(whole)
