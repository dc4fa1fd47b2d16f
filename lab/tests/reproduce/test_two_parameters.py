"""The model with two parameters: its arithmetic by hand, its runs against the library's own loop."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import reference
import torch

from commit_lab.reproduce import two_parameters
from commit_lab.reproduce.two_parameter_model import (
    BEST,
    CLOSE,
    Setting,
    Trajectory,
    best_loss,
    dataset,
    expected,
    kappa_field,
    point,
    trajectory,
)
from commit_tuning import CoMMITConfig, Coordinator, ModulePartition
from commit_tuning.config import Probe

LITERAL = CoMMITConfig.paper(method="commit-clr", regularizer=None)
PLACES = torch.tensor([[1.2, -0.5], [0.3, 2.0], [-0.4, 0.7], [2.5, 3.0]], dtype=torch.float64).T


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def kl(old, new):
    """Textbook KL of two Bernoulli distributions with these logits."""
    p, q = sigmoid(old), sigmoid(new)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_kappa_at_a_point_by_hand():
    """At x = 1, s = 0 the logit is t, the answer is yes in 15, 4, 12, 1 of 16."""
    off = [sigmoid(1) - 15 / 16, sigmoid(1) - 4 / 16, sigmoid(-1) - 12 / 16, sigmoid(-1) - 1 / 16]
    by_x = (off[0] + off[1] - off[2] - off[3]) / 4
    by_s = (off[0] - off[1] + off[2] - off[3]) / 4
    assert (by_x, by_s) == pytest.approx((0.137309, -0.34375), abs=1e-6)
    d_x = kl(1, 1 - 0.2 * by_x)
    d_s = (kl(1, 1 - 0.3 * by_s) + kl(1, 1 + 0.3 * by_s)) / 2
    setting = Setting(language_rate=0.2, encoder_rate=0.3)
    assert float(kappa_field(*point(1.0, 0.0), setting)) == pytest.approx(d_x / d_s, rel=1e-6)
    assert d_x / d_s == pytest.approx((0.2 / 0.3) ** 2 * 0.1596, rel=0.02)  # the squares of the gradients


def test_kappa_is_quadratic_in_rates_or_nan():
    slow, fast = (kappa_field(*PLACES, Setting(language_rate=1e-4, encoder_rate=r)) for r in (1e-4, 1e-3))
    torch.testing.assert_close(slow, 100 * fast, rtol=2e-3, atol=0)
    assert math.isnan(kappa_field(*point(0.0, 1.0), Setting()))  # x = 0: the encoder has no gradient


def test_gradient_equals_autograd_and_pairs_equal_the_dataset():
    x, s = (value.clone().requires_grad_() for value in PLACES)
    wanted = torch.autograd.grad(dataset().loss(x, s).sum(), (x, s))
    for samples in (dataset(), expected()):
        torch.testing.assert_close(samples.gradient(*PLACES), wanted)
        torch.testing.assert_close(samples.loss(*PLACES), dataset().loss(*PLACES))
    moved = PLACES + 0.1
    torch.testing.assert_close(expected().drifts(*PLACES, *moved), dataset().drifts(*PLACES, *moved))


def test_the_best_point_is_the_best():
    torch.testing.assert_close(torch.stack(expected().gradient(*point(*BEST))), torch.zeros(2).double())
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (15 / 16, 12 / 16)]
    assert best_loss() == pytest.approx(sum(entropies) / 2)


def test_trajectory_repeats_with_its_seed_alone():
    setting = Setting(steps=30)
    assert trajectory(CoMMITConfig(), setting) == trajectory(CoMMITConfig(), setting)
    assert trajectory(CoMMITConfig(), setting).points != trajectory(CoMMITConfig(), replace(setting, seed=1)).points


def test_full_batch_is_descent_on_the_dataset():
    whole, shuffled = (trajectory(LITERAL, Setting(batch=size, steps=25)) for size in (None, 64))
    torch.testing.assert_close(torch.tensor(whole.points), torch.tensor(shuffled.points))
    x, s = point(*whole.points[0])
    by_x, by_s = expected().gradient(x, s)
    assert whole.points[1] == pytest.approx((float(x - 0.2 * by_x), float(s - 0.2 * by_s)))


def test_literal_control_is_equations_7_and_8():
    run = trajectory(LITERAL, Setting(steps=40))
    assert run.multipliers[:10] == [(1.0, 1.0)] * 10
    for step in range(10, 40):
        kappa = reference.moving_average(run.kappas[: step // 10 * 10], 20)
        assert run.multipliers[step] == pytest.approx(reference.learning_rates(1.0, kappa))
    assert run.multipliers[39] != run.multipliers[29]


class Model(torch.nn.Module):
    """The same model as an ordinary module: answers are tokens of a vocabulary of two."""

    def __init__(self, x, s):
        super().__init__()
        self.x, self.s = (torch.nn.Parameter(value) for value in point(x, s))

    def forward(self, text, picture, labels):
        z = self.x * (text + self.s * picture)
        logits = torch.stack((torch.zeros_like(z), z), dim=-1)[:, None]
        return SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits[:, 0], labels[:, 0]), logits=logits)


@pytest.mark.parametrize("controller", ["trust-region", "bounded", "compensated"])
def test_a_run_is_that_of_the_coordinator(controller):
    config = CoMMITConfig(controller=controller, probe=Probe(samples=None, drift_scale=1.0, shift_labels=False))
    setting = Setting(encoder_rate=1.0, steps=70, batch=None)
    samples, model = dataset(), Model(*setting.start)
    batch = {"text": samples.text, "picture": samples.picture, "labels": samples.answer.long()[:, None]}
    partition = ModulePartition({"language_model": [model.x], "encoder": [model.s]})
    optimizer = torch.optim.SGD(partition.param_groups({"language_model": 0.2, "encoder": 1.0}))
    coordinator, points = Coordinator(model, optimizer, config, partition), [setting.start]
    for _ in range(setting.steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        coordinator.step(batch)
        points.append((model.x.item(), model.s.item()))
    torch.testing.assert_close(torch.tensor(trajectory(config, setting).points), torch.tensor(points))


def test_trajectory_knows_when_it_arrived_and_settled():
    near, far = CLOSE * best_loss() - 1e-9, CLOSE * best_loss() + 1e-9
    run = Trajectory([], [far, near, far, near, near], [], [])
    assert (run.arrived, run.settled) == (1, 3)
    never = Trajectory([], [far, near, math.nan], [math.nan] * 10 + [2.0] * 10, [])
    assert (never.arrived, never.settled) == (1, None)
    assert math.isnan(never.final_kappa)
    assert Trajectory([], [1.0, 3.0] * 10, [2.0, 8.0] * 10, []).final_loss == 2.0
    assert Trajectory([], [], [2.0, 8.0] * 10, []).final_kappa == pytest.approx(4.0)


def encoder_steps(run):
    return [after[1] - before[1] for before, after in pairwise(run.points)]


def test_the_two_dilemmas_are_there():
    """A slow encoder's run never comes close; a fast one's leaps about where equal rates do not."""
    constant = CoMMITConfig(method="constant")
    slow, fast = (trajectory(constant, panel.setting) for panel in two_parameters.PANELS)
    equal = trajectory(constant, Setting())
    assert slow.arrived is None
    assert equal.settled == equal.arrived < 60
    turns = [sum(a * b < 0 for a, b in pairwise(encoder_steps(run))) for run in (equal, fast)]
    assert turns[1] > 80 > 60 > turns[0]


def test_the_figure_and_its_record(tmp_path, monkeypatch):
    panels = [replace(panel, setting=replace(panel.setting, steps=25)) for panel in two_parameters.PANELS]
    monkeypatch.setattr(two_parameters, "PANELS", panels)
    monkeypatch.setattr(
        two_parameters, "NO_NOISE", replace(two_parameters.NO_NOISE, setting=Setting(batch=None, steps=25))
    )
    monkeypatch.setattr(two_parameters, "GRID", 40)
    text, path = two_parameters.figure1(tmp_path, seeds=2), tmp_path / "figure1.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    record = json.loads(path.with_suffix(".json").read_text())
    arm = record["panels"]["b"]["trajectories"]["Trust region, our default"]
    run = trajectory(CoMMITConfig(), panels[1].setting)
    assert arm["points"] == [list(place) for place in run.points]
    assert (len(arm["runs"]), arm["runs"][0]["final_loss"]) == (2, run.final_loss)
    assert record["best"]["loss"] == best_loss()
    rows = [line for line in text.splitlines() if line.startswith("| Constant LR |")]
    assert len(rows) == 3
    assert "never" in rows[0]


def test_table_counts_arrivals_and_names_the_best_arm():
    def run(losses, kappa):
        return Trajectory([], [1.0] * 20 + losses, [kappa] * 20, [])

    near = [best_loss()] * 20
    arms = {"One": [run(near, 2.0), run([1.0] * 20, 8.0)], "Two": [run(near, math.nan)] * 2}
    text = two_parameters._table(two_parameters.NO_NOISE, arms)
    assert "| One | 0.699 | 20 (1 of 2) | 20 (1 of 2) | 4 |" in text
    assert "| Two | 0.3981 | 20 | 20 | none: a module stands still |" in text
    assert text.rstrip().endswith("Lowest loss at the end: Two.")
