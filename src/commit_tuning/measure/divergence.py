"""Token-level KL divergence in a form that is exact for tiny drifts (Eq. 2-3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from commit_tuning.errors import BatchError

IGNORE_INDEX = -100
_CHUNK_ELEMENTS = 1 << 24  # numbers of a vocabulary's rows held at once while they are summed: 64 MiB in fp32
_SERIES_RANGE = 0.02  # where e^x - 1 - x is taken from its series; the first term left out is below 1e-9 of the sum


@dataclass(frozen=True)
class TargetPositions:
    """Where a batch predicts answer tokens, and how many its sample has.

    Attributes:
        mask: Bool [batch, length]; True where the logits predict a label that is not -100.
        targets: Int [answers]; the labels that are predicted there, in the row-major order of `mask`.
        tokens: Int [answers]; K of the token's sample, in the same order. A packed row holds several samples.
        samples: How many samples have at least one answer token.
    """

    mask: Tensor
    targets: Tensor
    tokens: Tensor
    samples: int

    @classmethod
    def from_labels(cls, labels: Tensor, shift: bool = True, samples: Tensor | None = None) -> TargetPositions:
        """Read the positions off the labels.

        Args:
            labels: Int [batch, length], -100 where nothing is predicted.
            shift: True when the logits at position j predict the label at j + 1.
            samples: Int [batch, length], the number of a token's sample in a packed row, below `length`; None where a
                row is one sample.

        Raises:
            BatchError: The labels are not two-dimensional.
        """
        if labels.ndim != 2:
            raise BatchError(f"labels have shape {tuple(labels.shape)}; [batch, length] is needed")
        samples = torch.zeros_like(labels) if samples is None else samples
        if shift:
            labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
            samples = torch.nn.functional.pad(samples[:, 1:], (0, 1))
        answers = labels != IGNORE_INDEX
        rows = torch.arange(len(labels), device=labels.device)[:, None]
        numbers = (rows * labels.shape[1] + samples)[answers]
        _, sample, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
        return cls(answers, labels[answers], counts[sample], len(counts))

    @classmethod
    def of(cls, batch: Mapping[str, Any], shift: bool) -> TargetPositions:
        """Read the positions off a batch with `labels`, whose rows may be packed; as `from_labels`."""
        return cls.from_labels(batch["labels"], shift, _packed_samples(batch))

    def total(self, values: Tensor) -> Tensor:
        """Sum over samples of each sample's mean over its answer tokens; `values` is [answers]."""
        return (values / self.tokens).sum()


def _packed_samples(batch: Mapping[str, Any]) -> Tensor | None:
    """The number of each token's sample in its row, int [batch, length]; None where nothing says that rows are packed.

    A sample begins where the positions fall back, or as `seq_idx` or `cu_seq_lens_q` of transformers' collators say.
    """
    positions, numbers, bounds = (batch.get(key) for key in ("position_ids", "seq_idx", "cu_seq_lens_q"))
    shape = batch["labels"].shape
    if isinstance(positions, Tensor) and positions.shape == shape:
        return (positions.diff(dim=1, prepend=positions[:, :1]) < 0).cumsum(1)
    if isinstance(numbers, Tensor) and numbers.shape == shape:
        return numbers
    if isinstance(bounds, Tensor) and shape[0] == 1:
        place = torch.arange(shape[1], dtype=bounds.dtype, device=bounds.device)
        return torch.searchsorted(bounds[1:], place, right=True)[None]
    return None


def token_kl(old_logits: Tensor, new_logits: Tensor) -> Tensor:
    """KL(old || new) of next-token distributions, over the whole vocabulary.

    With delta = log q - log p, KL(p || q) is the sum of q - p - p delta, because p and q both sum to one. Every term is
    p (e^delta - 1 - delta) >= 0 and is taken from its series where delta is small, so a tiny drift does not drown in
    rounding as it does in the textbook form, the sum of p (log p - log q).

    Args:
        old_logits: [answers, vocabulary], any floating dtype; p.
        new_logits: The same shape; q. Gradients flow to both.

    Returns:
        [answers] in nats; float32, or float64 when the logits are.
    """
    return by_rows(_kl_rows, old_logits, new_logits)


def by_rows(function: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """A function of logits that gives a number for each row, called on a few rows at a time: what it holds is bounded.

    Args:
        function: Takes some rows of all that follows, and gives [rows].
        logits: [answers, vocabulary].
        others: Tensors with a row for each answer.

    Returns:
        [answers].
    """
    rows = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    parts = zip(*(torch.split(tensor, rows) for tensor in (logits, *others)), strict=True)
    return torch.cat([function(*part) for part in parts])


def widened(logits: Tensor) -> Tensor:
    """Logits as float32, or float64 if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def exact_sum(values: Tensor) -> Tensor:
    """Their sum in float64, or as they are on MPS, which has none."""
    return values.sum(dtype=None if values.device.type == "mps" else torch.float64)


def _kl_rows(old_logits: Tensor, new_logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(widened(old_logits), dim=-1)
    log_q = torch.log_softmax(widened(new_logits), dim=-1)
    p = log_p.exp()
    delta = (log_q - log_p).masked_fill(p == 0, 0)  # of what P cannot say, q alone is left
    series = p * delta**2 * (1 / 2 + delta * (1 / 6 + delta * (1 / 24 + delta / 120)))
    return torch.where((delta.abs() < _SERIES_RANGE) & (p > 0), series, log_q.exp() - p - p * delta).sum(dim=-1)
