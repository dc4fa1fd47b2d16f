import math

import pytest

from commit_tuning.health.alarms import StarvationDetector

EVEN = {"language_model": 1.0, "vision": 1.0}


def observed(measurements, patience=3, bound=None):
    detector = StarvationDetector(patience, bound)
    fresh = [detector.observe(step, drift, multipliers) for step, (drift, multipliers) in measurements]
    return detector, fresh


def test_module_starves_after_consecutive_measurements_named_once():
    starved = (EVEN, {"language_model": 1.9, "vision": 0.019})
    well = (EVEN, {"language_model": 1.9, "vision": 0.021})
    steps = [(1, well), (6, starved), (11, starved), (16, starved), (21, starved)]
    detector, fresh = observed(steps)
    assert fresh == [[], [], [], ["vision"], []]
    assert detector.starving == {"vision": 6}
    assert detector.observe(26, *well) == []
    assert detector.starving == {}
    assert [detector.observe(step, *starved) for step in (31, 36, 41)] == [[], [], []]
    assert detector.starving == {"vision": 31}


@pytest.mark.parametrize(
    ("drift", "multipliers", "starving"),
    [
        ({"vision": 1.0 / 2501}, {}, {"vision"}),
        ({"vision": 1.0 / 2499}, {}, set()),
        ({"vision": 0.0}, {}, {"vision"}),
        ({"vision": math.nan}, {}, set()),
        ({}, {"language_model": 4.0, "audio": 1.1}, {"vision"}),  # the bound is 4
        ({}, {"language_model": 3.9, "vision": 1.0}, set()),
        ({}, {"language_model": 0.25, "audio": 0.9}, {"language_model"}),
        ({}, {"vision": 0.3, "audio": 3.9}, set()),  # far apart, but each within the bound of the language model
    ],
)
def test_what_counts_as_held_back(drift, multipliers, starving):
    even = dict.fromkeys(("language_model", "vision", "audio"), 1.0)
    detector, _ = observed([(1, ({**even, **drift}, {**even, **multipliers}))], patience=1, bound=4.0)
    assert set(detector.starving) == starving


def test_a_module_at_rest_does_not_starve():
    detector, _ = observed([(1, ({"language_model": 1.0, "vision": 0.0}, {"language_model": 1.0}))], patience=1)
    assert detector.starving == {}


IDLE = ({"language_model": 1.0}, {"language_model": 1.0, "vision": 1.0})
LOW = ({"language_model": 1.0, "vision": 1e-9}, IDLE[1])


@pytest.mark.parametrize(
    ("measurements", "starving"),
    [
        ([IDLE, IDLE, IDLE], {"vision": 1}),  # nothing ever came
        ([IDLE, IDLE, IDLE, (EVEN, IDLE[1])], {}),  # until it did
        ([IDLE, IDLE, LOW], {}),  # a first drift begins a row
        ([(EVEN, IDLE[1]), IDLE, IDLE, IDLE, IDLE], {}),
        ([LOW, IDLE, LOW, IDLE], {}),
        ([LOW, IDLE, LOW, IDLE, LOW], {"vision": 1}),  # which idle steps neither end nor lengthen
        ([LOW, IDLE, LOW, IDLE, LOW, IDLE], {"vision": 1}),
    ],
)
def test_measurements_without_a_module_do_not_count(measurements, starving):
    detector, _ = observed([*enumerate(measurements, start=1)])
    assert detector.starving == starving


def test_resuming_knows_who_was_seen():
    first, _ = observed([(1, (EVEN, IDLE[1])), (2, IDLE)])
    second = StarvationDetector(1)
    second.load_state_dict(first.state_dict())
    assert second.observe(3, *IDLE) == []


def test_resuming():
    starved = (EVEN, {"language_model": 1.9, "vision": 0.01})
    first, _ = observed([(1, starved), (2, starved)])
    second = StarvationDetector(3)
    second.load_state_dict(first.state_dict())
    assert second.observe(3, *starved) == ["vision"]
    assert second.starving == {"vision": 1}
