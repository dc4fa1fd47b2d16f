"""Two encoders and batches of one modality each: each module is measured where it has a gradient of its own."""

from __future__ import annotations

import math
import warnings
from unittest import mock

import pytest
from modalities import batch, start, train

from commit_tuning.config import Probe
from commit_tuning.measure.measuring import norms_before

PATTERNS = ["I A", "I I I I A", "I A T", "T I I I A", "IA T T T I A"]  # by the default, every fifth step is due


def kinds(pattern: str, steps: int) -> list[str]:
    turns = pattern.split()
    return [turns[step % len(turns)] for step in range(steps)]


@pytest.mark.filterwarnings("ignore:.* is unstable")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("controller", ["trust-region", "compensated", "bounded", "literal"])
def test_each_encoder_is_measured_and_controlled(pattern: str, controller: str) -> None:
    coordinator = start(controller=controller, kappa_window=4)
    seen = train(coordinator, kinds(pattern, 60))
    assert all(len(window) == 4 for window in coordinator._balance.windows.values())
    assert not {1.0, 0.01} & set(coordinator.multipliers.values())
    assert coordinator.starving == {}
    held = {"language_model": "IAT", "vision": "I", "audio": "A"}
    for row, kind in zip(seen, kinds(pattern, 60), strict=True):
        moved = sorted(name for name, inputs in held.items() if set(inputs) & set(kind))
        assert row["modules"] in (None, moved)


def test_a_module_is_made_up_for_once() -> None:
    """Due are the steps 0 and 5; what is idle then is measured at its next batch, and at no other."""
    seen = train(start(method="constant"), ["I", "I", "I", "A", "A", "T", "A", "A", "I", "I"])
    assert [row["step"] for row in seen if row["modules"]] == [0, 3, 5, 6, 8]


@pytest.mark.filterwarnings("ignore:.* is unstable")
@pytest.mark.parametrize("controller", ["compensated", "bounded"])
def test_control_starts_for_encoders_past_their_warm_up(controller: str) -> None:
    coordinator = start(controller={"name": controller, "warmup": 3}, kappa_window=6, probe=Probe(interval=1))
    train(coordinator, "IIIIIIIAAI")
    found = coordinator.multipliers
    assert found["audio"] == 1.0  # two measurements
    assert found["vision"] != 1.0
    assert found["vision"] + found["language_model"] == pytest.approx(2.0)  # Eq. 8 among those that are in it


def test_kappa_is_of_the_encoders_that_moved() -> None:
    coordinator = start(method="constant", probe=Probe(interval=1))
    train(coordinator, "I")
    kappa = coordinator.drift["language_model"] / coordinator.drift["vision"]
    assert coordinator.kappa == coordinator.kappas["vision"] == kappa
    assert math.isnan(coordinator.kappas["audio"])
    assert coordinator.smoothed_kappa == pytest.approx(kappa)
    record, log = coordinator.metrics(), coordinator.summary()
    assert (record["kappa/audio"], record["drift/audio"], record["smoothed_kappa/audio"]) == (None, None, None)
    assert {name for name in log if "audio" in name} == {"lr/audio"}
    assert log["smoothed_kappa/vision"] == pytest.approx(kappa)
    train(coordinator, "T", first=1)
    assert math.isnan(coordinator.kappa)
    assert coordinator.metrics()["kappa"] is None
    assert coordinator.metrics()["smoothed_kappa/vision"] == pytest.approx(kappa)


def test_no_batches_are_no_starvation() -> None:
    """Ten measurements of images alone; audio was well before, and its rate is not what holds it back."""
    coordinator = start(method="constant", probe=Probe(interval=1), starvation_patience=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(coordinator, "A" + "I" * 10)
    assert coordinator.starving == {}


def test_idle_steps_cost_no_norms_of_parameters() -> None:
    coordinator = start(method="constant")
    with mock.patch("commit_tuning.coordinator.norms_before", wraps=norms_before) as norms:
        seen = train(coordinator, kinds("I A", 50))
    assert norms.call_count == len([row for row in seen if row["modules"]]) == 20


@pytest.mark.parametrize("order", [["T", "I"], ["I", "T"], ["T", "I", "A"], ["I", "I", "A"]])
def test_accumulated_modalities_are_all_looked_at(order: list[str]) -> None:
    coordinator = start(method="constant", probe=Probe(samples=6))
    batches = [batch(kind, step) for step, kind in enumerate(order)]
    for data in batches:
        coordinator._meter.forward.model(**data).loss.backward()
    coordinator.step(batches)
    assert coordinator.drift.keys() == {"language_model", "vision"} | ({"audio"} if "A" in order else set())
    assert all(drift > 0 for drift in coordinator.drift.values())


def test_both_orders_of_an_accumulation_measure_the_same() -> None:
    drifts = []
    for order in ("TI", "IT"):
        coordinator = start(method="constant", probe=Probe(samples=6))
        batches = [batch(kind, "TI".index(kind)) for kind in order]
        for data in batches:
            coordinator._meter.forward.model(**data).loss.backward()
        coordinator.step(batches)
        drifts.append(coordinator.drift)
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-4)
