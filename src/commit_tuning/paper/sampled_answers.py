"""Answers that the model gives itself, in place of the given ones: the drift without labels.

A drift needs to know where answers are and what stands before each of their tokens, not which answer is right. So the
regulariser can be taken on prompts alone, once the model has answered them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from commit_tuning.errors import BatchError
from commit_tuning.measure.divergence import IGNORE_INDEX, TargetPositions
from commit_tuning.measure.forward import Batch, ForwardPass, evaluation_mode


@torch.no_grad()
def sample_answers(forward: ForwardPass, batches: Sequence[Batch], shift: bool, seed: int) -> list[Batch]:
    """The same batches with every answer sampled from the model as it is now, at temperature 1, token by token.

    Of a given answer only its place is used, and its length as the limit: a sampled answer ends where the model ends
    the sequence, or with as many tokens. The last of these is predicted and never read, so it stays as it is. Tokens
    that stand for an encoder's output are never sampled. A sample is taken to have one answer. Costs the encoders once,
    and a forward pass for each token but one of the longest answer: meant for short ones. The random states of training
    are left alone.

    Args:
        forward: The model as the probe sees it.
        batches: Micro-batches with `input_ids` and `labels`, both int [batch, length].
        shift: Whether the logits at position j predict the label at j + 1.
        seed: Decides the answers, together with the model.

    Returns:
        New batches; all but `input_ids` and `labels` is shared with the given ones.

    Raises:
        BatchError: A batch has no `input_ids` of the labels' shape, or the model is an encoder-decoder, which reads no
            answers there.
    """
    if not forward.shifts_labels:
        raise BatchError("regularizer.labels='sampled' does not know encoder-decoders; use 'given'")
    with evaluation_mode(forward.model):
        generator = torch.Generator(batches[0]["labels"].device).manual_seed(seed)
        return [_with_sampled_answers(forward, batch, shift, generator) for batch in batches]


def _with_sampled_answers(forward: ForwardPass, batch: Batch, shift: bool, generator: torch.Generator) -> Batch:
    labels = batch["labels"].clone()
    mask = TargetPositions.from_labels(labels, shift).mask
    ids = _token_ids(batch).clone()
    number = mask.cumsum(dim=1)  # of an answer token in its sample, from 1
    last = number[:, -1].clone()
    features, ends = forward.features(batch), torch.tensor(forward.end_tokens, dtype=ids.dtype, device=ids.device)
    for current in range(1, int(last.max())):
        asked = mask & (number == current) & (last > current)[:, None]
        if not asked.any():
            break
        logits = forward.logits({**batch, "input_ids": ids}, asked, features).float()
        logits[:, list(forward.placeholder_tokens)] = -torch.inf
        tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        rows, columns = asked.nonzero(as_tuple=True)
        ids[rows, columns + 1] = tokens
        labels[rows, columns + int(shift)] = tokens
        last[rows[torch.isin(tokens, ends)]] = current
    rows, columns = (mask & (number > last[:, None])).nonzero(as_tuple=True)
    labels[rows, columns + int(shift)] = IGNORE_INDEX
    return {**batch, "input_ids": ids, "labels": labels}


def _token_ids(batch: Batch) -> Tensor:
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape != batch["labels"].shape:
        found = tuple(ids.shape) if isinstance(ids, Tensor) else "none"
        raise BatchError(
            f"regularizer.labels='sampled' writes answers into input_ids of the labels' shape "
            f"{tuple(batch['labels'].shape)}, and the batch has {found}; use 'given'"
        )
    return ids
