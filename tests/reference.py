"""The paper, literally and slowly: what everything fast is tested against.

Every distribution comes from a whole copy of the model with exactly the parameters that the formula names, through a
full forward pass; sums run over samples and tokens one at a time, in float64, and KL is the textbook formula.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Modules = Mapping[str, Sequence[str]]


def mixed_model(base: nn.Module, other: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of `base` in evaluation mode with the parameters `names` of `other`: P_{X_{t+1}, S_t} and its like."""
    mixed = copy.deepcopy(base).eval()
    own, theirs = dict(mixed.named_parameters()), dict(other.named_parameters())
    with torch.no_grad():
        for name in names:
            own[name].copy_(theirs[name])
    return mixed


def answer_distributions(model: nn.Module, batch: Mapping[str, Any], shift: bool = True) -> list[list[Tensor]]:
    """Log-probabilities [vocabulary] in float64 at every answer position of every sample."""
    logits = model(**batch).logits
    samples = []
    for row, labels in zip(logits, batch["labels"], strict=True):
        positions = [j for j in range(len(labels)) if labels[j] != -100 and (j > 0 or not shift)]
        samples.append([torch.log_softmax(row[j - 1 if shift else j].double(), dim=-1) for j in positions])
    return samples


def drift(old: list[list[Tensor]], new: list[list[Tensor]]) -> Tensor:
    """Eq. 2-3: the mean over samples of (1/K) sum_k KL(old_k || new_k); samples without an answer do not count."""
    means = []
    for old_sample, new_sample in zip(old, new, strict=True):
        divergences = [(p.exp() * (p - q)).sum() for p, q in zip(old_sample, new_sample, strict=True)]
        if divergences:
            means.append(torch.stack(divergences).mean())
    return torch.stack(means).mean()


@torch.no_grad()
def module_drifts(
    before: nn.Module, after: nn.Module, modules: Modules, batch: Mapping[str, Any], shift: bool = True
) -> dict[str, float]:
    """Drift of each module between a model before and after an optimizer step.

    Args:
        before: The model at step t.
        after: The model at step t + 1.
        modules: Module to the names of its parameters.
        batch: The whole batch.
        shift: Whether the logits at position j predict the label at j + 1.
    """
    old = answer_distributions(mixed_model(before, before, []), batch, shift)
    return {
        module: float(drift(old, answer_distributions(mixed_model(before, after, names), batch, shift)))
        for module, names in modules.items()
    }


def balance_coefficient(language_drift: float, encoder_drift: float) -> float:
    """Eq. 4."""
    return language_drift / encoder_drift


def moving_average(kappas: Sequence[float], window: int) -> float:
    """Eq. 7; of the values there are while the window fills."""
    last = kappas[-window:]
    return sum(last) / len(last)


def learning_rates(alpha: float, smoothed_kappa: float) -> tuple[float, float]:
    """Eq. 8: the language model's and the encoder's learning rate."""
    return 2 * alpha / (smoothed_kappa + 1), 2 * alpha / (1 / smoothed_kappa + 1)


def lookahead_gradients(
    before: nn.Module, after: nn.Module, modules: Modules, batch: Mapping[str, Any], shift: bool = True
) -> dict[str, list[Tensor]]:
    """Eq. 9-10, lookahead: gradient of d(P_t || P with one module at t + 1) with respect to that module at t + 1."""
    with torch.no_grad():
        old = answer_distributions(mixed_model(before, before, []), batch, shift)
    gradients = {}
    for module, names in modules.items():
        moved = mixed_model(before, after, names)
        value = drift(old, answer_distributions(moved, batch, shift))
        gradients[module] = _gradients(value, moved, names)
    return gradients


def previous_step_gradients(
    previous: nn.Module, current: nn.Module, modules: Modules, batch: Mapping[str, Any], shift: bool = True
) -> dict[str, list[Tensor]]:
    """Eq. 9-10, previous step: gradient of d(P with one module at t - 1 || P_t) with respect to that module at t."""
    gradients = {}
    for module, names in modules.items():
        with torch.no_grad():
            old = answer_distributions(mixed_model(current, previous, names), batch, shift)
        model = mixed_model(current, current, [])
        value = drift(old, answer_distributions(model, batch, shift))
        gradients[module] = _gradients(value, model, names)
    return gradients


def _gradients(value: Tensor, model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in names]
    return list(torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True))
