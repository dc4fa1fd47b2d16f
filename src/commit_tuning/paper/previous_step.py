"""The previous-step reading of the drift regulariser's gradient (Eq. 9-10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from commit_tuning.distributed import sum_over_ranks, sum_tensors_over_ranks
from commit_tuning.measure.divergence import TargetPositions, token_kl
from commit_tuning.measure.forward import Batch, ForwardPass, evaluation_mode
from commit_tuning.measure.probe import Snapshot, gradient_or_zeros
from commit_tuning.partition.modules import ModulePartition

Gradients = dict[str, list[Tensor]]


def previous_step_gradients(
    forward: ForwardPass, partition: ModulePartition, batches: Sequence[Batch], previous: Snapshot, shift: bool
) -> Gradients:
    """Gradient of each module's drift since the previous step, with respect to that module at its current values.

    Args:
        forward: The model as the probe sees it.
        partition: Its modules.
        batches: Micro-batches of the current step.
        previous: The values of all modules one optimizer step ago.
        shift: Whether the logits at position j predict the label at j + 1.

    Returns:
        Module to gradients in the order of the partition's parameters.
    """
    total: Gradients = {name: [torch.zeros_like(p) for p in partition[name]] for name in partition}
    positions = [TargetPositions.of(batch, shift) for batch in batches]
    device = next(forward.model.parameters()).device
    samples = max(1, *sum_over_ranks([sum(p.samples for p in positions)], device))
    for batch, where in zip(batches, positions, strict=True):
        before = {name: _logits_before(forward, batch, where.mask, previous, name) for name in partition}
        with torch.enable_grad(), evaluation_mode(forward.model):
            now = forward.logits(batch, where.mask, forward.features(batch))
            for index, name in enumerate(partition, start=1):
                drift = where.total(token_kl(before[name], now)) / samples
                gradients = gradient_or_zeros(drift, partition[name], retain_graph=index < len(partition.names))
                torch._foreach_add_(total[name], gradients)
    for gradients in total.values():
        sum_tensors_over_ranks(gradients)
    return total


def _logits_before(forward: ForwardPass, batch: Batch, mask: Tensor, previous: Snapshot, module: str) -> Tensor:
    """Logits [answers, vocabulary] with the previous values of one module and the current ones of the others."""
    with torch.no_grad(), evaluation_mode(forward.model), previous.swapped_in([module]):
        return forward.logits(batch, mask, forward.features(batch))
