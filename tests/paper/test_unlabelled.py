"""Answers sampled from the model: which, how long, and nothing else changed."""

import copy

import pytest
import reference
import torch
from families.catalogue import build as build_family
from tiny import build, make_batch

from commit_tuning import CoMMITConfig, Coordinator
from commit_tuning.config import Probe
from commit_tuning.errors import BatchError
from commit_tuning.measure.divergence import TargetPositions
from commit_tuning.measure.forward import forward_pass
from commit_tuning.paper.sampled_answers import sample_answers


def certain(kind):
    """A model whose best token has all of the probability."""
    model, _ = build(kind)
    head = model.head if kind == "plain" else model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1e5)
    return model.eval()


def greedy(model, batch):
    """Token by token through the whole model: all but the last answer token replaced by the best one."""
    ids = batch["input_ids"].clone()
    for row, labels in enumerate(batch["labels"]):
        places = (labels != -100).nonzero().flatten().tolist()
        for place in places[:-1]:
            with torch.no_grad():
                ids[row, place] = model(**{**batch, "input_ids": ids}).logits[row, place - 1].argmax()
    return ids


def test_certain_model_samples_its_greedy_answer(kind):
    model, batch = certain(kind), make_batch(kind, 4, torch.float32)
    [sampled] = sample_answers(forward_pass(model), [batch], shift=True, seed=0)
    expected = greedy(model, batch)
    assert not torch.equal(expected, batch["input_ids"])
    assert torch.equal(sampled["input_ids"], expected)
    answers = batch["labels"] != -100
    assert torch.equal(sampled["labels"][answers], expected[answers])
    assert (sampled["labels"][~answers] == -100).all()


def test_an_answer_ends_where_the_model_ends_it():
    model, batch = certain("llava"), make_batch("llava", 4, torch.float32)
    said = greedy(model, batch)
    assert forward_pass(model).end_tokens == (2,)
    model.generation_config.eos_token_id = [int(said[0, 5]), 999]  # the first token of the first answer
    [sampled] = sample_answers(forward_pass(model), [batch], shift=True, seed=0)
    for row, labels in enumerate(batch["labels"]):
        places = (labels != -100).nonzero().flatten().tolist()
        ends = [number for number, place in enumerate(places[:-1], 1) if said[row, place] == said[0, 5]]
        assert int((sampled["labels"][row] != -100).sum()) == (ends or [len(places)])[0]
    assert int((sampled["labels"][0] != -100).sum()) == 1
    assert TargetPositions.from_labels(sampled["labels"]).samples == 4


@pytest.mark.parametrize("kind", ["llava", "blip2"], indirect=True)
def test_a_placeholder_of_the_image_is_never_said(kind):
    """Said, it would ask for one more feature of the picture than there is."""
    model, batch = certain(kind), make_batch(kind, 4, torch.float32)
    said = greedy(model, batch)
    forward = forward_pass(model)
    assert forward.placeholder_tokens == (3,)
    forward.placeholder_tokens = (3, int(said[0, 5]))
    [sampled] = sample_answers(forward, [batch], shift=True, seed=0)
    assert int(sampled["input_ids"][0, 5]) != int(said[0, 5])


@pytest.mark.parametrize("shift", [True, False])
def test_tokens_come_as_often_as_the_model_says(shift):
    model, _ = build("plain")
    row = {key: value[:1] for key, value in make_batch("plain", 1, torch.float32).items()}
    row["labels"] = torch.full((1, 9), -100)
    row["labels"][0, 5:7] = 1
    batch = {key: value.repeat_interleave(20_000, dim=0) for key, value in row.items()}
    [sampled] = sample_answers(forward_pass(model), [batch], shift=shift, seed=0)
    place = 4 if shift else 5  # of the logits that predict the first answer token
    with torch.no_grad():
        expected = model.eval()(**row).logits[0, place].softmax(-1)
    found = sampled["input_ids"][:, place + 1].bincount(minlength=24) / 20_000
    assert float((found - expected).abs().max()) < 0.01  # the standard error of a share of 0.1 is 0.002
    assert torch.equal(sampled["labels"][:, 5], sampled["input_ids"][:, place + 1])
    unread = [column for column in range(9) if column != place + 1]
    assert torch.equal(sampled["input_ids"][:, unread], batch["input_ids"][:, unread])


def test_the_seed_decides_and_nothing_is_left_behind(kind):
    model, _ = build(kind)
    batch = make_batch(kind, 8, torch.float32)
    kept, state = copy.deepcopy(batch), torch.get_rng_state()
    runs = [sample_answers(forward_pass(model), [batch, batch], True, seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(batch[key], kept[key]) for key in batch)
    first, again, other = ([part["input_ids"] for part in run] for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])  # the micro-batches of a step draw on


@pytest.mark.parametrize("regularizer", ["lookahead", "previous-step"])
def test_regulariser_uses_drift_on_sampled_answers(kind, regularizer):
    config = CoMMITConfig(
        method="constant", regularizer={"name": regularizer, "labels": "sampled"}, probe=Probe(interval=1, samples=None)
    )
    model, partition = build(kind, torch.float64)
    optimizer = torch.optim.SGD(partition.param_groups(lr=0.1))
    coordinator = Coordinator(model.eval(), optimizer, config, partition)
    modules = {name: list(partition.named_parameters(name)) for name in partition}
    states = []
    for step in range(2):
        model(**(batch := make_batch(kind, 4, torch.float64, seed=step))).loss.backward()
        before = copy.deepcopy(model)
        [sampled] = sample_answers(forward_pass(before), [batch], True, seed=step)
        optimizer.step()
        plain = copy.deepcopy(model)
        model.load_state_dict(before.state_dict())
        coordinator.step(batch)
        optimizer.zero_grad()
        states.append((before, plain))
    if regularizer == "lookahead":
        gradients = reference.lookahead_gradients(before, plain, modules, sampled)
    else:
        gradients = reference.previous_step_gradients(states[0][0], before, modules, sampled)
    found, start = dict(model.named_parameters()), dict(plain.named_parameters())
    for module, names in modules.items():
        ascent = torch.cat([(found[n] - start[n]).flatten() for n in names])
        expected = 0.1 * torch.cat([g.flatten() for g in gradients[module]])
        assert expected.norm() > 1e-9
        assert (ascent - expected).norm() <= 1e-6 * expected.norm()


def test_an_encoder_decoder_is_refused():
    model, batch = build_family("Blip2ForConditionalGeneration (T5)")
    with pytest.raises(BatchError, match="does not know encoder-decoders"):
        sample_answers(forward_pass(model), [batch], shift=False, seed=0)


def test_a_batch_without_token_ids_is_refused():
    model, _ = build("plain")
    batch = make_batch("plain", 2, torch.float32)
    for wrong in ({"labels": batch["labels"]}, {**batch, "input_ids": batch["input_ids"][:, 1:]}):
        with pytest.raises(BatchError, match="use 'given'"):
            sample_answers(forward_pass(model), [wrong], True, 0)
