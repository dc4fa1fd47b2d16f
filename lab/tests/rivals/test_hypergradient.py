"""The hypergradient by hand, on f = (a x^2 + b y^2) / 2 with plain gradient steps."""

import pytest
import torch
from torch import nn

from commit_lab.rivals.hypergradient import HypergradientController
from commit_tuning import ModulePartition

RATE = 0.1


class Quadratic:
    """Two modules of one number each; a step is -rate x multiplier x gradient."""

    def __init__(self, language, vision, bound=10.0):
        self.curvatures = {"language_model": language, "vision": vision}
        self.values = {name: nn.Parameter(torch.ones(1, dtype=torch.float64)) for name in self.curvatures}
        partition = ModulePartition({name: [value] for name, value in self.values.items()})
        self.controller = HypergradientController(partition, bound)
        self.multipliers = self.controller.multipliers(0)

    def go(self, steps):
        """Some steps, and an update of the multipliers after the last."""
        for _ in range(steps):
            for name, value in self.values.items():
                value.grad = self.curvatures[name] * value.detach()
            self.controller.before_step()
            for name, value in self.values.items():
                value.data -= RATE * self.multipliers[name] * value.grad
            self.controller.after_step()
        self.multipliers = self.controller.multipliers(steps)
        return self.multipliers


def test_short_steps_raise_rates_and_long_ones_lower():
    loop = Quadratic(language=1.0, vision=15.0)  # x: 1, 0.9, 0.81; y: 1, -0.5, 0.25
    assert loop.multipliers == {"language_model": 1.0, "vision": 1.0}
    assert loop.go(3) == {"language_model": 1.25, "vision": 0.8}


def test_the_first_step_says_nothing():
    loop = Quadratic(language=1.0, vision=15.0)
    assert loop.go(1) == {"language_model": 1.0, "vision": 1.0}


def test_opposite_signs_cancel():
    loop = Quadratic(language=1.0, vision=1.0)
    for gradient in (1.0, 1.0, -1.0):  # steps -0.1, -0.1: one goes on, one turned
        for value in loop.values.values():
            value.grad = torch.full((1,), gradient, dtype=torch.float64)
        loop.controller.before_step()
        for value in loop.values.values():
            value.data -= RATE * value.grad
        loop.controller.after_step()
    assert loop.controller.multipliers(3) == {"language_model": 1.0, "vision": 1.0}


def test_multipliers_stop_at_the_bound_on_either_side():
    loop = Quadratic(language=1e-3, vision=19.0, bound=2.0)
    for _ in range(4):
        applied = loop.go(3)
        loop.multipliers = {"language_model": 1.0, "vision": 1.0}
    assert applied == {"language_model": 2.0, "vision": 0.5}


def test_hypergradient_settles_at_the_inverse_curvature():
    loop = Quadratic(language=2.0, vision=18.0)
    for _ in range(12):
        multipliers = loop.go(4)
    for name, curvature in loop.curvatures.items():
        assert 1 / 1.26 < RATE * multipliers[name] * curvature < 1.26


@pytest.mark.parametrize("gradient", [None, float("nan"), 0.0])
def test_a_gradient_that_says_nothing_changes_nothing(gradient):
    loop = Quadratic(language=1.0, vision=1.0)
    loop.go(1)
    value = loop.values["vision"]
    value.grad = None if gradient is None else torch.full((1,), gradient, dtype=torch.float64)
    loop.controller.before_step()
    loop.controller.after_step()
    multipliers = loop.controller.multipliers(2)
    assert multipliers == {"language_model": 1.25, "vision": 1.0}


def test_modules_do_not_see_each_other():
    first, second = Quadratic(language=1.0, vision=15.0), Quadratic(language=1e6, vision=15.0)
    for loop in (first, second):
        loop.go(3)
    assert first.multipliers["vision"] == second.multipliers["vision"]
    assert first.multipliers["language_model"] != second.multipliers["language_model"]
