"""Optimizers that find their own rate: one for each module, coordinated, over a resume, at evaluation."""

from __future__ import annotations

import copy
import sys

import prodigyopt
import pytest
import torch
from tiny import build, make_batch
from torch import Tensor, nn
from torch.optim import Optimizer

from commit_tuning import CoMMITConfig, Coordinator, ModulePartition
from commit_tuning.config import Probe
from commit_tuning.errors import ConfigError, UserError
from commit_tuning.train.optimizers import build_optimizer, found_rates, show_evaluated
from commit_tuning.train.recipe.schema import Train
from commit_tuning.train.training import build_scheduler

FINDING = ("prodigy", "dog", "schedule-free")
RATES = {"prodigy": 1.0, "dog": 1.0, "schedule-free": 1e-3}


def settings(name: str, **changes: object) -> Train:
    return Train(optimizer=name, learning_rate=RATES[name], steps=20, **changes)  # type: ignore[arg-type]


def vectors() -> ModulePartition:
    """Two modules; each has a matrix and a vector, so two parameter groups in most optimizers."""

    def module(start: float) -> list[nn.Parameter]:
        return [nn.Parameter(torch.full((2, 2), start)), nn.Parameter(torch.full((2,), start))]

    return ModulePartition({"language_model": module(1.0), "vision": module(2.0)})


def follow(partition: ModulePartition, optimizer: Optimizer, steps: int, scale: float = 1.0) -> list[Tensor]:
    """Descend a quadratic with its minimum at 3; the language model's gradient times `scale`."""
    for _ in range(steps):
        for name in partition:
            for parameter in partition[name]:
                gradient = parameter.detach() - 3.0
                parameter.grad = gradient * scale if name == "language_model" else gradient
        optimizer.step()
    return [p.detach().clone() for p in partition["vision"]]


@pytest.mark.parametrize("name", FINDING)
def test_optimizers_that_find_their_rate_are_not_controlled(name: str) -> None:
    model, partition = build("plain")
    with pytest.raises(
        ConfigError, match=r"learning rates of \w+ cannot be controlled: .* method='constant'"
    ) as refused:
        Coordinator(model, build_optimizer(partition, settings(name)), CoMMITConfig(), partition)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FINDING)
def test_every_optimizer_takes_turns_under_a_schedule(name: str) -> None:
    model, partition = build("plain")
    before = {module: [p.detach().clone() for p in partition[module]] for module in partition}
    train = settings(name, scheduler="linear", warmup_steps=2)
    optimizer = build_optimizer(partition, train)
    settled = {"probe": {"interval": 1}, "switch": {"latest": 3}, "lr_update_interval": 1}
    config = CoMMITConfig(method="feature-cd", controller="compensated", **settled)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("name", FINDING)
def test_a_run_without_control_is_the_plain_loop(name: str) -> None:
    found = []
    for controlled in (False, True):
        model, partition = build("plain")
        optimizer = build_optimizer(partition, settings(name))
        coordinator = Coordinator(model, optimizer, CoMMITConfig(method="constant", probe=Probe(interval=2)), partition)
        torch.manual_seed(1)
        for step in range(5):
            model(**(batch := make_batch("plain", 4, torch.float32, seed=step))).loss.backward()
            coordinator.step(batch) if controlled else optimizer.step()
            optimizer.zero_grad()
        show_evaluated(optimizer)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", FINDING)
def test_rivals_isolate_modules_from_foreign_gradient_scales(name: str) -> None:
    trajectories = []
    for scale in (1.0, 100.0):
        partition = vectors()
        trajectories.append(follow(partition, build_optimizer(partition, settings(name)), 30, scale))
    assert all(torch.equal(a, b) for a, b in zip(*trajectories, strict=True))


def test_one_prodigy_for_all_would_feel_it() -> None:
    trajectories = []
    for scale in (1.0, 100.0):
        partition = vectors()
        optimizer = prodigyopt.Prodigy([p for name in partition for p in partition[name]])
        trajectories.append(follow(partition, optimizer, 30, scale))
    assert not torch.equal(trajectories[0][0], trajectories[1][0])


