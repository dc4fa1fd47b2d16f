"""Steps that go wrong: errors that a loop catches, memory that runs out, values that are not finite, damaged states."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from added_method import ADDED
from tiny import build, make_batch
from torch import nn

from commit_tuning import BalanceMonitor, CoMMITConfig, Coordinator, ModulePartition
from commit_tuning.config import PreviousStep, Probe
from commit_tuning.errors import ConfigError
from commit_tuning.health.alarms import SKIPPED
from commit_tuning.measure.displacement import LEAST, Displacement, Reading

QUIET = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))
EVERY_STEP = CoMMITConfig(probe=Probe(interval=1), lr_update_interval=1)


class Faulty(torch.optim.SGD):
    """Raises an error in the middle of the steps that are told."""

    faulty: tuple[int, ...] = ()
    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if self.steps in self.faulty:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().step(closure)


def start(
    config: CoMMITConfig, make: Callable[..., Any] = torch.optim.SGD, rate: float = 0.1
) -> tuple[nn.Module, Any, Coordinator]:
    model, partition = build("plain")
    model.eval()  # without dropout, a batch that is left out leaves nothing behind
    optimizer = make(partition.param_groups(lr=rate))
    return model, optimizer, Coordinator(model, optimizer, config, partition)


def backward(model: nn.Module, seed: int = 0, size: int = 4) -> dict[str, torch.Tensor]:
    batch = make_batch("plain", size, torch.float32, seed=seed)
    model.zero_grad()
    model(**batch).loss.backward()
    return batch


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def by_step(coordinator: Coordinator, optimizer: Any, batch: Any) -> None:
    coordinator.step(batch)


def by_hand(coordinator: Coordinator, optimizer: Any, batch: Any) -> None:
    coordinator.before_step(batch)
    optimizer.step()
    coordinator.after_step()


@pytest.mark.parametrize("take", [by_step, by_hand])
@pytest.mark.parametrize("method", ["commit-clr", "feature-cd"])
def test_error_in_optimizer_step_leaves_no_trace(take: Callable[..., None], method: str) -> None:
    """The run goes on as one in which the batch never was."""
    config = CoMMITConfig(method=method, probe=Probe(interval=1), lr_update_interval=1)
    results = []
    for faulty in ((2,), ()):
        model, optimizer, coordinator = start(config, Faulty)
        optimizer.faulty = faulty
        for seed in (0, 1, 2, 3):
            if seed == 1 and not faulty:
                continue
            batch = backward(model, seed)
            gradients = [p.grad for p in model.parameters()]
            if seed == 1:
                with pytest.raises(torch.OutOfMemoryError):
                    take(coordinator, optimizer, batch)
            else:
                take(coordinator, optimizer, batch)
            if seed != 1 or take is by_step:
                assert {group["lr"] for group in optimizer.param_groups} == {0.1}
                assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
        results.append((values(model), coordinator.multipliers, coordinator.state_dict()["steps"]))
    assert same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_missing_after_step_is_said() -> None:
    model, optimizer, coordinator = start(QUIET)
    batch = backward(model)
    coordinator.before_step(batch)
    optimizer.step()
    with pytest.raises(RuntimeError, match="called twice"):
        coordinator.before_step(batch)


def test_error_in_measurement_restores_weights_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, coordinator = start(EVERY_STEP)
    batch = backward(model)
    coordinator.before_step(batch)
    optimizer.step()
    expected = values(model)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such input")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", fail)
        with pytest.raises(ValueError, match="no such input"):
            coordinator.after_step()
    assert same(values(model), expected)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    assert coordinator.metrics()["kappa"] is None
    coordinator.step(backward(model, 1))
    assert coordinator.kappa > 0
    assert coordinator.state_dict()["steps"] == 2


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("hooked", [False, True])
def test_parameter_changed_before_step_is_an_error(hooked: bool, step: int) -> None:
    """Also where a trainer's hook prepares the step, and a later hook changes a parameter."""
    model, optimizer, coordinator = start(QUIET)
    changes: list[int] = []

    def change(*_: Any) -> None:
        changes.append(1)
        if len(changes) == step:
            with torch.no_grad():
                next(model.parameters()).add_(1.0)

    if hooked:
        optimizer.register_step_pre_hook(lambda *_: coordinator.before_step(batch))
        optimizer.register_step_post_hook(lambda *_: coordinator.after_step())
        coordinator._watch.go_last()
        if step == 1:
            optimizer.register_step_pre_hook(change)
            coordinator._watch.go_last()
    for current in (1, 2):
        batch = backward(model, current)
        if hooked and step == 2 and current == 1:
            optimizer.step()
            changes.append(1)
            optimizer.register_step_pre_hook(change)
            coordinator._watch.go_last()
            continue
        if not hooked:
            coordinator.before_step(batch)
            change()
        if current == step:
            with pytest.raises(RuntimeError, match=r"changed between before_step\(\) and optimizer\.step\(\)"):
                optimizer.step()
            return
        optimizer.step()
        if not hooked:
            coordinator.after_step()
    raise AssertionError


