"""A drift under rounding noise: by hand, in forward mode, and on a model under autocast."""

import copy
import math

import pytest
import torch
from small_experiment import write_iconqa, write_llava
from tiny import build, make_batch
from torch import nn

from commit_tuning import BalanceMonitor, CoMMITConfig, Coordinator, partition_model
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.measure.displacement import LEAST, Displacement, Reading, moving, quadratic_drift
from commit_tuning.measure.divergence import token_kl
from commit_tuning.measure.forward import evaluation_mode, forward_pass
from commit_tuning.measure.probe import DriftProbe
from commit_tuning.models.load import load_model

F64 = torch.float64


def noisy(drift, floor):
    return lambda s: drift * s**2 + floor


def test_a_clear_drift_is_taken_as_it_is():
    asked = []

    def drift_at(scale):
        asked.append(scale)
        return noisy(1e-4, 1e-9)(scale)

    displacement = Displacement("auto")
    for _ in range(3):
        reading = displacement.read("vision", drift_at, rounding=1e-10)
        assert (reading.drift, reading.scale) == (1e-4 + 1e-9, 1.0)
    assert reading.floor == pytest.approx(1e-9)
    assert asked == [1.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("drift", [1e-4, 1e-7, 1e-10])
def test_drift_below_the_floor_is_lifted(drift):
    displacement = Displacement("auto")
    for _ in range(3):
        reading = displacement.read("vision", noisy(drift, 1e-5), rounding=3e-6)
        assert reading.drift == pytest.approx(drift, rel=1e-6)
        assert reading.scale > 1
        assert 1e-5 * 10 < drift * reading.scale**2 < 0.1


def test_the_cubic_term_cancels():
    reading = Displacement("auto").read("vision", lambda s: 1e-6 * s**2 + 3e-8 * s**3 + 1e-5, rounding=3e-6)
    assert reading.drift == pytest.approx(1e-6, rel=0.02)


def test_large_drift_replaces_forward_mode_by_full_steps():
    displacement = Displacement("auto")
    first = displacement.read("vision", noisy(1e-6, 1e-5), 3e-6, limit=lambda: 1.1e-6)
    assert (first.drift, first.scale) == (1.1e-6, 0.0)
    displacement.read("vision", noisy(1e-3, 1e-5), 3e-6, limit=lambda: 1e-3)
    assert displacement.read("vision", noisy(1e-3, 1e-5), 3e-6, limit=lambda: 1e-3).scale == 1.0


def test_a_drift_that_no_displacement_lifts_is_refused():
    reading = Displacement("auto").read("vision", lambda s: 1e-5, rounding=1e-5)
    assert math.isnan(reading.drift)
    assert reading.floor == 1e-5


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_no_drift_and_no_number_pass_through(value):
    reading = Displacement("auto").read("vision", lambda s: value, rounding=1e-9)
    assert reading.drift == pytest.approx(value, nan_ok=True)


def test_a_fixed_scale():
    reading = Displacement(3.0).read("vision", noisy(2.0, 0.9), rounding=1e-9)
    assert (reading.drift, reading.scale) == (pytest.approx(2.1), 3.0)


def test_what_was_learnt_can_be_resumed():
    first, second = Displacement("auto"), Displacement("auto")
    first.read("vision", noisy(1e-7, 1e-5), 3e-6)
    second.load_state_dict(first.state_dict())
    assert second.read("vision", noisy(1e-7, 1e-5), 3e-6) == first.read("vision", noisy(1e-7, 1e-5), 3e-6)


def test_forward_mode_is_the_limit_of_small_displacements(kind):
    model, partition = build(kind, F64)
    batch = make_batch(kind, 4, F64)
    probe = DriftProbe(forward_pass(model), partition, [batch], shift=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-5)
    after = copy.deepcopy(model.state_dict())
    limit = probe.measure(Always("limit")).drift
    small = probe.measure(Displacement(1e-2)).drift
    assert limit == pytest.approx(small, rel=1e-2)
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())


class Always(Displacement):
    """Every reading in forward mode, or by displacements alone."""

    def __init__(self, way):
        super().__init__("auto")
        self.way = way

    def read(self, module, drift_at, rounding, limit=lambda: None):
        if self.way == "limit":
            return Reading(limit(), math.nan, 0.0)
        return super().read(module, drift_at, rounding)


