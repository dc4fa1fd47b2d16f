"""Methods that a plugin adds."""

import pytest
from added_method import ADDED, GradientSigns
from tiny import build

from commit_tuning import CoMMITConfig
from commit_tuning.config import METHODS
from commit_tuning.control.base import Controller
from commit_tuning.methods import add_method, make_controller


def test_an_added_method_makes_its_controller():
    _, partition = build("plain")
    config = CoMMITConfig(method=ADDED)
    assert isinstance(make_controller(config, partition), GradientSigns)
    assert config.scales_rates
    assert not config.coordinated


def test_a_method_is_added_once():
    before = list(METHODS)
    add_method(ADDED, GradientSigns)
    for name in (ADDED, "constant"):
        with pytest.raises(ValueError, match=f"a method '{name}' already"):
            add_method(name, Controller)
    assert before == METHODS
