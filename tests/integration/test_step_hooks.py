"""Steps of a trainer that do not go as planned: closures called twice, errors caught, parameters unfrozen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import CONFIG, Task, with_trainer
from tiny import build, make_batch, plain_partition
from torch import nn
from transformers import TrainerCallback

from commit_tuning import UserError
from commit_tuning.errors import PartitionError
from commit_tuning.integrations.steps import StepHooks
from commit_tuning.integrations.transformers import CoMMITTrainerMixin, _load_state, _save_state

WATCHED = replace(CONFIG, method="constant", probe_samples=None)


class SharpnessAware(torch.optim.SGD):
    """SAM (Foret et al. 2021, arXiv 2010.01412), Algorithm 1: the gradient is that of a point uphill."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:
        closure = torch.enable_grad()(closure)
        closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        uphill = [0.05 * p.grad / p.grad.norm() for p in parameters if p.grad is not None]
        torch._foreach_add_(parameters, uphill)
        loss = closure()
        torch._foreach_sub_(parameters, uphill)
        super().step()
        return loss


class Faulty(torch.optim.SGD):
    """Raises an error in the middle of its second step."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if self.steps == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().step(closure)


def hooked(make: Callable[..., torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer, StepHooks]:
    model, _ = build("plain")
    optimizer = make(model.parameters(), lr=1e-2)
    hooks = StepHooks(WATCHED, plain_partition)
    hooks.begin(model, optimizer, contextlib.nullcontext)
    return model, optimizer, hooks


@pytest.mark.parametrize("make", [SharpnessAware, torch.optim.LBFGS])
def test_closure_called_twice_is_one_measured_step(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, optimizer, hooks = hooked(make)
    assert hooks.coordinator is not None
    for step in range(2):
        batch = make_batch("plain", 4, torch.float32, seed=step)
        hooks.clear()
        hooks.add(batch)

        def closure(batch: dict[str, torch.Tensor] = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(**batch).loss
            loss.backward()
            return loss

        optimizer.step(closure)
        assert hooks.coordinator.state_dict()["steps"] == step + 1
        assert hooks.coordinator.kappa > 0


def test_steps_after_a_caught_error_are_measured() -> None:
    model, optimizer, hooks = hooked(Faulty)
    assert hooks.coordinator is not None
    seen = []
    for step in range(4):
        batch = make_batch("plain", 4, torch.float32, seed=step)
        hooks.clear()
        hooks.add(batch)
        model(**batch).loss.backward()
        with contextlib.suppress(torch.OutOfMemoryError):
            optimizer.step()
            seen.append(hooks.coordinator.kappa)
        optimizer.zero_grad()
    assert len(set(seen)) == 3
    assert hooks.coordinator.state_dict()["steps"] == 3


@pytest.mark.parametrize("interval", [1, 3])
def test_unfreezing_in_a_callback_stops_the_training(interval: int, tmp_path: Path) -> None:
    class Unfreeze(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["model"].lm_head.weight.requires_grad_(True)

    task = Task(tmp_path, replace(CONFIG, probe_interval=interval))
    trainer = with_trainer(task)
    trainer.model.lm_head.weight.requires_grad_(False)
    trainer.add_callback(Unfreeze())
    with pytest.raises(PartitionError, match=r"parameter 'lm_head\.weight' was unfrozen after the start"):
        trainer.train()
    assert trainer.state.global_step in (2, 3)


@pytest.mark.parametrize("name", ["DPOTrainer", "GRPOTrainer", "KTOTrainer", "RewardTrainer", "RLOOTrainer"])
def test_trainers_without_labels_are_refused_when_made(name: str) -> None:
    trl = pytest.importorskip("trl")
    mixed = type("Mine", (CoMMITTrainerMixin, getattr(trl, name)), {})
    with pytest.raises(UserError, match=f"{name} trains on preferences .*; use CoMMIT with SFTTrainer"):
        mixed(model=None, args=None)


def test_damaged_state_in_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "commit.pt"
    _save_state({"steps": 3}, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"commit\.pt is damaged \(\w+\): resume from an earlier checkpoint"
        ) as told:
            _load_state(path)
        assert "\n" not in str(told.value)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no state of CoMMIT"):
        _load_state(path)


def test_state_that_cannot_be_written_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "commit.pt"
    _save_state({"steps": 3}, path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"commit\.pt: no space left on device; make room"):
        _save_state({"steps": 4}, path)
    assert _load_state(path) == {"steps": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["commit.pt"]
