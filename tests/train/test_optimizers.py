"""The optimizers of a recipe, in a coordinated loop under a schedule."""

from __future__ import annotations

import pytest
import torch
from small_experiment import EXAMPLE
from tiny import build, make_batch

from commit_tuning import CoMMITConfig, Coordinator
from commit_tuning.errors import UserError
from commit_tuning.train.optimizers import build_optimizer, found_rates
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Train
from commit_tuning.train.training import build_scheduler

RATES = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.1}


@pytest.mark.parametrize("method", ["commit-clr", "feature-cd"])
@pytest.mark.parametrize("name", RATES)
def test_every_optimizer_runs_under_control_and_a_schedule(name: str, method: str) -> None:
    model, partition = build("plain")
    before = {module: [p.detach().clone() for p in partition[module]] for module in partition}
    train = Train(optimizer=name, learning_rate=RATES[name], steps=20, scheduler="linear", warmup_steps=2)
    optimizer = build_optimizer(partition, train)
    settled = {"probe": {"interval": 1}, "switch": {"latest": 3}, "lr_update_interval": 1}
    config = CoMMITConfig(method=method, controller="compensated", **settled)  # type: ignore[arg-type]
    coordinator = Coordinator(model, optimizer, config, partition)
    scheduler = build_scheduler(optimizer, train)
    for step in range(6):
        model(**(batch := make_batch("plain", 4, torch.float32, seed=step))).loss.backward()
        coordinator.before_step(batch)
        optimizer.step()
        coordinator.after_step()
        scheduler.step()
        optimizer.zero_grad()
    for module in partition:
        assert any(not torch.equal(old, new) for old, new in zip(before[module], partition[module], strict=True))
    assert found_rates(optimizer, coordinator.learning_rates) == {}


def test_an_unknown_optimizer_is_refused() -> None:
    _, partition = build("plain")
    settings = load_recipe(EXAMPLE, ["train.optimizer=lion"]).train
    with pytest.raises(UserError, match=r"train\.optimizer: 'lion' is not one of adamw, "):
        build_optimizer(partition, settings)