def test_quadratic_drift_is_the_second_order_of_kl():
    model = nn.Linear(3, 5).double()
    x, velocity = torch.randn(2, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    before = model(x)
    with torch.no_grad(), moving(model, {id(model.weight): velocity}):
        drift = quadratic_drift(model(x))
    with torch.no_grad():
        model.weight.add_(velocity, alpha=1e-4)
    torch.testing.assert_close(drift, token_kl(before, model(x)) / 1e-8, rtol=1e-3, atol=0)


def test_logits_that_nothing_moves_carry_no_derivative():
    with moving(nn.Linear(2, 2), {}):
        assert quadratic_drift(torch.zeros(1, 4)) is None


class Opaque(torch.autograd.Function):
    """A kernel without a forward-mode derivative."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def test_model_without_derivative_is_moved_and_restored():
    model, partition = build("plain", F64)
    model.head.register_forward_hook(lambda module, inputs, output: Opaque.apply(output) / 2)
    batch = make_batch("plain", 4, F64)
    probe = DriftProbe(forward_pass(model), partition, [batch], shift=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-6)
    after = copy.deepcopy(model.state_dict())
    with torch.no_grad(), evaluation_mode(model):
        assert probe.limit("vision") is None
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
    assert probe.measure(Displacement("auto")).drift["vision"] > 0


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A model, and four questions."""
    folder = tmp_path_factory.mktemp("model")
    write_llava(folder)
    model, processor = load_model(folder)
    samples = IconQA(write_iconqa(folder / "data", train=4), "train")
    return model, VisionCollator(processor)([samples[index] for index in range(4)])


@pytest.mark.parametrize(("way", "tolerance"), [("limit", 0.1), ("displaced", 0.3)])
def test_bfloat16_does_not_hide_a_small_drift(tuned, way, tolerance):
    model, batch = copy.deepcopy(tuned[0]), tuned[1]
    exact_model = copy.deepcopy(model).double()
    exact_batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    partition, exact_partition = partition_model(model), partition_model(exact_model)
    with torch.autocast("cpu", torch.bfloat16):
        probe = DriftProbe(forward_pass(model), partition, [batch], shift=True)
    exact = DriftProbe(forward_pass(exact_model), exact_partition, [exact_batch], shift=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter, twin in zip(model.parameters(), exact_model.parameters(), strict=True):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-5)
            twin.copy_(parameter)
    with torch.autocast("cpu", torch.bfloat16):
        found, naive = probe.measure(Always(way)).drift, probe.measure().drift
    truth = exact.measure().drift
    for module in partition:
        assert naive[module] > 2 * truth[module]
        assert found[module] == pytest.approx(truth[module], rel=tolerance)


def test_the_record_says_how_the_drift_was_taken(tuned):
    model, batch = copy.deepcopy(tuned[0]), tuned[1]
    partition = partition_model(model)
    monitor = BalanceMonitor(model, torch.optim.SGD(partition.param_groups(lr=1e-5)), partition=partition)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch).loss.backward()
        monitor.step(batch)
    record = monitor.metrics()
    for module in partition:
        assert record[f"drift_scale/{module}"] == 0.0
        assert 0 < monitor.noise_floor[module] == record[f"noise_floor/{module}"]


def test_the_paper_takes_whole_steps():
    model, partition = build("plain", F64)
    batch = make_batch("plain", 4, F64)
    paper = CoMMITConfig.paper(method="constant")
    coordinator = Coordinator(model, torch.optim.SGD(partition.param_groups(lr=1e-9)), paper, partition)
    model(**batch).loss.backward()
    coordinator.step(batch)
    assert coordinator.metrics()["drift_scale/vision"] == 1.0
    assert coordinator.metrics()["noise_floor/vision"] is None


def test_weights_that_lose_their_updates_are_named():
    model, partition = build("plain")
    model.encoder.bfloat16()
    with pytest.warns(UserWarning, match="trained in half precision: vision. "):
        BalanceMonitor(model, torch.optim.SGD(partition.param_groups(lr=1e-3)), partition=partition)


@pytest.mark.parametrize(
    ("reading", "fault"),
    [
        (Reading(1e-9, 1e-12, 1.0), None),
        (Reading(0.0, 1e-12, 1.0), "is 0"),
        (Reading(math.nan, 1e-3, 30.0), "drowns in the rounding noise of 1.0e-03 nats even at 30 times its step"),
        (Reading(math.nan, math.nan, 1.0), "is nan"),
    ],
)
def test_what_is_wrong_with_a_reading(reading, fault):
    assert reading.fault == fault


def test_intermediate_drift_is_read_without_forward_mode():
    """Clear in terms of the floor, and not in terms of its root: displaced a little, never refused."""
    displacement = Displacement("auto")
    for _ in range(3):
        reading = displacement.read("vision", noisy(1e-8, 1e-13), rounding=1e-13)
        assert reading.drift == pytest.approx(1e-8, rel=1e-4)
        assert reading.scale == LEAST
    forward = displacement.read("language_model", noisy(1e-8, 1e-13), rounding=1e-13, limit=lambda: 1.01e-8)
    assert (forward.drift, forward.scale) == (1.01e-8, 0.0)


def test_a_displacement_that_overflows_is_drawn_back():
    """Without a forward mode, and with logits that overflow beyond some displacement: a shorter one is tried."""
    displacement, drift_at = Displacement("auto"), noisy(1e-9, 1e-4)
    for _ in range(5):
        reading = displacement.read("vision", lambda s: drift_at(s) if abs(s) < 1500 else math.nan, rounding=1e-4)
    assert reading.drift == pytest.approx(1e-9, rel=0.1)


@pytest.mark.parametrize("limit", [None, 1e-4])
@pytest.mark.parametrize("nothing", [0.0, float("nan")])
def test_a_step_that_moves_nothing_teaches_nothing(nothing, limit):
    """A warm-up from zero, a module at rest, a skipped step: the floor is taken at the first drift there is."""
    displacement = Displacement("auto")
    still = displacement.read("vision", lambda s: nothing, rounding=1e-10, limit=lambda: limit)
    assert not still.drift > 0
    reading = displacement.read("vision", noisy(1e-4, 1e-9), rounding=1e-10, limit=lambda: limit)
    assert (reading.drift, reading.scale) == (1e-4 + 1e-9, 1.0)
    assert reading.floor == pytest.approx(1e-9)
