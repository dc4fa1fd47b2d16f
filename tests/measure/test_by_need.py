"""Measurements by need: which steps they fall on, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable

import modalities
import pytest

from commit_tuning import Coordinator
from commit_tuning.config import Probe
from commit_tuning.measure.balance import FadingWindow, RatioWindow
from commit_tuning.measure.measuring import ByNeed
from commit_tuning.measure.probe import Measurement

ONES = {"language_model": 1.0, "vision": 1.0}


def found(loss: float = 1.0, **drift: float) -> Measurement:
    return Measurement.of_drift({"language_model": 1e-4, "vision": 1e-4, **drift}, loss)


def turns(need: ByNeed, steps: Iterable[int], special: dict[int, Measurement] | None = None) -> list[int]:
    """The steps of a training that are measured; all measurements are alike but for the special ones."""
    seen = []
    for step in steps:
        if need.is_due(step, ONES):
            seen.append(step)
            need.measured((special or {}).get(step, found()), ONES, ONES)
    return seen


STEADY = [*range(0, 100, 5), 100, 106, 112, 119, 126, 133, 141, 149, 158, 167, 177, 188, 199, 211, 224, 238, 252, 267]


def test_intervals_grow_with_the_steps() -> None:
    need = ByNeed()
    assert turns(need, range(283)) == STEADY
    assert (need.interval, need.reason) == (16, "no change since step 1")
    assert turns(need, range(283, 775))[-5:] == [614, 652, 692, 732, 772]
    assert need.interval == 40


@pytest.mark.parametrize(
    ("jump", "reason"),
    [
        (found(loss=3.0), "loss 3 times what it was"),
        (found(vision=1e-3), "drift of vision over the loss 10 times what it was"),
    ],
)
def test_a_lasting_change_makes_measurements_dense_again(jump: Measurement, reason: str) -> None:
    """Seen at step 224, confirmed five steps later; in between nothing is dropped."""
    need = ByNeed()
    turns(need, range(224))
    for step, seen in ((224, "once"), (229, "again")):
        assert need.is_due(step, ONES)
        need.measured(jump, ONES, ONES)
        assert (need.interval, need.reason) == (5, f"{reason}, {seen}")
    assert turns(need, range(230, 345), dict.fromkeys(range(345), jump)) == [*range(234, 330, 5), 335, 341]
    assert need.reason == "no change since step 230"


def test_a_single_outlier_has_one_more_look() -> None:
    need = ByNeed()
    assert turns(need, range(300), {224: found(vision=1.0)}) == [*STEADY[:-3], 229, 243, 258, 274, 291]
    assert need.reason == "no change since step 1"


def test_a_new_module_makes_measurements_dense_again() -> None:
    need = ByNeed()
    turns(need, range(224))
    need.is_due(224, ONES)
    need.measured(found(audio=1e-4), {**ONES, "audio": 1.0}, ONES)
    assert (need.interval, need.reason) == (5, "first drift of audio over the loss")
    assert turns(need, range(225, 340)) == [*range(229, 325, 5), 330, 336]


@pytest.mark.parametrize("odd", [found(loss=2.0), found(vision=2e-4), found(loss=0.5), found(vision=1e-9)])
def test_small_jumps_and_falls_change_nothing(odd: Measurement) -> None:
    assert turns(ByNeed(), range(283), {224: odd}) == STEADY


def test_drifts_are_compared_at_the_base_rate() -> None:
    need = ByNeed()
    turns(need, range(224))
    need.is_due(224, ONES)
    need.measured(found(vision=1e-2), {"language_model": 1.0, "vision": 10.0}, ONES)
    assert need.reason == "no change since step 1"


def test_a_turn_of_the_schedule_is_measured_at_once() -> None:
    need = ByNeed()
    assert turns(need, range(230))[-1] == 224
    assert not need.is_due(230, {"language_model": 1.0, "vision": 0.8})
    turned = {"language_model": 1.0, "vision": 0.75}
    assert need.is_due(230, turned)
    need.measured(found(), turned, turned)
    assert (need.interval, need.reason) == (14, "no change since step 1")
    assert not need.is_due(231, {"language_model": 0.0, "vision": 0.75}), "the one before was a step ago"
    assert need.is_due(235, {"language_model": 0.0, "vision": 0.75})


@pytest.mark.parametrize("stop", [7, 130, 225, 231])
def test_a_resumed_schedule_goes_on_as_if_never_stopped(stop: int) -> None:
    special = {224: found(loss=4.0), 229: found(loss=4.0)}
    whole, first, second = ByNeed(), ByNeed(), ByNeed()
    turns(whole, range(400), special)
    seen = turns(first, range(stop), special)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + turns(second, range(stop, 400), special) == turns(ByNeed(), range(400), special)
    assert second.state_dict() == whole.state_dict()


def measured(coordinator: Coordinator, kinds: Iterable[str], first: int = 0) -> dict[int, list[str]]:
    return {row["step"]: row["modules"] for row in modalities.train(coordinator, kinds, first) if row["modules"]}


def test_a_rare_modality_is_measured_as_soon_as_it_comes() -> None:
    """Sounds come at every thirty-first step, out of step with every turn."""
    kinds = "".join("A" if step % 31 == 3 else "I" for step in range(200))
    seen = measured(modalities.start(), kinds)
    assert [step for step, modules in seen.items() if "audio" in modules] == [3, 34, 65, 96, 127, 158, 189]
    assert [step for step in seen if step < 40] == [0, 3, 8, 13, 18, 23, 28, 33, 34, 38]


def test_coordinators_resume_and_say_why() -> None:
    kinds, whole = "IIIA" * 33, modalities.start()
    rows = modalities.train(whole, kinds)
    first, second = modalities.start(), modalities.start()
    modalities.train(first, kinds[:70])
    second.load_state_dict(first.state_dict())
    second._meter.forward.model.load_state_dict(first._meter.forward.model.state_dict())
    second._optimizer.load_state_dict(first._optimizer.state_dict())
    assert repr(modalities.train(second, kinds[70:], first=70)) == repr(rows[70:])
    assert whole.probe_reason == second.probe_reason
    assert whole.summary()["probe_interval"] == float(whole._schedule.need.interval) > 5


def test_a_fixed_interval_stays_what_it_was() -> None:
    coordinator = modalities.start(probe=Probe(interval=5))
    assert [*measured(coordinator, ["IA"] * 60)] == [*range(0, 60, 5)]
    assert "probe_interval" not in coordinator.metrics()
    assert coordinator.probe_reason == "probe.interval=5"


def test_controllers_of_kappa_measure_every_fifth_step() -> None:
    coordinator = modalities.start(controller="compensated")
    assert [*measured(coordinator, ["IA"] * 120)] == [*range(0, 120, 5)]


def test_saturated_samples_say_nothing() -> None:
    need = ByNeed()
    assert turns(need, range(11), {5: found(loss=0.0)}) == [0, 5, 10]
    assert need.reason == "no change since step 1"


def test_a_state_is_a_copy() -> None:
    need, other = ByNeed(), ByNeed()
    turns(need, range(6))
    state = need.state_dict()
    before = json.dumps(state)
    other.load_state_dict(state)
    turns(other, range(6, 20))
    turns(need, range(6, 20))
    assert json.dumps(state) == before


def test_a_fixed_window_fades_from_then_on() -> None:
    fixed, fading = RatioWindow(20, "grouped"), FadingWindow(20, "grouped")
    fixed.push(3.0, 1.0, 16)
    fading.load_state_dict(fixed.state_dict())
    assert fading.value == pytest.approx(3.0)
    assert fading.seen == 1
