"""Token-level KL divergence in a form that is exact for tiny drifts (Eq. 2-3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from commit_tuning.errors import BatchError

IGNORE_INDEX = -100
# Numbers of a vocabulary's rows that are held at once. A CPU works in its caches: 1 MiB in fp32 for each thread. Other
# devices pay for each launch: 64 MiB.
_CPU_CHUNK, _CHUNK = 1 << 18, 1 << 24
# Where e^x - 1 - x is taken from its series, and how many terms that has: what is left out is below an ulp of the sum.
_SERIES_RANGE, _TERMS = 0.5, {torch.float32: 7, torch.float64: 14}
_RISE, _FALL = 40.0, 1e4  # nats that a word may rise and fall by before e^x is of no use under P
_SMALL_RISE, _SMALL_KL = 8.0, 0.03  # beyond both, P of a word that was rare has fewer digits than Q
_SMALL_RANGE = 0.02  # of `_kl_of_far_rows`, with five terms: what is left out is below 1e-9 of the sum


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

    Let delta = z' - z be the step of the logits. Then KL(p || q) = log E_p[e^delta] - E_p[delta]. With c = delta -
    E_p[delta], whose mean is zero, that is log(1 + E_p[e^c - 1 - c]). Every term is >= 0 and is taken from its series
    where c is small, so a tiny drift does not drown in rounding as it does in the textbook form, the sum of
    p (log p - log q). The mean need not be exact: an error r of it adds r^2 / 2 to the result, 1e-15 nats at most.

    Nothing of the size of the logits is kept between two calls, and P is taken anew from the old logits: that is a
    fifth of the time, and a kept P would double what a measurement holds of its micro-batches.

    Args:
        old_logits: [answers, vocabulary], any floating dtype; p.
        new_logits: The same shape; q. Gradients flow to both.

    Returns:
        [answers] in nats; float32, or float64 when the logits are.
    """
    return _TokenKL.apply(old_logits, new_logits)  # type: ignore[no-any-return, no-untyped-call]


class _TokenKL(torch.autograd.Function):
    """Keeps the logits alone for its derivative, which is q - p by the new ones and -p c by the old ones."""

    @staticmethod
    def forward(ctx: Any, old: Tensor, new: Tensor) -> Tensor:
        kl = by_rows(partial(_kl_rows, _scratch(old, new)), old, new)
        ctx.save_for_backward(old, new, kl)
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        old, new, kl = ctx.saved_tensors
        wanted = zip((_by_old_logits, _by_new_logits), ctx.needs_input_grad, strict=True)
        return tuple(
            by_rows(partial(function, _scratch(old, new)), old, new, kl, gradient) if needed else None
            for function, needed in wanted
        )