def failing_above(model: nn.Module, samples: int, error: Exception, phase: str = "any") -> list[int]:
    """Make the model's forward run out of memory on more samples while it is probed."""
    forward, sizes = model.forward, list[int]()

    def guarded(*args: Any, **kwargs: Any) -> Any:
        size = kwargs["labels"].shape[0]
        if not torch.is_grad_enabled():
            sizes.append(size)
            if size > samples and (phase == "any" or len(sizes) > 1):
                raise error
        return forward(*args, **kwargs)

    model.forward = guarded
    return sizes


ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 4 GB"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("phase", ["any", "after the step"])
def test_probe_out_of_memory_takes_half_the_samples(error: str, phase: str) -> None:
    model, _, coordinator = start(CoMMITConfig(method="constant", probe=Probe(interval=1)))
    plain, other = build("plain")
    plain.eval()
    optimizer = torch.optim.SGD(other.param_groups(lr=0.1))
    sizes = failing_above(model, 2, ERRORS[error], phase)
    for step in range(4):
        batch = make_batch("plain", 8, torch.float32, seed=step)
        for each in (model, plain):
            each.zero_grad()
            each(**batch).loss.backward()
        optimizer.step()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            coordinator.step(batch)
        texts = [str(warning.message) for warning in told if "ran out of memory" in str(warning.message)]
        assert len(texts) == (step < 2)
        if step < 2:
            halves = ("8 samples", "take 4 samples") if step == 0 else ("4 samples", "take 2 samples")
            assert all(half in texts[0] for half in halves)
        assert (coordinator.metrics()["kappa"] is not None) == (step >= 2)
    assert same(values(model), values(plain))
    assert max(sizes[-4:]) == 2
    assert coordinator.state_dict()["probe_samples"] == 2


def test_probe_without_memory_for_one_sample_is_skipped() -> None:
    model, _, coordinator = start(CoMMITConfig(method="constant", probe=Probe(interval=1, samples=1)))
    failing_above(model, 0, ERRORS["torch"])
    with pytest.warns(UserWarning, match="no memory for a single sample"):
        coordinator.step(backward(model))
    for step in range(1, 3):
        coordinator.step(backward(model, step))  # said once
    assert math.isnan(coordinator.kappa)
    assert coordinator.state_dict()["steps"] == 3


