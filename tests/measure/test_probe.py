"""H of Eq. 6 by hand, samples taken, and the model left as it was."""

import contextlib
import random

import pytest
import torch
from tiny import build, make_batch
from torch import nn

from commit_tuning import CoMMITConfig, Coordinator
from commit_tuning.config import Lookahead, Probe
from commit_tuning.measure import divergence
from commit_tuning.measure.displacement import Displacement
from commit_tuning.measure.forward import InputNorms, evaluation_mode, forward_pass
from commit_tuning.measure.probe import DriftProbe, Snapshot, _unit_roundoff, learning_steps


def test_learning_steps_by_hand():
    norms = [InputNorms(9.0, {"vision": 4.0}, {"vision": 1.0}), InputNorms(16.0, {"vision": 12.0}, {"vision": 3.0})]
    found = learning_steps({"language_model": 100.0, "vision": 49.0}, norms)
    assert found == {"language_model": 10.0 / 4.0, "vision": 7.0 / (5.0 + 2.0)}
    assert learning_steps({"language_model": 1.0}, [None]) == {}


@pytest.mark.parametrize("kind", ["llava", "blip2"], indirect=True)
def test_input_norms_are_those_of_the_real_inputs(kind):
    model, _ = build(kind)
    batch = make_batch(kind, 2, torch.float32)
    batch["attention_mask"][1, -2:] = 0
    forward = forward_pass(model)
    with torch.no_grad(), evaluation_mode(model):
        features = forward.features(batch)
        norms = forward.input_norms(batch, features)
    kept = torch.cat([batch["input_ids"][0, 4:], batch["input_ids"][1, 4:-2]])  # four image tokens lead each row
    embeddings = model.get_input_embeddings()(kept).detach()
    assert norms.text == pytest.approx(float(embeddings.square().sum()), rel=1e-5)
    assert norms.raw["vision"] == pytest.approx(float(batch["pixel_values"].square().sum()), rel=1e-5)
    assert norms.features["vision"] > 0


@pytest.mark.parametrize("scale", [1.0, "auto"])
def test_chunk_size_does_not_change_the_measurement(scale, monkeypatch):
    found = []
    for elements in (1 << 24, 50):  # of a vocabulary of 24: two rows
        monkeypatch.setattr(divergence, "_CPU_CHUNK", elements)
        model, partition = build("llava")
        batch = make_batch("llava", 4, torch.float32)
        probe = DriftProbe(forward_pass(model), partition, [batch], shift=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0 + 1e-6)
        measured = probe.measure(Displacement(scale))
        readings = [number for reading in measured.readings.values() for number in (reading.drift, reading.floor)]
        found.append([*readings, measured.loss, *measured.h.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-5, nan_ok=True)


def test_step_norm_covers_decay_and_regulariser():
    model, partition = build("plain")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2, weight_decay=0.1))
    config = CoMMITConfig(method="constant", regularizer=Lookahead(weight=100.0), probe=Probe(interval=2))
    coordinator = Coordinator(model, optimizer, config, partition)
    for step in range(2):
        before = {name: [p.detach().clone() for p in partition[name]] for name in partition}
        model(**(batch := make_batch("plain", 3, torch.float32))).loss.backward()
        coordinator.step(batch)
        optimizer.zero_grad()
        for name in partition:
            moved = torch.cat([(p - old).flatten() for p, old in zip(partition[name], before[name], strict=True)])
            expected = None if step == 1 else pytest.approx(float(moved.detach().norm()), rel=1e-6)
            assert coordinator.metrics()[f"step_norm/{name}"] == expected


def test_drift_gradient_along_the_step_is_twice_drift(kind):
    """D = v'Fv / 2 to second order in a step v, so its gradient after the step is Fv, and v'Fv is 2 d."""
    model, partition = build(kind, torch.float64)
    probe = DriftProbe(forward_pass(model), partition, [make_batch(kind, 4, torch.float64)], shift=True)
    steps = {name: [1e-6 * torch.randn_like(p) for p in partition[name]] for name in partition}
    with torch.no_grad():
        for name in partition:
            torch._foreach_add_(partition[name], steps[name])
    drift = probe.measure().drift
    for name in partition:
        along = sum(float((g * v).sum()) for g, v in zip(probe.gradients(name), steps[name], strict=True))
        assert along == pytest.approx(2 * drift[name], rel=5e-3)


def test_a_probe_leaves_modes_and_random_states_alone():
    model, _ = build("plain")
    model.encoder.eval()
    torch.manual_seed(3)
    random.seed(3)
    expected = (torch.rand(1).item(), random.random())
    torch.manual_seed(3)
    random.seed(3)
    with contextlib.suppress(ZeroDivisionError), evaluation_mode(model):
        assert not model.training
        torch.rand(5)
        random.random()
        raise ZeroDivisionError
    assert (torch.rand(1).item(), random.random()) == expected
    assert model.training
    assert not model.encoder.training


def test_snapshot_swaps_in_and_out_exactly():
    model, partition = build("plain")
    snapshot = Snapshot(partition, ["vision"])
    old = [p.detach().clone() for p in partition["vision"]]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    new = [p.detach().clone() for p in model.parameters()]
    with snapshot.swapped_in(["vision"]):
        assert all(torch.equal(a, b) for a, b in zip(old, partition["vision"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(new, model.parameters(), strict=True))


def test_swapped_weights_show_under_autocast():
    """Inside one autocast context a cached cast would hide them, and the drift would read exactly zero."""
    model, partition = build("llava")
    batch = make_batch("llava", 2, torch.float32)
    forward = forward_pass(model)
    mask = batch["labels"] != -100
    snapshot = Snapshot(partition, partition)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), evaluation_mode(model):
        now = forward.logits(batch, mask, {})
        with snapshot.swapped_in(["language_model"]):
            before = forward.logits(batch, mask, {})
    assert now.dtype == torch.bfloat16
    assert not torch.equal(now, before)


class _Quantised(nn.Linear):
    """A layer that stores bytes and says in which format it computes, as those of bitsandbytes do."""

    compute_dtype = torch.float16


@pytest.mark.parametrize(
    ("inside", "eps"),
    [
        (nn.Linear(2, 2), 2.0**-23),
        (nn.Linear(2, 2).to(torch.bfloat16), 2.0**-7),
        (nn.Linear(2, 2).to(torch.float8_e4m3fn), 2.0**-23),
        (_Quantised(2, 2), 2.0**-10),
    ],
)
def test_roundoff_is_that_of_the_lowest_precision(inside: nn.Module, eps: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), inside, nn.Linear(2, 2))
    assert _unit_roundoff(model, torch.zeros(1, 2)) == eps / 2
