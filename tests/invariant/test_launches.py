"""However a step is made, measuring leaves it as it is, and what is measured stays the same."""

from __future__ import annotations

import pytest
import torch
from tiny import build, make_batch
from torch import nn

from commit_tuning import BalanceMonitor, CoMMITConfig, Coordinator
from commit_tuning.config import Probe

CONFIG = CoMMITConfig(probe=Probe(interval=1), lr_update_interval=2)
STEPS = 6


def train(wrap, *, prepare=lambda model: model, autocast=False, steps=STEPS):
    """Some steps of a tiny LLaVA; its values, and the last measurement."""
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-3))
    coordinator = wrap(model, optimizer, CONFIG, partition) if wrap else None
    run = prepare(model)
    for step in range(steps):
        batch = make_batch("llava", 4, torch.float32, seed=step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            run(**batch).loss.backward()
            if coordinator:
                coordinator.step(batch)
            else:
                optimizer.step()
        optimizer.zero_grad()
    values = [p.detach().clone() for p in model.parameters()]
    return values, coordinator.summary() if coordinator else {}


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_measuring_under_bfloat16_autocast_changes_not_one_bit():
    assert equal(train(None, autocast=True)[0], train(BalanceMonitor, autocast=True)[0])


def test_kappa_under_autocast_is_near_that_without():
    _, half = train(BalanceMonitor, autocast=True, steps=1)
    _, full = train(BalanceMonitor, steps=1)
    assert half["kappa"] == pytest.approx(full["kappa"], rel=0.15)


def checkpointed(model: nn.Module) -> nn.Module:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")  # transformers 5.23
def test_gradient_checkpointing_gives_the_same_trajectory_and_kappa():
    values, measured = train(Coordinator)
    found_values, found = train(Coordinator, prepare=checkpointed)
    assert equal(values, found_values)
    assert found == measured


@pytest.mark.wide
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_compiled_model_gives_the_same_kappa():
    _, measured = train(Coordinator)
    _, found = train(Coordinator, prepare=lambda model: torch.compile(model, backend="aot_eager"))
    assert found == pytest.approx(measured, rel=1e-3)


def test_step_skipped_by_loss_scaling_changes_nothing():
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-3))
    coordinator = Coordinator(model, optimizer, CONFIG, partition)
    coordinator.step(_with_gradients(model, 0))
    seen, rates = coordinator.state_dict(), [group["lr"] for group in optimizer.param_groups]
    before = [p.detach().clone() for p in model.parameters()]
    coordinator.before_step(_with_gradients(model, 1))
    coordinator.after_step(skipped=True)
    assert str(coordinator.state_dict()) == str(seen)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert equal(before, model.parameters())
    coordinator.step(_with_gradients(model, 2))
    assert coordinator.state_dict()["steps"] == 2


def test_overflow_is_seen_through_accelerates_optimizer():
    class Skipping(torch.optim.AdamW):
        step_was_skipped = False

    model, partition = build("llava")
    optimizer = Skipping(partition.param_groups(lr=3e-3))
    coordinator = Coordinator(model, optimizer, CONFIG, partition)
    optimizer.step_was_skipped = True
    coordinator.step(_with_gradients(model, 0))
    assert coordinator.drift == {}
    assert coordinator.state_dict()["steps"] == 0


def _with_gradients(model, seed):
    batch = make_batch("llava", 4, torch.float32, seed=seed)
    model.zero_grad()
    model(**batch).loss.backward()
    return batch


@pytest.mark.parametrize("name", ["SGD", "Adafactor", "RMSprop", "Adagrad", "NAdam"])
def test_any_optimizer_can_be_coordinated(name):
    model, partition = build("llava")
    optimizer = getattr(torch.optim, name)(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CONFIG, partition)
    for step in range(3):
        coordinator.step(_with_gradients(model, step))
    assert set(coordinator.drift) == {"language_model", "vision"}
    assert coordinator.kappa > 0


def test_parameter_changed_before_the_step_is_named():
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-3))
    coordinator = Coordinator(model, optimizer, CONFIG, partition)
    coordinator.before_step(_with_gradients(model, 0))
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    with pytest.raises(RuntimeError, match=r"'lm_head.weight' changed between before_step\(\) and optimizer.step\(\)"):
        optimizer.step()


def test_deepspeed_sharding_is_refused():
    from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-3))
    wrapped = DeepSpeedOptimizerWrapper.__new__(DeepSpeedOptimizerWrapper)  # what Trainer has under ZeRO-1 and 2
    wrapped.optimizer = optimizer
    with pytest.raises(RuntimeError, match="the model is trained with DeepSpeed"):
        Coordinator(model, wrapped, None, partition)
    model.lm_head.weight.ds_id = 0
    with pytest.raises(RuntimeError, match="the model is trained with DeepSpeed"):
        BalanceMonitor(model, optimizer)


def test_two_optimizers_are_refused():
    model, partition = build("llava")
    with pytest.raises(ValueError, match="no parameter of module 'vision' is in the optimizer"):
        Coordinator(model, torch.optim.AdamW(partition["language_model"]))
