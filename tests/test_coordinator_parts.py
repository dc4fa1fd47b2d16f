"""What a coordinator leaves behind: where making it fails, where a step is interrupted, and once it is gone."""

from __future__ import annotations

import gc
import warnings
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import build, make_batch
from torch import nn

from commit_tuning import BalanceMonitor, CoMMITConfig, Coordinator
from commit_tuning.config import Probe
from commit_tuning.control.groups import GroupRates
from commit_tuning.errors import ConfigError, warn
from commit_tuning.health.alarms import SKIPPED
from commit_tuning.measure.probe import DriftProbe

MEASURES = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))
CONTROLS = CoMMITConfig(probe=Probe(interval=1), lr_update_interval=1)


def start(kind: Any = Coordinator, config: CoMMITConfig = CONTROLS) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model, partition = build("plain")
    model.eval()
    optimizer = torch.optim.SGD(partition.param_groups(lr=0.1))
    return model, optimizer, kind(model, optimizer, config, partition)


def backward(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    batch = make_batch("plain", 4, torch.float32, seed=seed)
    model.zero_grad()
    model(**batch).loss.backward()
    return batch


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_refused_control_leaves_the_optimizer_alone() -> None:
    model, partition = build("plain")
    optimizer = torch.optim.ASGD(partition.param_groups(lr=0.1))
    with pytest.raises(ConfigError) as refused:
        Coordinator(model, optimizer, CONTROLS, partition)
    monitor = BalanceMonitor(model, optimizer, MEASURES, partition)
    monitor.step(backward(model))
    assert monitor.drift.keys() == {"language_model", "vision"}
    del monitor, refused
    backward(model)
    optimizer.step()


@pytest.mark.parametrize("kind", [Coordinator, BalanceMonitor])
def test_a_coordinator_goes_without_a_collection(kind: type[Coordinator]) -> None:
    model, optimizer, coordinator = start(kind)
    coordinator.step(backward(model))
    alive = weakref.ref(coordinator)
    gc.disable()
    try:
        del coordinator
        assert alive() is None
    finally:
        gc.enable()
    assert rates(optimizer) == [0.1] * len(optimizer.param_groups)


def test_monitor_lets_groups_and_rates_change() -> None:
    model, optimizer, monitor = start(BalanceMonitor, MEASURES)
    optimizer.add_param_group({"params": []})
    for step in range(3):
        batch = backward(model, step)
        monitor.before_step(batch)
        optimizer.step()
        optimizer.param_groups[-1]["lr"] = 0.5
        monitor.after_step()
        if step == 0:
            del optimizer.param_groups[-1]
            optimizer.add_param_group({"params": []})
    assert monitor.drift.keys() == {"language_model", "vision"}


def test_monitor_takes_over_any_methods_state() -> None:
    model, _, coordinator = start(config=replace(CONTROLS, controller="bounded"))
    coordinator.step(backward(model))
    _, _, monitor = start(BalanceMonitor)
    monitor.load_state_dict(coordinator.state_dict())
    assert monitor.drift == coordinator.drift
    assert set(monitor.multipliers.values()) == {1.0}


@pytest.mark.parametrize("samples", [0, "many"])
def test_refused_state_leaves_everything_as_it_was(samples: Any) -> None:
    model, _, coordinator = start()
    coordinator.step(backward(model))
    _, _, fresh = start()
    before = fresh.state_dict()
    with pytest.raises(ConfigError, match="damaged"):
        fresh.load_state_dict(coordinator.state_dict() | {"probe_samples": samples})
    assert fresh.drift == {}
    assert fresh.state_dict() == before


def test_warning_as_error_leaves_no_rates_behind() -> None:
    model, optimizer, coordinator = start()
    coordinator.step(backward(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(SKIPPED - 1):
            coordinator.before_step(backward(model, step))
            coordinator.after_step(skipped=True)
        coordinator.before_step(backward(model))
        with pytest.raises(UserWarning, match="skipped"):
            coordinator.after_step(skipped=True)
    assert rates(optimizer) == [0.1] * len(optimizer.param_groups)
    coordinator.step(backward(model))


@pytest.mark.parametrize("reading", [None, "lookahead", "previous-step"])
def test_interrupt_at_the_end_of_before_step(reading: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "commit-clr" if reading is None else "commit"
    model, optimizer, coordinator = start(config=replace(CONTROLS, method=method, regularizer=reading))
    coordinator.step(backward(model))
    batch = backward(model, 1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GroupRates, "by_module", interrupted)
        with pytest.raises(KeyboardInterrupt):
            coordinator.before_step(batch)
    assert rates(optimizer) == [0.1] * len(optimizer.param_groups)
    coordinator.step(backward(model, 2))


def test_lookahead_takes_what_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONTROLS, method="commit", regularizer="lookahead", probe=Probe(interval=1, samples=4))
    model, _, coordinator = start(config=config)
    batch, whole = backward(model), DriftProbe.__init__

    def small(self: DriftProbe, forward: Any, partition: Any, batches: Any, *given: Any) -> None:
        if sum(len(batch["labels"]) for batch in batches) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(self, forward, partition, batches, *given)

    monkeypatch.setattr(DriftProbe, "__init__", small)
    with pytest.warns(UserWarning, match="the next ones take 2 samples"):
        coordinator.step(batch)
    coordinator.step(backward(model, 1))
    assert coordinator.drift.keys() == {"language_model", "vision"}


@pytest.mark.parametrize("kind", [Coordinator, BalanceMonitor])
def test_warnings_name_the_callers_line(kind: type[Coordinator]) -> None:
    model, partition = build("plain", torch.bfloat16)
    optimizer = torch.optim.SGD(partition.param_groups(lr=0.0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        coordinator = kind(model, optimizer, replace(MEASURES, starvation_patience=1), partition)
        batch = make_batch("plain", 4, torch.bfloat16)
        model(**batch).loss.backward()
        coordinator.step(batch)
    assert len(told) >= 2
    assert {warning.filename for warning in told} == {__file__}


def test_a_warning_of_a_caller_outside() -> None:
    with pytest.warns(UserWarning, match="so") as told:
        warn("so")
    assert told[0].filename == __file__
