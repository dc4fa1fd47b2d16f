"""Batches in which every label is -100, as truncated ones are: not measured, made up for, and no harm to training."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import reference
import torch
from tiny import build, make_batch
from torch import Tensor

from commit_tuning import CoMMITConfig, Coordinator
from commit_tuning.config import Probe
from commit_tuning.errors import BatchError


def batch_of(kind: str, step: int, answered: bool) -> dict[str, Tensor]:
    batch = make_batch(kind, 4, torch.float32, seed=step)
    return batch if answered else {**batch, "labels": torch.full_like(batch["labels"], -100)}


def train(kind: str, answers: str, **settings: Any) -> tuple[list[Tensor], list[bool], Coordinator | None]:
    """A has answers, - has none. Without settings the plain loop."""
    model, partition = build(kind)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3), weight_decay=0.1)
    coordinator = Coordinator(model, optimizer, CoMMITConfig(**settings), partition) if settings else None
    torch.manual_seed(1)
    measured = []
    for step, answer in enumerate(answers):
        batch = batch_of(kind, step, answer == "A")
        model(**batch).loss.backward()
        if coordinator:
            coordinator.step(batch)
            measured.append(coordinator._last.measured)
        else:
            optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()], measured, coordinator


def test_batches_without_targets_postpone_the_measurement(kind: str) -> None:
    answers = "-AA-A--AAA"
    plain, _, _ = train(kind, answers)
    with pytest.warns(UserWarning, match="every label of the batch at optimizer step 1 is -100") as caught:
        measured_values, measured, coordinator = train(kind, answers, method="constant", probe=Probe(interval=3))
    assert len(caught) == 1
    assert all(map(torch.equal, plain, measured_values))
    assert [step for step, now in enumerate(measured) if now] == [1, 4, 7, 9]  # due are 0, 3, 6, 9
    assert coordinator is not None
    assert coordinator.kappa > 0
    assert not coordinator.state_dict()["owed"]


@pytest.mark.parametrize("regularizer", ["lookahead", "previous-step"])
@pytest.mark.parametrize("labels", ["given", "sampled"])
def test_a_regulariser_goes_on(labels: str, regularizer: str) -> None:
    settings = {"method": "commit", "regularizer": {"name": regularizer, "labels": labels}}
    with pytest.warns(UserWarning, match="is -100"):
        _, measured, coordinator = train("llava", "-A-A", probe=Probe(interval=1), **settings)
    assert measured == [False, True, False, True]
    assert coordinator is not None
    assert coordinator.kappa > 0


def test_labels_that_never_come_raise_across_resume() -> None:
    with pytest.warns(UserWarning, match="is -100") as caught:
        _, _, first = train("plain", "--", probe=Probe(interval=1), starvation_patience=4)
    assert len(caught) == 1
    assert first is not None
    model, partition = build("plain")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(probe=Probe(interval=1), starvation_patience=4), partition)
    coordinator.load_state_dict(first.state_dict())
    batch = batch_of("plain", 0, answered=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coordinator.step(batch)
    with pytest.raises(BatchError, match="every label is -100"):
        coordinator.step(batch)


def test_batches_without_targets_after_one_never_raise() -> None:
    with pytest.warns(UserWarning, match="optimizer step 2 is -100"):
        train("plain", "A----", probe=Probe(interval=1), starvation_patience=2)


def test_probe_prefers_samples_with_targets() -> None:
    model, partition = build("llava", torch.float64)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2))
    config = CoMMITConfig(method="constant", probe=Probe(samples=2))
    coordinator = Coordinator(model, optimizer, config, partition)
    batch = make_batch("llava", 6, torch.float64)
    batch["labels"][[0, 1, 3]] = -100
    before = build("llava", torch.float64)[0]
    model(**batch).loss.backward()
    coordinator.step(batch)
    names = {module: list(partition.named_parameters(module)) for module in partition}
    chosen = {key: value[[2, 4]] for key, value in batch.items()}
    assert coordinator.drift == pytest.approx(reference.module_drifts(before, model, names, chosen), rel=1e-6)