def by_rows(function: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """A function of logits that gives something for each row, called on a few rows at a time: what it holds is bounded.

    Args:
        function: Takes some rows of all that follows, and gives as many.
        logits: [answers, vocabulary].
        others: Tensors with a row for each answer.

    Returns:
        What `function` gives for all [answers].
    """
    rows = _rows_at_once(logits)
    parts = zip(*(torch.split(tensor, rows) for tensor in (logits, *others)), strict=True)
    return torch.cat([function(*part) for part in parts])


def _rows_at_once(logits: Tensor) -> int:
    cached = _CPU_CHUNK * torch.get_num_threads() if logits.device.type == "cpu" else _CHUNK
    return max(1, min(cached, _CHUNK) // max(1, logits.shape[-1]))


def widened(logits: Tensor) -> Tensor:
    """Logits as float32, or float64 if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def exact_sum(values: Tensor) -> Tensor:
    """Their sum in float64, or as they are on MPS, which has none."""
    return values.sum(dtype=None if values.device.type == "mps" else torch.float64)


def _kl_rows(scratch: Tensor, old: Tensor, new: Tensor) -> Tensor:
    p, c, series, spare = scratch[:, : len(old)].unbind()
    fall, rise = _centre(old, new, p, c, series, spare)
    kl = _beyond_linear(c, fall, rise, series, spare).mul_(p).sum(-1).log1p_()
    near = _are_near(fall, rise, kl)
    if not near.all():
        kl[~near] = _kl_of_far_rows(old[~near], new[~near])
    return kl


def _scratch(old: Tensor, new: Tensor) -> Tensor:
    """Room for four numbers for each logit of the rows taken at once, so that none is asked for in between."""
    shape = 4, min(len(old), _rows_at_once(old)), old.shape[-1]
    return torch.empty(shape, dtype=(widened(old[:0]) + widened(new[:0])).dtype, device=old.device)


def _centre(old: Tensor, new: Tensor, p: Tensor, c: Tensor, *spare: Tensor) -> tuple[Tensor, Tensor]:
    """Put P into `p`, and the step of the logits less its mean under P into `c`; give its least and its largest by row.

    Two numbers that are near one another have an exact difference. So what all logits rise by is first taken off in
    whole nats, which is exact, too. Minus infinity is taken for a large number, so that a word masked before and after
    has not moved.
    """
    old, new = old.to(p.dtype), new.to(p.dtype)
    torch.softmax(old, -1, out=p)
    p.div_(p.sum(-1, keepdim=True))  # softmax adds carelessly: over a large vocabulary its sum is one within 3e-5 alone
    torch.sub(new, old, out=c)
    mean = torch.mul(p, c, out=spare[0]).sum(-1, keepdim=True)
    if not (mean.abs() <= 1 / 2).all():
        least = torch.finfo(p.dtype).min / 2
        old = torch.clamp(old, min=least, out=spare[1])
        torch.clamp(new, min=least, out=c).sub_(old)
        nats = torch.mul(p, c, out=spare[0]).sum(-1, keepdim=True).round_()
        torch.clamp(new, min=least, out=c).sub_(nats).sub_(old)
        mean = torch.mul(p, c, out=spare[0]).sum(-1, keepdim=True)
    c.sub_(mean)
    return c.amin(-1), c.amax(-1)


def _are_near(fall: Tensor, rise: Tensor, kl: Tensor) -> Tensor:
    """The rows in which no word moves too far, or from or to where no number is; not those with NaN."""
    return (fall >= -_FALL) & (rise <= torch.where(kl <= _SMALL_KL, _RISE, _SMALL_RISE))


def _beyond_linear(x: Tensor, least: Tensor, largest: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """Put e^x - 1 - x into `out`, to a few ulps for every x: the series around zero, and what it lacks beyond.

    With n the nearest x of the series, e^x - 1 - x is (e^n - 1 - n) + e^n (e^(x - n) - 1) - (x - n). What is added is
    exactly zero where x is n. `x` is overwritten.
    """
    everywhere = bool(((least >= -_SERIES_RANGE) & (largest <= _SERIES_RANGE)).all())
    n = x if everywhere else torch.clamp(x, -_SERIES_RANGE, _SERIES_RANGE, out=spare)
    last, *others = (x.new_full((), 1 / math.factorial(power)) for power in range(_TERMS[x.dtype] + 1, 1, -1))
    for coefficient in others:
        last = torch.addcmul(coefficient, n, last, out=out)
    out.mul_(n).mul_(n)
    if not everywhere:
        beyond = x.sub_(n)
        e_n = n.add_(out).add_(1)
        out.sub_(beyond).addcmul_(e_n, beyond.expm1_())
    return out


def _kl_of_far_rows(old: Tensor, new: Tensor) -> Tensor:
    """The sum of q - p - p delta with delta = log q - log p, which is KL because p and q both sum to one."""
    log_p, log_q = _log_softmax(old), _log_softmax(new)
    p = log_p.exp()
    delta = (log_q - log_p).masked_fill(p == 0, 0)  # of what P cannot say, q alone is left
    series = p * delta**2 * (1 / 2 + delta * (1 / 6 + delta * (1 / 24 + delta / 120)))
    return torch.where((delta.abs() < _SMALL_RANGE) & (p > 0), series, log_q.exp() - p - p * delta).sum(dim=-1)


def _log_softmax(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(widened(logits), dim=-1)
    return log_p - log_p.exp().sum(-1, keepdim=True).log()  # as in `_centre`


def _by_new_logits(scratch: Tensor, old: Tensor, new: Tensor, kl: Tensor, gradient: Tensor) -> Tensor:
    """The gradient times q - p; q / p is e^(c - KL)."""
    p, c, *spare = scratch[:, : len(old)].unbind()
    near = _are_near(*_centre(old, new, p, c, *spare), kl)
    change = c.sub_(kl[:, None]).expm1_().mul_(p)
    if not near.all():
        change[~near] = widened(new[~near]).softmax(-1) - p[~near]
    return (change * gradient[:, None]).to(new.dtype)


def _by_old_logits(scratch: Tensor, old: Tensor, new: Tensor, kl: Tensor, gradient: Tensor) -> Tensor:
    """The gradient times -p c; a word that P cannot say has none."""
    del kl
    p, c, *spare = scratch[:, : len(old)].unbind()
    _centre(old, new, p, c, *spare)
    return (c.mul_(p).masked_fill_(p == 0, 0) * -gradient[:, None]).to(old.dtype)
