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

from commit_tuning import CoMMITConfig, UserError
from commit_tuning.config import PreviousStep
from commit_tuning.errors import ConfigError, PartitionError
from commit_tuning.health.alarms import SKIPPED
from commit_tuning.integrations.steps import StepHooks
from commit_tuning.integrations.transformers import CoMMITTrainerMixin, _load_state, _save_state

BEFORE_TRIAL = -20  # control tries an optimizer out on a copy, which is to raise no error
CONTROLLED = replace(CONFIG, method="language-lr-up")
REGULARIZED = replace(
    CONFIG,
    method="constant",
    regularizer=PreviousStep(weight=10.0, step="optimizer"),
)
WATCHED = replace(CONFIG, method="constant", probe=replace(CONFIG.probe, samples=None))


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
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
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


def groups_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("ended_first", [False, True])
def test_training_after_a_broken_one_begins_anew(ended_first: bool) -> None:
    """The optimizer's step runs out of memory; nobody takes another step."""
    model, _ = build("plain")
    optimizer = Faulty(model.parameters(), lr=1e-2)
    optimizer.steps = BEFORE_TRIAL
    hooks = StepHooks(CONTROLLED, plain_partition)
    hooks.begin(model, optimizer, contextlib.nullcontext)
    optimizer.steps = 0
    for step in range(2):
        hooks.add(batch := make_batch("plain", 4, torch.float32, seed=step))
        model(**batch).loss.backward()
        with contextlib.suppress(torch.OutOfMemoryError):
            optimizer.step()
    assert len(groups_of(optimizer)) == 2
    if ended_first:
        hooks.end()
        assert groups_of(optimizer) == [1e-2]
    hooks.begin(model, optimizer, contextlib.nullcontext)
    assert groups_of(optimizer) == [1e-2]
    assert hooks.coordinator is not None
    assert hooks.coordinator._groups.full_rates == [1e-2]


@pytest.mark.parametrize("retried", [False, True])
def test_error_in_trainers_step_leaves_its_optimizer(retried: bool, tmp_path: Path) -> None:
    """Also where Trainer takes a smaller batch and begins anew, with another scheduler of the same groups."""
    trainer = with_trainer(Task(tmp_path, CONTROLLED), auto_find_batch_size=retried)
    optimizer = trainer.optimizer = Faulty(trainer.model.parameters(), lr=1e-2)
    optimizer.steps = BEFORE_TRIAL

    class Begin(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            optimizer.steps = max(optimizer.steps, 0)

    trainer.add_callback(Begin())
    with contextlib.nullcontext() if retried else pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert len(groups_of(optimizer)) == 1
    assert optimizer.param_groups[0]["initial_lr"] == 1e-2
    assert trainer.coordinator.state_dict()["steps"] == (trainer.state.global_step if retried else 1)
    assert trainer._step_hooks._handles == []


def test_resume_that_failed_is_not_the_next_trainings(tmp_path: Path) -> None:
    trained = with_trainer(Task(tmp_path, saves=True))
    trained.train()
    trainer = with_trainer(Task(tmp_path))
    trainer.create_optimizer()
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    checkpoint = next(tmp_path.glob("checkpoint-*"))
    with pytest.raises(UserError, match="other parameter groups"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not trainer._step_hooks.resumes


@pytest.mark.parametrize("config", [REGULARIZED, replace(CONFIG, method="feature-cd")])
def test_later_closure_calls_are_prepared_too(config: CoMMITConfig) -> None:
    """As many calls as one prepared gradient, which is the same each time."""

    class Repeating(torch.optim.AdamW):
        calls = 1

        def step(self, closure: Any = None) -> Any:
            for _ in range(self.calls if closure else 0):
                torch.enable_grad()(closure)()
            return super().step()

    def closure_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
        def closure() -> torch.Tensor:
            model.zero_grad()
            loss: torch.Tensor = model(**batch).loss
            loss.backward()
            return loss

        return closure

    results, states = [], []
    for calls in (1, 3):
        model, _ = build("plain")
        model.eval()
        optimizer = Repeating(model.parameters(), lr=1e-2)
        hooks = StepHooks(config, plain_partition)
        hooks.begin(model, optimizer, contextlib.nullcontext)
        optimizer.calls = calls
        for step in range(3):
            hooks.add(batch := make_batch("plain", 4, torch.float32, seed=step))
            optimizer.step(closure_of(model, batch))
        results.append([p.detach().clone() for p in model.parameters()])
        states.append({index: float(kept["step"]) for index, kept in optimizer.state_dict()["state"].items()})
    assert states[0] == states[1]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_steps_that_never_reach_the_optimizer_are_told() -> None:
    """Loss scaling that finds an overflow does not call it."""
    _, _, hooks = hooked(torch.optim.SGD)
    hooks.clear()
    for step in range(SKIPPED - 1):
        hooks.add(make_batch("plain", 4, torch.float32, seed=step))
        hooks.clear()
    hooks.add(make_batch("plain", 4, torch.float32))
    with pytest.warns(UserWarning, match=f"skipped {SKIPPED} steps in a row"):
        hooks.clear()


def test_optimizer_without_hooks_is_refused() -> None:
    model, _ = build("plain")

    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

        def step(self) -> None:
            self.optimizer.step()

    hooks = StepHooks(WATCHED, plain_partition)
    with pytest.raises(ConfigError, match=r"Wrapper calls no hooks of torch\.optim\.Optimizer"):
        hooks.begin(model, Wrapper(torch.optim.SGD(model.parameters())), contextlib.nullcontext)


@pytest.mark.parametrize("interval", [1, 3])
def test_unfreezing_in_a_callback_stops_the_training(interval: int, tmp_path: Path) -> None:
    class Unfreeze(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["model"].lm_head.weight.requires_grad_(True)

    task = Task(tmp_path, replace(CONFIG, probe=replace(CONFIG.probe, interval=interval)))
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
