"""What simulation says of the loop that Eq. 7-8 close."""

import math

import pytest

from commit_lab.studies.simulate import Plant, judge, simulate, verdict
from commit_tuning import CoMMITConfig
from commit_tuning.config import Bounded, Compensated, Probe, TrustRegion
from commit_tuning.control.stability import largest_root, window_span

PAPER = {"controller": "literal", "kappa_estimator": "arithmetic", "kappa_window": 20, "probe": {"interval": 1}}


@pytest.mark.parametrize("rate", [1e-4, 1.0, 1e4])
def test_trust_region_reaches_the_same_rates_from_anywhere(rate):
    plant = Plant(rho=0.02, drift=3e-2 * rate**2, log_sd=0.0)
    run = simulate(CoMMITConfig(controller=TrustRegion(kappa_target=2.0)), plant, steps=50)
    assert run.log_kappas[-1] == pytest.approx(math.log(2.0))
    assert run.lowest[-1] * rate == pytest.approx(math.sqrt(5e-4 / math.sqrt(2) / 3e-2))


def test_literal_loop_collapses_and_default_does_not():
    found = verdict(20, **PAPER)
    assert found.collapsed > 0.9
    default = verdict(20)
    assert (default.collapsed, default.confined) == (0.0, 0.0)


@pytest.mark.parametrize("size", [10, 15, 20, 30])
def test_simulation_and_root_agree_without_noise(size):
    config = CoMMITConfig(controller="literal", kappa_window=size, probe=Probe(interval=1))
    ratios = simulate(config, Plant(log_sd=0.0), steps=600).log_ratios
    root = largest_root(window_span(config), 2.0)
    early, late = (max(part) - min(part) for part in (ratios[5:15], ratios[-10:]))
    if root > 1.01:
        assert late > 600  # where the simulator stops counting
    elif root > 0.99:
        assert late == pytest.approx(early, rel=1e-6)
    else:
        assert late < 0.1 * early


def test_compensated_loop_reaches_target_equation_8_does_not():
    plant, settings = Plant(rho=0.05, log_sd=0.0), {"steps": 1000, "runs": 1}
    assert verdict(plant=plant, controller=Compensated(kappa_target=0.5), **settings).residual == pytest.approx(
        0.0, abs=1e-9
    )
    assert verdict(plant=plant, controller=Bounded(kappa_target=0.5), **settings).residual == pytest.approx(
        math.log(10) / 3, rel=1e-2
    )
    quiet = simulate(CoMMITConfig(controller="bounded"), Plant(rho=8.0, log_sd=0.0), steps=600).smoothed_kappas
    assert (quiet[0], quiet[-1]) == (pytest.approx(8.0), pytest.approx(2.0, rel=0.05))
    curved = Plant(rho=0.05, log_sd=0.0, exponent=0.7)
    found = verdict(plant=curved, controller=Compensated(bound=1e3), steps=4000, runs=1)
    assert found.residual == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("controller", ["bounded", "compensated"])
@pytest.mark.parametrize(("normalization", "lowest"), [("sum", 2 / 6), ("product", 5**-0.5)])
def test_bounds_hold_whatever_happens(controller, normalization, lowest):
    config = CoMMITConfig(
        controller={"name": controller, "bound": 5.0, "normalization": normalization},
        kappa_window=3,
        lr_update_interval=1,
    )
    run = simulate(config, Plant(rho=1e3, log_sd=3.0, change=-14.0), steps=400)
    assert max(map(abs, run.log_ratios)) == pytest.approx(math.log(5.0))
    assert min(run.lowest) == pytest.approx(lowest)
    assert judge(config, [run]).confined == 1.0
