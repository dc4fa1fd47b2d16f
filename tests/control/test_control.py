"""The loop that Eq. 7-8 close: controllers by hand, and roots by hand."""

import math

import pytest

from commit_tuning import CoMMITConfig
from commit_tuning.config import Bounded, Compensated, Probe, TrustRegion
from commit_tuning.control.bounded import BoundedController
from commit_tuning.control.compensated import CompensatedController
from commit_tuning.control.stability import effective_span, feedback, instability, largest_root, window_span
from commit_tuning.control.trust_region import FIRST_STEP, TrustRegionController
from commit_tuning.measure.balance import RatioWindow
from commit_tuning.measure.probe import Measurement
from commit_tuning.methods import coordinating_controller

ONES = {"language_model": 1.0, "vision": 1.0}
PAPER = {"controller": "literal", "kappa_estimator": "arithmetic", "kappa_window": 20, "probe": {"interval": 1}}


def observe(controller, drift, in_force, loss=1.0, target_tokens=0.0):
    controller.observe(Measurement.of_drift(drift, loss, target_tokens), in_force)


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [(1e9, {"language_model": 0.4, "vision": 1.6}), (1e-9, {"language_model": 1.6, "vision": 0.4}), (2.0, ONES)],
)
def test_the_bounded_controller_waits_and_clamps(kappa, expected):
    config = CoMMITConfig(controller=Bounded(kappa_target=2.0, bound=4.0, warmup=3))
    controller = BoundedController(config, ("vision",))
    for _ in range(3):
        assert controller.multipliers(0) == ONES
        observe(controller, {"language_model": kappa, "vision": 1.0}, ONES)
    assert controller.multipliers(0) == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["arithmetic", "geometric", "ratio"])
def test_the_compensated_controller_by_hand(estimator):
    """Drifts 8 and 1 at equal rates, then 2 and 4 at rates of a half and two: rho is 8 both times."""
    config = CoMMITConfig(
        controller=Compensated(warmup=2, normalization="product"),
        kappa_estimator=estimator,
    )
    controller = CompensatedController(config, ("vision",))
    observe(controller, {"language_model": 8.0, "vision": 1.0}, ONES, 1.0)
    assert controller.multipliers(0) == ONES
    observe(controller, {"language_model": 2.0, "vision": 4.0}, {"language_model": 0.5, "vision": 2.0}, 1.0)
    found = controller.multipliers(0)
    assert found["vision"] / found["language_model"] == pytest.approx(math.sqrt(8.0))
    assert found["vision"] * found["language_model"] == pytest.approx(1.0)


@pytest.mark.parametrize("drift", [0.0, math.nan])
def test_compensated_controller_ignores_meaningless_drift(drift):
    controller = CompensatedController(CoMMITConfig(controller=Bounded(warmup=1)), ("vision",))
    observe(controller, {"language_model": 4.0, "vision": 1.0}, ONES, 1.0)
    before = controller.multipliers(0)
    observe(controller, {"language_model": 4.0, "vision": drift}, ONES, 1.0)
    assert controller.multipliers(0) == before == pytest.approx({"language_model": 2 / 3, "vision": 4 / 3})


def test_the_trust_region_by_hand():
    """Budgets 2e-4 and 5e-5: of a nat, the drifts at the base rates are 8 times and a quarter of them, twice."""
    controller = TrustRegionController(
        CoMMITConfig(controller=TrustRegion(drift_target=1e-4, kappa_target=4.0)), ("vision",)
    )
    assert controller.starting
    assert controller.multipliers(0) == {"language_model": FIRST_STEP, "vision": FIRST_STEP}
    observe(controller, {"language_model": 1.6e-3, "vision": 1.25e-5}, ONES, 1.0)
    observe(controller, {"language_model": 1.2e-3, "vision": 1.5e-4}, {"language_model": 0.5, "vision": 2.0}, 3.0)
    assert not controller.starting
    expected = {"language_model": 8**-0.5, "vision": 2.0}
    assert controller.multipliers(0) == pytest.approx(expected)


def test_the_trust_region_forgets_how_training_began():
    """The first step moves the outputs ten thousand times as far as the others: the second wipes it out."""
    controller = TrustRegionController(
        CoMMITConfig(controller=TrustRegion(drift_target=1e-4), kappa_window=3), ("vision",)
    )
    for drift, wanted in [(1.0, 0.01), (1e-4, 1.0), (1e-4, 1.0), (1e-4, 1.0), (64e-4, 0.5)]:
        assert controller.settling
        observe(controller, dict.fromkeys(ONES, drift), ONES, 1.0)
        assert controller.multipliers(0) == pytest.approx(dict.fromkeys(ONES, wanted))
    assert not controller.settling  # of five, three are kept, which is all that the window holds