@pytest.mark.parametrize("name", FINDING)
def test_a_resumed_optimizer_is_the_uninterrupted_one(name: str) -> None:
    whole, first, resumed = vectors(), vectors(), vectors()
    follow(whole, optimizer := build_optimizer(whole, settings(name)), 20)
    show_evaluated(optimizer)
    follow(first, half := build_optimizer(first, settings(name)), 10)
    state = copy.deepcopy(half.state_dict())
    optimizer = build_optimizer(resumed, settings(name))
    for module in resumed:
        for new, old in zip(resumed[module], first[module], strict=True):
            new.data.copy_(old)
    optimizer.load_state_dict(state)
    follow(resumed, optimizer, 10)
    show_evaluated(optimizer)
    for module in whole:
        for new, old in zip(resumed[module], whole[module], strict=True):
            assert torch.equal(new, old)


@pytest.mark.parametrize("name", ["prodigy", "dog"])
def test_rates_set_after_a_resume_take_effect(name: str) -> None:
    partition = vectors()
    follow(partition, optimizer := build_optimizer(partition, settings(name)), 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["module"] == "vision" else group["lr"]
    before = {module: partition[module][0].detach().clone() for module in partition}
    follow(partition, optimizer, 2)
    assert torch.equal(before["vision"], partition["vision"][0])
    assert not torch.equal(before["language_model"], partition["language_model"][0])


def module_of(values: list[float]) -> ModulePartition:
    return ModulePartition({"language_model": [nn.Parameter(torch.tensor(values))], "vision": vectors()["vision"]})


def gradient_of(partition: ModulePartition, gradient: list[float]) -> None:
    partition["language_model"][0].grad = torch.tensor(gradient)


def test_the_rates_found_by_hand() -> None:
    """DoG: 1e-6 (1 + |(3, 4)|) / |(0.6, 0.8)| = 6e-6 at first; Prodigy starts at d = 1e-6. Both times the rate 0.5."""
    for name, rate in (("dog", 6e-6), ("prodigy", 1e-6)):
        partition = module_of([3.0, 4.0])
        optimizer = build_optimizer(partition, settings(name).model_copy(update={"learning_rate": 0.5}))
        gradient_of(partition, [0.6, 0.8])
        optimizer.step()
        found = found_rates(optimizer, {"language_model": 0.5, "vision": 0.0})
        assert found["found_lr/language_model"] == pytest.approx(0.5 * rate, rel=1e-6)


@pytest.mark.parametrize("name", ["prodigy", "dog"])
def test_the_rate_found_is_the_one_in_force(name: str) -> None:
    """The controller rests the language model and leaves the encoder alone."""
    model, partition = build("plain")
    optimizer = build_optimizer(partition, settings(name))
    coordinator = Coordinator(
        model, optimizer, CoMMITConfig(method="feature-cd", probe=Probe(interval=None)), partition
    )
    model(**(batch := make_batch("plain", 4, torch.float32))).loss.backward()
    coordinator.step(batch)
    found = found_rates(optimizer, coordinator.learning_rates)
    assert found["found_lr/language_model"] == 0.0
    assert found["found_lr/vision"] > 0


def test_dog_evaluates_its_average_and_trains_last_iterate() -> None:
    """The average (gamma 8) of two iterates: 1/10 of the first and 9/10 of the second."""
    partition = module_of([3.0, 4.0])
    optimizer = build_optimizer(partition, settings("dog").model_copy(update={"learning_rate": 1e4}))
    iterates = []
    for _ in range(2):
        gradient_of(partition, [0.6, 0.8])
        optimizer.step()
        iterates.append(partition["language_model"][0].detach().clone())
    assert (iterates[1] - iterates[0]).norm() > 1e-3
    show_evaluated(optimizer)
    show_evaluated(optimizer)
    torch.testing.assert_close(partition["language_model"][0].detach(), 0.1 * iterates[0] + 0.9 * iterates[1])
    optimizer.train()  # type: ignore[attr-defined]
    assert torch.equal(partition["language_model"][0], iterates[1])


def test_schedule_free_is_evaluated_elsewhere_than_it_trains() -> None:
    partition = vectors()
    optimizer = build_optimizer(partition, settings("schedule-free"))
    trained = follow(partition, optimizer, 5)
    show_evaluated(optimizer)
    assert not torch.equal(trained[0], partition["vision"][0])
    optimizer.train()  # type: ignore[attr-defined]
    torch.testing.assert_close(partition["vision"][0].detach(), trained[0])


@pytest.mark.parametrize(
    ("name", "package"), [("prodigy", "prodigyopt"), ("dog", "dog"), ("schedule-free", "schedulefree")]
)
def test_a_package_that_is_missing_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"'{name}'.*commit-lab\[rivals\]"):
        build_optimizer(vectors(), settings(name))
