"""Every fast path against `reference.py`, in float64."""

import copy

import pytest
import reference
import torch
from tiny import build, make_batch

from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import Probe
from commit_tuning.measure.forward import TransformersForward, evaluation_mode, forward_pass
from commit_tuning.measure.probe import DriftProbe, Snapshot
from commit_tuning.paper.previous_step import previous_step_gradients

F64 = torch.float64


def names_of(partition):
    return {module: list(partition.named_parameters(module)) for module in partition}


def take_step(model, partition, batch):
    """A step in evaluation mode, so that nothing but parameters changes."""
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2))
    model.eval()(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("lr", [1e-2, 1e-6])
def test_drifts_and_kappa(kind, lr):
    model, partition = build(kind, F64)
    batch = make_batch(kind, 6, F64)
    config = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))
    coordinator = Coordinator(model, torch.optim.AdamW(partition.param_groups(lr=lr)), config, partition)
    model(**batch).loss.backward()
    before = copy.deepcopy(model)
    coordinator.step(batch)
    expected = reference.module_drifts(before, model, names_of(partition), batch)
    tolerance = 1e-6 if lr == 1e-2 else 1e-3  # the textbook KL of the reference loses digits on tiny drifts
    assert coordinator.drift == pytest.approx(expected, rel=tolerance)
    kappa = reference.balance_coefficient(expected["language_model"], expected["vision"])
    assert coordinator.kappa == pytest.approx(kappa, rel=tolerance)
    assert coordinator.kappas == {"vision": coordinator.kappa}
    assert all(value > 0 for value in expected.values())


@pytest.mark.parametrize("projector", ["language_model", "own"])
@pytest.mark.parametrize("kind", ["llava", "blip2"], indirect=True)
def test_gradients_and_limit_wherever_the_projector_is(kind, projector):
    """Regularisers and forward mode see what a projector does to the features, too."""
    model, _ = build(kind, F64)
    partition, batch = partition_model(model, projector), make_batch(kind, 5, F64)
    before, snapshot = copy.deepcopy(model), Snapshot(partition, partition)
    probe = DriftProbe(forward_pass(model), partition, [batch], shift=True)
    take_step(model, partition, batch)
    lookahead = reference.lookahead_gradients(before, model, names_of(partition), batch)
    previous = reference.previous_step_gradients(before, model, names_of(partition), batch)
    found = previous_step_gradients(forward_pass(model), partition, [batch], snapshot, shift=True)
    for module in partition:
        assert_same_and_not_zero(probe.gradients(module), lookahead[module])
        assert_same_and_not_zero(found[module], previous[module])
        with torch.no_grad(), evaluation_mode(model):
            assert probe.limit(module) == pytest.approx(probe.drift_at(module, 1e-4) * 1e8, rel=1e-2)


@pytest.mark.parametrize("kind", ["llava", "blip2"], indirect=True)
def test_reused_features_give_the_full_forward_drift(kind):
    batch = make_batch(kind, 4, F64)
    results = []
    for reuse in (True, False):
        model, partition = build(kind, F64)
        probe = DriftProbe(TransformersForward(model, reuse), partition, [batch], shift=True)
        take_step(model, partition, batch)
        results.append(probe.measure())
    assert results[0].drift == pytest.approx(results[1].drift, rel=1e-9)
    assert set(results[0].h) == {"language_model", "vision"}


def test_eight_micro_batches_are_one_batch_of_eight(kind):
    batch = make_batch(kind, 8, F64)
    pieces = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(8)]
    drifts = []
    for micro_batches in ([batch], pieces):
        model, partition = build(kind, F64)
        probe = DriftProbe(forward_pass(model), partition, micro_batches, shift=True)
        take_step(model, partition, batch)
        drifts.append(probe.measure().drift)
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-9)


def test_lookahead_gradients(kind):
    model, partition = build(kind, F64)
    batch = make_batch(kind, 5, F64)
    pieces = [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}]
    before = copy.deepcopy(model)
    probe = DriftProbe(forward_pass(model), partition, pieces, shift=True)
    take_step(model, partition, batch)
    expected = reference.lookahead_gradients(before, model, names_of(partition), batch)
    for module in partition:
        assert_same_and_not_zero(probe.gradients(module), expected[module])


def test_previous_step_gradients(kind):
    model, partition = build(kind, F64)
    batch, next_batch = make_batch(kind, 5, F64), make_batch(kind, 5, F64, seed=1)
    previous, snapshot = copy.deepcopy(model), Snapshot(partition, partition)
    take_step(model, partition, batch)
    pieces = [{k: v[:2] for k, v in next_batch.items()}, {k: v[2:] for k, v in next_batch.items()}]
    found = previous_step_gradients(forward_pass(model), partition, pieces, snapshot, shift=True)
    expected = reference.previous_step_gradients(previous, model, names_of(partition), next_batch)
    for module in partition:
        assert_same_and_not_zero(found[module], expected[module])


def test_printed_regulariser_has_no_gradient(kind):
    """Why there are two readings: d(P_t || P_{t+1}) differentiated at theta_t is zero."""
    model, partition = build(kind, F64)
    batch = make_batch(kind, 4, F64)
    gradients = reference.lookahead_gradients(model, model, names_of(partition), batch)
    assert max(float(g.abs().max()) for module in partition for g in gradients[module]) < 1e-8


def assert_same_and_not_zero(found, expected):
    norm = torch.cat([g.flatten() for g in expected]).norm()
    error = torch.cat([(f - e).flatten() for f, e in zip(found, expected, strict=True)]).norm()
    assert norm > 1e-6
    assert error <= 1e-6 * norm


@pytest.mark.parametrize("kind", ["llava", "blip2"], indirect=True)
@pytest.mark.parametrize("regularizer", ["lookahead", "previous-step"])
def test_no_probe_holds_logits_of_the_whole_sequence(kind, regularizer):
    model, partition = build(kind)
    batch = make_batch(kind, 6, torch.float32)
    config = CoMMITConfig(
        method="commit", regularizer=regularizer, kappa_window=30, probe=Probe(interval=1, samples=None)
    )
    coordinator = Coordinator(model, torch.optim.AdamW(partition.param_groups(lr=1e-3)), config, partition)
    answers = int((batch["labels"][:, 1:] != -100).sum())
    rows = []
    for _ in range(2):
        model(**batch).loss.backward()
        handle = model.get_output_embeddings().register_forward_hook(
            lambda module, inputs, output: rows.append(output.shape[:-1].numel())
        )
        coordinator.step(batch)
        handle.remove()
    assert rows
    assert set(rows) == {answers}