def test_unmeasured_module_does_not_keep_trust_region_settling():
    controller = TrustRegionController(CoMMITConfig(kappa_window=3), ("vision", "audio"))
    for _ in range(5):
        assert controller.settling
        observe(controller, {"language_model": 1e-4, "vision": 1e-4, "audio": 0.0}, {**ONES, "audio": 1.0}, 1.0)
    assert not controller.settling


def test_trust_region_leaves_unmeasured_module_alone():
    controller = TrustRegionController(
        CoMMITConfig(controller=TrustRegion(drift_target=1e-4, bound=50.0)), ("vision", "audio")
    )
    ones = {**ONES, "audio": 1.0}
    observe(controller, {"language_model": 1e-4, "vision": 1e-30, "audio": 0.0}, ones, 1.0)
    expected = {"language_model": 1.0, "vision": 50.0, "audio": FIRST_STEP}
    assert controller.multipliers(0) == pytest.approx(expected)
    observe(
        controller, {"language_model": 1e-4, "vision": 1e-30, "audio": 1e-4}, {**ones, "audio": 0.0}, 1.0
    )  # at rest
    assert controller.multipliers(0) == pytest.approx(expected)


def test_the_trust_region_lets_no_rate_run_away():
    """All drifts fade, as where nothing is left to learn: each rate ends at its bound times its own first."""
    controller = TrustRegionController(
        CoMMITConfig(controller=TrustRegion(drift_target=1e-4, bound=50.0), kappa_window=1), ("vision",)
    )
    for drift in (1e-4, 1e-6, 1e-12):
        observe(controller, {"language_model": drift, "vision": 4 * drift}, ONES, 1.0)
        found = controller.multipliers(0)
    assert found == pytest.approx({"language_model": 50.0, "vision": 25.0})
    for loss in (0.0, math.nan):
        observe(controller, {"language_model": 1.0, "vision": 1.0}, ONES, loss)
        assert controller.multipliers(0) == found


@pytest.mark.parametrize(("answers", "times"), [(0, 1), (48, 1), (72, 2.25), (96, 4), (10_000, 4)])
def test_budget_rises_with_target_tokens(answers: int, times: float):
    given, auto = (
        TrustRegionController(CoMMITConfig(controller=TrustRegion(drift_target=t)), ("vision",))
        for t in (5e-4 * times, "auto")
    )
    for controller in (given, auto):
        observe(controller, {"language_model": 1e-3, "vision": 1e-2}, ONES, 2.0, answers)
    assert auto.multipliers(0) == pytest.approx(given.multipliers(0))


@pytest.mark.parametrize("drop", [1.0, 1e-4])
def test_trust_region_recovers_its_budget_after_sensitivity_drops(drop):
    """Whatever the first step said; after seven steps a mean of all would still be at a third of the rate."""
    controller = TrustRegionController(CoMMITConfig(controller=TrustRegion(drift_target=5e-4)), ("vision",))
    multipliers = controller.multipliers(0)
    for step in range(7):
        sensitivity = 1.0 if step == 0 else drop
        drift = {name: sensitivity * value**2 for name, value in multipliers.items()}
        observe(controller, drift, multipliers, 1.0)
        multipliers = controller.multipliers(step)
    assert multipliers == pytest.approx(dict.fromkeys(ONES, math.sqrt(5e-4 / drop)))


@pytest.mark.parametrize("normalization", ["sum", "product"])
@pytest.mark.parametrize("controller", ["bounded", "compensated"])
def test_two_encoders_are_two_loops(controller, normalization):
    """Kappa_m = rho_m (lr_X / lr_m)^2: the compensated loop ends at the target, Eq. 8 at its residual error."""
    config = CoMMITConfig(
        controller={"name": controller, "normalization": normalization, "kappa_target": 2.0},
        kappa_window=6,
        lr_update_interval=1,
    )
    rho = {"vision": 0.1, "audio": 54.0}
    loop = coordinating_controller(config, tuple(rho))
    windows = {name: RatioWindow(6, "geometric") for name in rho}
    multipliers = {"language_model": 1.0, "vision": 1.0, "audio": 1.0}
    for step in range(300):
        drift = {"language_model": 1.0, **{name: 1 / rho[name] for name in rho}}
        drift = {name: value * multipliers[name] ** 2 for name, value in drift.items()}
        for name, window in windows.items():
            window.push(drift["language_model"], drift[name])
        observe(loop, drift, multipliers, 1.0)
        kappas = {name: window.value for name, window in windows.items()}
        multipliers = loop.multipliers(step)
    expected = {name: 2.0 if controller == "compensated" else 2 * (rho[name] / 2) ** (1 / 3) for name in rho}
    assert kappas == pytest.approx(expected, rel=1e-6)
    together = sum(multipliers.values()) / 3 if normalization == "sum" else math.prod(multipliers.values())
    assert together == pytest.approx(1.0)