def test_other_errors_of_the_model_are_raised() -> None:
    model, _, coordinator = start(QUIET)
    failing_above(model, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        coordinator.step(backward(model))


def test_nonfinite_drift_is_not_called_noise() -> None:
    reader = Displacement("auto")
    reader.read("vision", lambda s: 1e-6 * s**2 + 1e-4, rounding=1e-5)
    for value in (math.nan, math.inf):
        reading = reader.read("vision", lambda s, value=value: value, rounding=1e-5)  # type: ignore[misc]
        assert reading.fault is not None
        assert "noise" not in reading.fault
    assert "noise" in str(Reading(math.nan, 1e-4, LEAST).fault)


@pytest.mark.parametrize(("when", "text"), [("before", "before the step"), ("after", "since the step")])
def test_weights_that_are_nan_are_called_so(when: str, text: str) -> None:
    model, partition = build("plain")
    optimizer = torch.optim.SGD(partition.param_groups(lr=0.1))
    monitor = BalanceMonitor(model, optimizer, QUIET, partition)
    monitor.step(backward(model))
    poisoned = partition["vision"][0]
    batch = backward(model, 1)
    if when == "before":
        poisoned.data.fill_(math.nan)
    else:
        assert poisoned.grad is not None
        poisoned.grad.fill_(math.nan)
    with pytest.warns(UserWarning, match=rf"weights of module 'vision' hold NaN or infinity {text}") as told:
        monitor.step(batch)
    assert not any("noise" in str(warning.message) for warning in told)


def test_learning_rate_of_zero_is_said_once() -> None:
    model, _, coordinator = start(QUIET, rate=0.0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(2 * QUIET.starvation_patience):
            coordinator.step(backward(model, step))
    assert sorted(re.findall(r"learning rate of module '(\w+)' was zero", " ".join(str(w.message) for w in told))) == [
        "language_model",
        "vision",
    ]


def test_loss_of_zero_is_said_once() -> None:
    class Sure(nn.Module):
        """Knows the answer: its logits are far enough apart that the loss is zero in float32."""

        def __init__(self) -> None:
            super().__init__()
            self.eye, self.head = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

        def forward(self, labels: torch.Tensor) -> Any:
            logits = 1e4 * nn.functional.one_hot(labels.roll(-1, 1), 5) * self.eye * self.head
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return type("Output", (), {"logits": logits, "loss": loss})()

    model = Sure()
    partition = ModulePartition({"vision": [model.eye], "language_model": [model.head]})
    monitor = BalanceMonitor(model, torch.optim.SGD(partition.param_groups(lr=0.1)), QUIET, partition)
    batch = {"labels": torch.arange(4).repeat(2, 1)}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            model(**batch).loss.backward()
            monitor.step(batch)
    assert sum("exactly zero" in str(warning.message) for warning in told) == 1


def test_many_skipped_steps_are_said_once() -> None:
    model, _, coordinator = start(QUIET)
    batch = backward(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(45):
            coordinator.before_step(batch)
            coordinator.after_step(skipped=True)
    assert [f"skipped {SKIPPED} steps in a row" in str(warning.message) for warning in told] == [True]


def damage(path: tuple[str, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "multiplier NaN": (damage(("multipliers", "vision"), math.nan), "multiplier of module 'vision' is nan"),
    "multiplier huge": (damage(("multipliers", "vision"), 1e30), "multiplier of module 'vision' is 1e"),
    "multiplier infinite": (damage(("multipliers", "vision"), math.inf), "multiplier of module 'vision' is inf"),
    "multiplier negative": (damage(("multipliers", "vision"), -1.0), "multiplier of module 'vision' is -1"),
    "multiplier text": (damage(("multipliers", "vision"), "1"), "damaged"),
    "first multiplier NaN": (damage(("controller", "first", "vision"), math.nan), "multiplier of module 'vision'"),
    "other module": (damage(("multipliers", "audio"), 1.0), "multiplier of module 'audio'"),
    "no windows": (lambda state: state.pop("windows"), "KeyError: 'windows'"),
    "no method": (lambda state: state.pop("method"), "KeyError: 'method'"),
    "other encoders": (damage(("windows",), {"audio": {}}), "of the encoders audio, and the model has vision"),
    "steps text": (damage(("steps",), "many"), "steps='many'"),
    "multipliers a list": (damage(("multipliers",), [1.0]), "damaged"),
    "measurement a number": (damage(("measurement",), 7), "damaged"),
    "other groups": (damage(("full_rates",), [0.1]), "with 1 parameter groups, and this one has 4"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_state_is_refused_in_one_line(fault: str) -> None:
    model, _, coordinator = start(EVERY_STEP)
    coordinator.step(backward(model))
    state = copy.deepcopy(coordinator.state_dict())
    change, text = DAMAGED[fault]
    change(state)
    with pytest.raises(ConfigError, match=re.escape(text)) as told:
        start(EVERY_STEP)[2].load_state_dict(state)
    assert "\n" not in str(told.value)


REGULARIZED = CoMMITConfig(
    method="constant", probe=Probe(interval=None), regularizer=PreviousStep(weight=10.0, step="optimizer"))  # fmt: skip


def skipping(coordinator: Coordinator, optimizer: Any, batch: Any) -> None:
    coordinator.before_step(batch)
    coordinator.after_step(skipped=True)


def abandoned(coordinator: Coordinator, optimizer: Any, batch: Any) -> None:
    coordinator.before_step(batch)
    coordinator.abandon_step()


@pytest.mark.parametrize("break_off", [skipping, abandoned])
@pytest.mark.parametrize("method", ["previous-step", ADDED])
def test_step_never_made_leaves_no_trace(break_off: Callable[..., None], method: str) -> None:
    config = {
        "previous-step": REGULARIZED,
        ADDED: CoMMITConfig(method=ADDED, probe=Probe(interval=None), lr_update_interval=2),
    }[method]
    results = []
    for broken in (True, False):
        model, optimizer, coordinator = start(config)
        for seed in (0, 1, 2, 3, 4):
            if seed == 2:
                if broken:
                    break_off(coordinator, optimizer, backward(model, seed))
                continue
            coordinator.step(backward(model, seed))
        results.append((values(model), coordinator.multipliers))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_regularized_step_that_is_retried_is_the_same() -> None:
    results = []
    for faulty in ((3,), ()):
        model, optimizer, coordinator = start(REGULARIZED, Faulty)
        optimizer.faulty = faulty
        for seed in (0, 1, 2, 3):
            batch = backward(model, seed)
            if seed == 2 and faulty:
                gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
                with pytest.raises(torch.OutOfMemoryError):
                    coordinator.step(batch)
                assert same(gradients, [p.grad for p in model.parameters() if p.grad is not None])
            coordinator.step(batch)
        results.append(values(model))
    assert same(*results)


@pytest.mark.parametrize("method", ["commit-clr", "feature-cd"])
def test_abandoned_step_leaves_optimizer_as_it_was(method: str) -> None:
    """In the `except` block of a loop of one's own, where a checkpoint may be written."""
    model, partition = build("plain")
    optimizer = Faulty(model.parameters(), lr=0.1)
    config = CoMMITConfig(method=method, probe=Probe(interval=1), lr_update_interval=1)
    coordinator = Coordinator(model, optimizer, config, partition)
    optimizer.faulty = (2,)
    coordinator.step(backward(model))
    state, batch = str(coordinator.state_dict()), backward(model, 1)
    gradients = [p.grad for p in model.parameters()]
    with pytest.raises(torch.OutOfMemoryError):
        by_hand(coordinator, optimizer, batch)
    coordinator.abandon_step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    assert len(optimizer.state_dict()["param_groups"]) == 1
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert str(coordinator.state_dict()) == state
    by_hand(coordinator, optimizer, batch)
    coordinator.abandon_step()  # of no step
    assert coordinator.state_dict()["steps"] == 2


@pytest.mark.parametrize("make", [BalanceMonitor, Coordinator])
def test_new_coordinator_after_an_error_finds_original_groups(make: Callable[..., Any]) -> None:
    model, partition = build("plain")
    optimizer = Faulty(model.parameters(), lr=0.1)
    first = Coordinator(model, optimizer, CoMMITConfig(method="language-lr-up"), partition)
    optimizer.faulty = (1,)
    with pytest.raises(torch.OutOfMemoryError):
        by_hand(first, optimizer, backward(model))
    second = make(model, optimizer, QUIET, partition)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    assert second._groups.full_rates == [0.1]


def test_error_after_an_inner_step_is_put_right() -> None:
    """An optimizer calls the step of its base class, and fails afterwards."""

    class Late(torch.optim.SGD):
        fails = False

        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            if self.fails:
                raise torch.OutOfMemoryError("CUDA out of memory")

    model, optimizer, coordinator = start(EVERY_STEP, Late)
    optimizer.fails = True
    with pytest.raises(torch.OutOfMemoryError):
        by_hand(coordinator, optimizer, backward(model))
    optimizer.fails = False
    by_hand(coordinator, optimizer, backward(model, 1))
    assert coordinator.state_dict()["steps"] == 1
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def test_missing_after_step_is_said_after_an_error() -> None:
    model, optimizer, coordinator = start(QUIET, Faulty)
    optimizer.faulty = (1,)
    batch = backward(model)
    with pytest.raises(torch.OutOfMemoryError):
        coordinator.step(batch)
    coordinator.before_step(batch)
    with pytest.raises(RuntimeError, match="called twice"):
        coordinator.before_step(batch)


def test_parameter_changed_after_an_error_is_said() -> None:
    model, optimizer, coordinator = start(QUIET, Faulty)
    optimizer.faulty = (1,)
    batch = backward(model)
    with pytest.raises(torch.OutOfMemoryError):
        coordinator.step(batch)
    coordinator.before_step(batch)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match=r"changed between before_step\(\) and optimizer\.step\(\)"):
        optimizer.step()


def test_error_in_lookahead_counts_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CoMMITConfig(method="constant", probe=Probe(interval=1), regularizer="lookahead")
    model, _, coordinator = start(config)
    coordinator.step(backward(model))

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("commit_tuning.measure.probe.DriftProbe.gradients", fail)
        with pytest.raises(torch.OutOfMemoryError):
            coordinator.step(backward(model, 1))
    assert coordinator.state_dict()["steps"] == 2
    assert coordinator.metrics()["drift/vision"] is None
    coordinator.step(backward(model, 2))
    assert coordinator.metrics()["drift/vision"] is not None


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("tensor", [False, True])
def test_rate_set_inside_a_step_is_refused(split: bool, tensor: bool) -> None:
    """A scheduler steps before `after_step`, which would put the old rate back."""
    model, partition = build("plain")
    rate = torch.tensor(0.1) if tensor else 0.1
    optimizer = torch.optim.SGD(model.parameters() if split else partition.param_groups(lr=rate), lr=rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    coordinator = Coordinator(model, optimizer, CoMMITConfig(method="language-lr-up"), partition)
    coordinator.before_step(backward(model))
    optimizer.step()
    if split:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.5
    else:
        scheduler.step()
    with pytest.raises(ConfigError, match=r"call scheduler\.step\(\).* after after_step\(\)"):
        coordinator.after_step()
    assert coordinator.state_dict()["steps"] == 1


def test_group_added_inside_a_step_is_refused() -> None:
    model, partition = build("plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    coordinator = Coordinator(model, optimizer, CoMMITConfig(method="language-lr-up"), partition)
    coordinator.before_step(backward(model))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.step()
    with pytest.raises(ConfigError, match="parameter groups were changed between"):
        coordinator.after_step()


def test_group_added_inside_a_constant_step_stays() -> None:
    model, optimizer, coordinator = start(QUIET)
    coordinator.before_step(backward(model))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1), requires_grad=False)]})
    optimizer.step()
    coordinator.after_step()
    assert len(optimizer.param_groups) == 5
    coordinator.step(backward(model, 1))
    assert coordinator.kappa > 0


def test_out_of_memory_is_no_damaged_state(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, coordinator = start(QUIET)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(coordinator, "_check_state", fail)
    with pytest.raises(torch.OutOfMemoryError):
        coordinator.load_state_dict({})


class Rateless(torch.optim.Optimizer):
    """Has a rate of its own and shows none."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.sub_(p.grad, alpha=0.1)


def test_module_starves_without_a_rate() -> None:
    model, partition = build("plain")
    optimizer = Rateless([*model.parameters()])
    config = CoMMITConfig(method="constant", probe=Probe(interval=1), starvation_patience=2)
    monitor = BalanceMonitor(model, optimizer, config, partition)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(3):
            batch = backward(model, step)
            for parameter in partition["vision"]:
                assert parameter.grad is not None
                parameter.grad.mul_(1e-6)
            monitor.step(batch)
    assert "vision" in monitor.starving
