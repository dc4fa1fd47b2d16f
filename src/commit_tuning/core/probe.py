"""From one optimizer step to the drift of each module (Eq. 2-3), without touching the training trajectory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from commit_tuning.core.divergence import AnswerPositions, token_kl
from commit_tuning.core.forward import Batch, ForwardPass, InputNorms, undisturbed
from commit_tuning.core.partition import LANGUAGE_MODEL, ModulePartition
from commit_tuning.errors import BatchError


class Snapshot:
    """A copy of the trainable values of some modules, and a way to put them into the model for a while."""

    def __init__(self, partition: ModulePartition, modules: Iterable[str]) -> None:
        self._live = {name: partition[name] for name in modules}
        self._kept = {name: [p.detach().clone() for p in live] for name, live in self._live.items()}

    @classmethod
    def of(cls, partition: ModulePartition, values: Mapping[str, Sequence[Tensor]]) -> Snapshot:
        """A snapshot of given values, module to tensors in the order of the partition (from a checkpoint)."""
        snapshot = cls(partition, values)
        for name, kept in values.items():
            _copy(snapshot._kept[name], list(kept))
        return snapshot

    def values(self, module: str) -> list[Tensor]:
        """The kept values of a module, in the order of the partition."""
        return self._kept[module]

    @contextlib.contextmanager
    def swapped_in(self, modules: Iterable[str]) -> Iterator[None]:
        """Give the model the kept values of `modules`; its own come back bit for bit at the end."""
        names = list(modules)
        live = [p for name in names for p in self._live[name]]
        kept = [v for name in names for v in self._kept[name]]
        own = [p.detach().clone() for p in live]
        with torch.no_grad():
            _copy(live, kept)
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(live, own)


def _copy(targets: list[Any], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


@dataclass(frozen=True)
class _Observation:
    """A micro-batch and what the model said of it before the step."""

    batch: Batch
    positions: AnswerPositions
    features: dict[str, Any]
    logits: Tensor


@dataclass(frozen=True)
class Measurement:
    """What one optimizer step did.

    Attributes:
        drift: Module to d, the mean over samples of the mean KL over their answer tokens, in nats (Eq. 2-3).
        h: Module to the individual learning step H of Eq. 6; empty where the model does not show its inputs. The paper
            leaves the norms open; ours are L2 norms over all answer logits, embeddings, features and raw inputs of the
            samples measured.
    """

    drift: dict[str, float]
    h: dict[str, float]


class DriftProbe:
    """What one optimizer step does to the output distribution, one module at a time.

    Made before the step, it keeps P_{X_t, S_t} of the given samples and the values that will be overwritten. After the
    step it compares that with the distribution in which one module has its new values and all others their old ones.
    With reusable features only the language model's old values are kept: the other half is the encoders' old outputs.

    Args:
        forward: The model as the probe sees it.
        partition: Its modules.
        batches: Micro-batches to measure on.
        shift: Whether the logits at position j predict the label at j + 1.

    Raises:
        BatchError: No label in any of the batches, or labels of the wrong shape.
    """

    def __init__(self, forward: ForwardPass, partition: ModulePartition, batches: Sequence[Batch], shift: bool) -> None:
        self._forward, self._partition = forward, partition
        with torch.no_grad(), undisturbed(forward.model):
            self._seen = [self._observe(batch, shift) for batch in batches]
        self.samples = sum(item.positions.samples for item in self._seen)
        if self.samples == 0:
            raise BatchError("every label is -100: no answer token to measure; see how the labels are masked")
        needed = (LANGUAGE_MODEL,) if forward.reuses_features else partition.names
        self._snapshot = Snapshot(partition, needed)

    def _observe(self, batch: Batch, shift: bool) -> _Observation:
        positions = AnswerPositions.from_labels(batch["labels"], shift)
        features = self._forward.features(batch)
        return _Observation(batch, positions, features, self._forward.logits(batch, positions.mask, features))

    @contextlib.contextmanager
    def _only(self, module: str) -> Iterator[None]:
        """The model with the new values of `module` and the old ones of every other."""
        if self._forward.reuses_features:
            others = [] if module == LANGUAGE_MODEL else [LANGUAGE_MODEL]
        else:
            others = [name for name in self._partition if name != module]
        with self._snapshot.swapped_in(others):
            yield

    def _moved_logits(self, item: _Observation, module: str) -> Tensor:
        """Logits [answers, vocabulary] of a micro-batch inside `_only(module)`."""
        features = item.features
        if self._forward.reuses_features and module != LANGUAGE_MODEL:
            features = {**features, module: self._forward.features(item.batch).get(module)}
        return self._forward.logits(item.batch, item.positions.mask, features)

    def measure(self) -> Measurement:
        """Drift and H of every module, on all samples; changes nothing in the model."""
        drift, squared_logits = {}, {}
        with torch.no_grad(), undisturbed(self._forward.model):
            for module in self._partition:
                with self._only(module):
                    logits = [self._moved_logits(item, module) for item in self._seen]
                totals = [i.positions.total(token_kl(i.logits, new)) for i, new in zip(self._seen, logits, strict=True)]
                drift[module] = float(sum(totals)) / self.samples
                squared_logits[module] = sum(float(new.float().square().sum()) for new in logits)
            norms = [self._forward.input_norms(item.batch, item.features) for item in self._seen]
        return Measurement(drift, learning_steps(squared_logits, norms))

    def gradients(self, module: str) -> list[Tensor]:
        """Gradient of a module's drift with respect to that module's new values (lookahead, Eq. 9-10)."""
        parameters = self._partition[module]
        total = [torch.zeros_like(p) for p in parameters]
        with torch.enable_grad(), undisturbed(self._forward.model), self._only(module):
            for item in self._seen:
                new = self._moved_logits(item, module)
                drift = item.positions.total(token_kl(item.logits, new)) / self.samples
                torch._foreach_add_(total, gradient_or_zeros(drift, parameters))
        return total


def gradient_or_zeros(value: Tensor, parameters: list[Any], retain_graph: bool = False) -> list[Tensor]:
    """Gradient of a scalar; zeros for parameters that it does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    gradients = torch.autograd.grad(
        value, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return list(gradients)


def learning_steps(squared_logits: dict[str, float], norms: Sequence[InputNorms | None]) -> dict[str, float]:
    """H of Eq. 6 for every module.

    H_X = |logits(P_{X_{t+1},S_t})| / |I_S| and H_S = |logits(P_{X_t,S_{t+1}})| / (|I_X| + |S_t(I_S)|).

    Args:
        squared_logits: Module to the squared norm of the logits with that module displaced.
        norms: The squared input norms of each micro-batch.

    Returns:
        Module to H; empty when the norms are not known or zero.
    """
    known = [n for n in norms if n is not None]
    raw = sum(sum(n.raw.values()) for n in known) ** 0.5
    features = sum(sum(n.features.values()) for n in known) ** 0.5
    text = sum(n.text for n in known) ** 0.5
    if len(known) < len(norms) or raw == 0 or text + features == 0:
        return {}
    return {m: s**0.5 / (raw if m == LANGUAGE_MODEL else text + features) for m, s in squared_logits.items()}