@pytest.mark.parametrize("controller", [Compensated(warmup=1), TrustRegion()])
def test_resuming_a_controller_with_a_memory(controller):
    config = CoMMITConfig(controller=controller, kappa_window=3)
    first, second = (coordinating_controller(config, ("vision", "audio")) for _ in range(2))
    multipliers = {"language_model": 1.1, "vision": 0.3, "audio": 1.6}
    for scale in (1.0, 0.3, 7.0, 2.0):
        observe(first, {"language_model": scale, "vision": 0.1, "audio": 0.7 * scale**2}, multipliers, 1.0)
    second.load_state_dict(first.state_dict())
    assert second.multipliers(0) == first.multipliers(0) != {}


@pytest.mark.parametrize(
    ("span", "root"), [(1, 2.0), (1.2, 1.43), (4 / 3, 1.0), (1.5, 0.82), (2, 1.0), (2.5, 0.82), (5, 0.89), (10, 0.93)]
)
def test_roots_of_equation_8(span, root):
    assert largest_root(span, 2.0) == pytest.approx(root, abs=0.005)


def test_roots_by_hand():
    assert largest_root(1.2, 2.0) == pytest.approx((5 / 3 + math.sqrt(25 / 9 - 4 / 3)) / 2)  # z^2 + 5/3 z + 1/3
    assert largest_root(2, -0.5) == pytest.approx((0.25 + math.sqrt(0.0625 + 1)) / 2)  # z^2 - z/4 - 1/4
    assert largest_root(7, 0.0) == 0.0


@pytest.mark.parametrize("span", [2.01, 2.5, 3, 4.7, 9, 30])
def test_any_window_longer_than_the_feedback_settles(span):
    assert largest_root(span, 2.0) < 1


@pytest.mark.parametrize(("exponent", "settles"), [(0.1, True), (1.0, True), (3.9, True), (4.1, False)])
def test_compensated_loop_settles_below_the_fourth_power(exponent, settles):
    factor = feedback(CoMMITConfig(controller="compensated"), exponent)
    assert (largest_root(1, factor) < 1) == settles


def test_the_span_of_a_window():
    assert window_span(CoMMITConfig(kappa_window=20, probe=Probe(interval=5), lr_update_interval=10)) == 10
    assert window_span(CoMMITConfig(kappa_window=3, probe=Probe(interval=1), lr_update_interval=10)) == 1
    assert window_span(CoMMITConfig(kappa_window=4, probe=Probe(interval=20), lr_update_interval=10)) == 4
    assert effective_span(CoMMITConfig(kappa_estimator="arithmetic"), log_sd=1.0) == pytest.approx(10 / math.e)
    assert effective_span(CoMMITConfig(kappa_estimator="geometric"), log_sd=1.0) == 10


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (PAPER, ("W=2 ", "1 in effect", "root is 2,", "explodes", "kappa_window>=127", "'compensated'")),
        (
            {"controller": "bounded", "probe": {"interval": 1}},
            ("controller='bounded'", "W=2 ", "root is 1,", "rings", "kappa_window>=30"),
        ),
        ({"controller": "literal", "kappa_window": 2}, ("W=1 ", "root is 2,", "explodes", "kappa_window>=6")),
        (
            {"controller": "bounded", "probe": {"interval": 1}, "kappa_window": 5},
            ("W=1 ", "root is 2,", "explodes", "kappa_window>=30"),
        ),
    ],
)
def test_an_unstable_configuration_is_described_with_its_numbers(settings, parts):
    message = instability(CoMMITConfig(**settings))
    assert message is not None
    assert all(part in message for part in parts), message
    window = int(message.partition("kappa_window>=")[2].partition(",")[0])
    assert instability(CoMMITConfig(**{**settings, "kappa_window": window})) is None


@pytest.mark.parametrize("settings", [{}, {"controller": "literal"}, {**PAPER, "controller": "compensated"}])
def test_a_stable_configuration_is_not_mentioned(settings):
    assert instability(CoMMITConfig(**settings)) is None
