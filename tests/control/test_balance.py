"""Hand-worked numbers for Eq. 4, 7 and 8."""

import math

import pytest
import reference
import torch

from commit_tuning import CoMMITConfig
from commit_tuning.control.equation8 import learning_rate_multipliers
from commit_tuning.measure.balance import RatioWindow, balance_coefficient
from commit_tuning.measure.divergence import TargetPositions, token_kl
from commit_tuning.measure.probe import Measurement
from commit_tuning.paper.literal import LiteralController

DRIFTS = [(8.0, 1.0), (1.0, 2.0), (2.0, 1.0)]  # kappa 8, 1/2, 2


@pytest.mark.parametrize(
    ("estimator", "expected"), [("arithmetic", 10.5 / 3), ("geometric", 2.0), ("ratio", 11.0 / 4.0)]
)
def test_moving_averages(estimator, expected):
    window = RatioWindow(3, estimator)
    for drifts in DRIFTS:
        window.push(*drifts)
    assert window.value == pytest.approx(expected, rel=1e-12)


def test_unfilled_window_averages_its_measurements():
    window = RatioWindow(2, "arithmetic")
    assert math.isnan(window.value)
    seen = []
    for drifts in DRIFTS:
        window.push(*drifts)
        seen.append(window.value)
    assert seen == [8.0, 4.25, 1.25]
    kappas = [balance_coefficient(*d) for d in DRIFTS]
    assert seen == [reference.moving_average(kappas[: i + 1], 2) for i in range(3)]


@pytest.mark.parametrize("drifts", [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf), (0.0, 0.0)])
def test_meaningless_drift_gives_no_kappa(drifts):
    window = RatioWindow(3, "arithmetic")
    window.push(*drifts)
    assert math.isnan(balance_coefficient(*drifts))
    assert len(window) == 0


@pytest.mark.parametrize("kappa", [1e-6, 0.25, 1.0, 3.0, 1e6])
def test_two_modules_are_equation_8(kappa):
    language, encoder = reference.learning_rates(1.0, kappa)
    found = learning_rate_multipliers({"vision": kappa})
    assert found["language_model"] == pytest.approx(language, rel=1e-12)
    assert found["vision"] == pytest.approx(encoder, rel=1e-12)
    literal = LiteralController(CoMMITConfig(kappa_window=1), ("vision",))
    literal.observe(Measurement.of_drift({"language_model": kappa, "vision": 1.0}, loss=1.0), found)
    assert literal.multipliers(1) == pytest.approx(found)


def test_three_modules():
    found = learning_rate_multipliers({"vision": 2.0, "audio": 0.5})
    assert found == pytest.approx({"language_model": 3 / 3.5, "vision": 6 / 3.5, "audio": 1.5 / 3.5})
    product = learning_rate_multipliers({"vision": 2.0, "audio": 4.0}, "product")  # the geometric mean of 1, 2, 4 is 2
    assert product == pytest.approx({"language_model": 0.5, "vision": 1.0, "audio": 2.0})


def test_kl_by_hand_and_at_the_edges():
    old, new = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert token_kl(old, new).item() == pytest.approx(by_hand, rel=1e-6)
    assert token_kl(old, old).item() == 0.0
    far = token_kl(torch.tensor([[0.0, -200.0]]), torch.tensor([[-200.0, 0.0]]))
    assert far.item() == pytest.approx(200.0, rel=1e-6)


def test_a_word_that_cannot_be_said_adds_nothing():
    old, new = torch.tensor([[1.0, 2.0, -math.inf]]), torch.tensor([[1.1, 2.0, -math.inf]])
    assert token_kl(old, new) == pytest.approx(token_kl(old[:, :2], new[:, :2]))
    said = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]])
    assert token_kl(*said).item() == pytest.approx(math.log(2.0))  # KL((1, 0) || (1/2, 1/2))


def test_tiny_drifts_survive_float32():
    """The textbook form in float32 is wrong by more than the value itself here."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(4, 49152, generator=generator, dtype=torch.float64) * 3
    new = old + torch.randn(4, 49152, generator=generator, dtype=torch.float64) * 1e-4
    exact = reference.drift([list(old.log_softmax(-1))], [list(new.log_softmax(-1))])
    found = token_kl(old.float(), new.float())
    assert (found >= 0).all()
    assert found.mean().item() == pytest.approx(exact.item(), rel=1e-2)


def test_answer_positions_by_hand():
    labels = torch.tensor([[-100, 5, 6, -100], [-100, -100, -100, -100], [7, -100, -100, 8]])
    shifted = TargetPositions.from_labels(labels)
    assert shifted.mask.nonzero().tolist() == [[0, 0], [0, 1], [2, 2]]  # the 7 at position 0 has nothing before it
    assert shifted.samples == 2
    assert shifted.total(torch.tensor([1.0, 3.0, 10.0])).item() == 12.0
    aligned = TargetPositions.from_labels(labels, shift=False)
    assert aligned.mask.nonzero().tolist() == [[0, 1], [0, 2], [2, 0], [2, 3]]
