"""What must not change: measuring leaves a training run bit for bit as it is, and control does what it says."""

import random

import pytest
import reference
import torch
from tiny import build, make_batch

from commit_tuning import BalanceMonitor, CoMMITConfig, Coordinator
from commit_tuning.config import Probe

STEPS = 50


def train(kind, wrap, steps=STEPS, config=None):
    """A plain loop with dropout, batch norm (in the plain model), clipping and a cosine schedule."""
    model, partition = build(kind)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-3, weight_decay=0.01))
    coordinator = wrap(model, optimizer, config, partition) if wrap else None
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(1)
    random.seed(1)
    losses, rates = [], []
    for step in range(steps):
        batch = make_batch(kind, 4, torch.float32, seed=step)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if coordinator:
            coordinator.step(batch)
            rates.append(coordinator.learning_rates)
        else:
            optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return losses, state, rates, (torch.rand(1).item(), random.random())


@pytest.mark.parametrize("wrap", [BalanceMonitor, Coordinator])
def test_measuring_changes_not_one_bit(kind, wrap):
    config = CoMMITConfig(method="constant", probe=Probe(interval=2, samples=3), starvation_patience=STEPS)
    losses, state, _, randomness = train(kind, None)
    measured_losses, measured_state, _, measured_randomness = train(kind, wrap, config=config)
    assert losses == measured_losses
    assert randomness == measured_randomness
    assert all(torch.equal(state[name], measured_state[name]) for name in state)


@pytest.mark.parametrize("regularizer", ["lookahead", "previous-step"])
def test_sampling_answers_changes_neither_training_nor_kappa(kind, regularizer):
    """At a weight that rounds away, a run on sampled answers is the plain one, bit for bit."""
    losses, state, _, randomness = train(kind, None, steps=12)
    weightless = {
        "regularizer": {"name": regularizer, "weight": 1e-30, "labels": "sampled"},
    }
    config = CoMMITConfig(method="constant", starvation_patience=STEPS, **weightless)
    found_losses, found_state, _, found_randomness = train(kind, Coordinator, steps=12, config=config)
    assert losses == found_losses
    assert randomness == found_randomness
    assert all(torch.equal(state[name], found_state[name]) for name in state)


def test_constant_multiplier_follows_the_scheduler_without_compounding():
    config = CoMMITConfig(method="encoder-lr-up", probe=Probe(interval=None))
    _, _, rates, _ = train("plain", Coordinator, config=config)
    base = [
        3e-3 * (1 + torch.cos(torch.tensor(torch.pi * t / STEPS, dtype=torch.float64)).item()) / 2 for t in range(STEPS)
    ]
    assert [r["language_model"] for r in rates] == pytest.approx(base, rel=1e-6)
    assert [r["vision"] for r in rates] == pytest.approx([10 * b for b in base], rel=1e-6)


def test_literal_control_is_equations_7_and_8():
    config = CoMMITConfig.paper(
        method="commit-clr", regularizer=None, kappa_window=6, lr_update_interval=4, probe={"samples": None}
    )
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    with pytest.warns(UserWarning, match="W=1.5 updates"):
        coordinator = Coordinator(model, optimizer, config, partition)
    kappas, expected = [], (1e-3, 1e-3)
    for step in range(20):
        batch = make_batch("llava", 4, torch.float32, seed=step)
        model(**batch).loss.backward()
        coordinator.step(batch)
        optimizer.zero_grad()
        rates = coordinator.learning_rates
        assert (rates["language_model"], rates["vision"]) == pytest.approx(expected, rel=1e-9)
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3] * len(optimizer.param_groups)
        kappas.append(coordinator.kappa)
        if (step + 1) % 4 == 0:
            expected = reference.learning_rates(1e-3, reference.moving_average(kappas, 6))
    assert expected != (1e-3, 1e-3)
