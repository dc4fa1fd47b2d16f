"""What must hold for a family: one partition, the reference's kappa, features reused or not, and every module moves."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass

import pytest
import reference
import torch
from torch import Tensor, nn

from commit_tuning import CoMMITConfig, Coordinator, ModulePartition, partition_model
from commit_tuning.errors import PartitionError
from commit_tuning.measure.batches import take_samples
from commit_tuning.measure.divergence import TargetPositions
from commit_tuning.measure.forward import PlainForward, forward_pass
from commit_tuning.measure.probe import DriftProbe
from families.catalogue import build, build_model, needs

RATE = 1e-2


@dataclass(frozen=True)
class Outcome:
    """What came of a family that kept the contract.

    Attributes:
        modules: Found by the partition.
        reuses_features: Whether the probe runs the image encoder once per set of its values.
        refusal: The error with which the partition refuses it, instead of modules.
        reason: Why it cannot be built here, instead of both.
    """

    modules: tuple[str, ...] = ()
    reuses_features: bool = False
    refusal: str | None = None
    reason: str | None = None


def check(name: str) -> Outcome:
    """Hold a family to the contract."""
    own = needs(name)
    if own.reason:
        return Outcome(reason=own.reason)
    if own.refusal:
        with pytest.raises(PartitionError, match=re.escape(own.refusal)) as refused:
            partition_model(build_model(name))
        return Outcome(refusal=str(refused.value))
    model, batch = build(name)
    partition = partition_model(model)
    partition.check(model)
    check_cut(model, batch)
    reuses = check_drifts(model, partition, batch)
    check_training(*build(name))
    return Outcome(tuple(partition), reuses)


@torch.no_grad()
def check_cut(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """The first sample alone, where it can be cut off, is answered as it is in its batch."""
    forward = forward_pass(model.eval())
    logits = []
    for given in ([batch], take_samples([batch], 1, placeholders=forward.placeholder_tokens)):
        mask = TargetPositions.from_labels(given[0]["labels"], forward.shifts_labels).mask
        logits.append(forward.logits(given[0], mask, forward.features(given[0]))[: mask[0].sum()])
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-5)
    model.train()


def check_drifts(model: nn.Module, partition: ModulePartition, batch: dict[str, Tensor]) -> bool:
    """The probe against the reference, and against a probe that runs the whole model each time."""
    optimizer = torch.optim.AdamW(partition.param_groups(lr=RATE))
    model.eval()(**batch).loss.backward()
    for module in partition:
        assert any(p.grad is not None and p.grad.any() for p in partition[module]), f"no gradient reaches {module}"
    before = copy.deepcopy(model)
    fast = forward_pass(model)
    shift = fast.shifts_labels
    probe = DriftProbe(fast, partition, [batch], shift)
    whole = DriftProbe(PlainForward(model), partition, [batch], shift)
    optimizer.step()
    drift, names = probe.measure().drift, {module: list(partition.named_parameters(module)) for module in partition}
    assert all(value > 0 for value in drift.values()), drift
    assert drift == pytest.approx(whole.measure().drift, rel=1e-3)
    assert drift == pytest.approx(reference.module_drifts(before, model, names, batch, shift), rel=1e-3)
    return bool(fast.features(batch))


def check_training(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """One coordinated step changes every module, and its kappa is a number."""
    partition = partition_model(model)
    coordinator = Coordinator(model, torch.optim.AdamW(partition.param_groups(lr=RATE)), CoMMITConfig(), partition)
    before = {module: [p.detach().clone() for p in partition[module]] for module in partition}
    model(**batch).loss.backward()
    coordinator.step(batch)
    for module, values in before.items():
        assert any(not torch.equal(old, new) for old, new in zip(values, partition[module], strict=True)), module
    assert all(0 < kappa < math.inf for kappa in coordinator.kappas.values()), coordinator.kappas
