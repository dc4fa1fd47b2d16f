"""From one optimizer step to the drift of each module (Eq. 2-3), without touching the training trajectory.

In a distributed run every sum over samples goes over all ranks, so that each decides and finds the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.distributed import (
    forget_old_values,
    full_tensor,
    is_sharded,
    least_over_ranks,
    local_shard,
    sum_over_ranks,
    sum_tensors_over_ranks,
)
from commit_tuning.errors import BatchError, NoTargetError, one_line
from commit_tuning.measure.displacement import Displacement, Reading, moving, quadratic_drift
from commit_tuning.measure.divergence import TargetPositions, by_rows, token_kl, widened
from commit_tuning.measure.forward import Batch, ForwardPass, InputNorms, evaluation_mode
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition


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
    def swapped_in(self, modules: Iterable[str], moved: str | None = None, scale: float = 1.0) -> Iterator[None]:
        """Give the model the kept values of `modules`; its own come back bit for bit at the end.

        Args:
            modules: Modules that get their kept values.
            moved: A module that gets kept + scale (own - kept) instead; 1 is its own values, bit for bit.
            scale: How far.
        """
        names = [*modules] if moved is None or scale == 1.0 else [*modules, moved]
        live = [p for name in names for p in self._live[name]]
        kept = [v for name in names for v in self._kept[name]]
        own = [p.detach().clone() for p in live]
        try:
            with torch.no_grad():
                _copy(live, kept)
                if moved in names:
                    start = len(live) - len(self._live[moved])
                    torch._foreach_lerp_([*map(local_shard, live[start:])], [*map(local_shard, own[start:])], scale)
            torch.clear_autocast_cache()
            yield
        finally:
            with torch.no_grad():
                _copy(live, own)
            torch.clear_autocast_cache()


def _copy(targets: list[Any], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_([*map(local_shard, targets)], [*map(local_shard, sources)])


@dataclass(frozen=True)
class _Observation:
    """A micro-batch and what the model said of it before the step."""

    batch: Batch
    positions: TargetPositions
    features: dict[str, Any]
    logits: Tensor


@dataclass(frozen=True)
class Measurement:
    """What one optimizer step did.

    Attributes:
        readings: Measured module to its drift, the mean over samples of the mean KL over their answer tokens (Eq. 2-3),
            with the noise floor and the displacement of its measurement.
        h: Module to the individual learning step H of Eq. 6; empty where the model does not show its inputs. The paper
            leaves the norms open; ours are L2 norms over all answer logits, embeddings, features and raw inputs of the
            samples measured. A module measured at a displacement has the logits of that.
        loss: Of the samples measured, before the step, in nats: the mean over samples of the mean over their tokens.
        target_tokens: Of the step's whole batch, on all processes; 0 where that is not known.
        samples: How many the drifts are means over; 0 where that is not known.
    """

    readings: dict[str, Reading]
    h: dict[str, float]
    loss: float
    target_tokens: float = 0.0
    samples: float = 0.0

    @classmethod
    def of(cls, readings: Mapping[str, Mapping[str, float]], **others: Any) -> Measurement:
        """The measurement of which `dataclasses.asdict` made this."""
        return cls({module: Reading(**reading) for module, reading in readings.items()}, **others)

    @classmethod
    def of_drift(cls, drift: Mapping[str, float], loss: float, target_tokens: float = 0.0) -> Measurement:
        """The measurement of a model whose drifts are known without a probe: module to nats."""
        return cls({module: Reading(value, 0.0, 1.0) for module, value in drift.items()}, {}, loss, target_tokens)

    @property
    def drift(self) -> dict[str, float]:
        """Module to its drift in nats."""
        return {module: reading.drift for module, reading in self.readings.items()}

    def at_base_rate(self, in_force: Mapping[str, float]) -> dict[str, float]:
        """Give the drifts as they would be at the base rates, as a drift grows with the square of the rate.

        Args:
            in_force: Module to what its learning rate was over its base rate.

        Returns:
            Module to nats; NaN for a module that was at rest.
        """
        return {name: drift / in_force[name] ** 2 if in_force[name] else math.nan for name, drift in self.drift.items()}


class DriftProbe:
    """What one optimizer step does to the output distribution, one module at a time.

    Made before the step, it keeps P_{X_t, S_t} of the given samples and the values that will be overwritten. After the
    step it compares that with the distribution in which one module has its new values and all others their old ones.
    With reusable features the encoders' old outputs stand in for the old values of what they come from.

    Args:
        forward: The model as the probe sees it.
        partition: Its modules.
        batches: Micro-batches to measure on.
        shift: Whether the logits at position j predict the label at j + 1.
        target_tokens: Of the step's whole batch, on this process; 0 where that is not known.

    Raises:
        NoTargetError: Every label of all batches is -100, on every rank; all of them raise it.
        BatchError: Labels of the wrong shape.
    """

    def __init__(
        self,
        forward: ForwardPass,
        partition: ModulePartition,
        batches: Sequence[Batch],
        shift: bool,
        target_tokens: int | Tensor = 0,
    ) -> None:
        self._forward, self._partition = forward, partition
        self._parts = {name: forward.parts(partition[name]) for name in partition}
        if is_sharded(forward.model):  # every forward pass gathers, so all ranks need as many
            batches = batches[: least_over_ranks(len(batches), next(forward.model.parameters()).device)]
        positions = [TargetPositions.of(batch, shift) for batch in batches]
        self.samples, self._target_tokens = self._over_ranks(
            sum(where.samples for where in positions), float(target_tokens)
        )
        if self.samples == 0:
            raise NoTargetError("every label is -100: no answer token to measure; see how the labels are masked")
        with torch.no_grad(), evaluation_mode(forward.model):
            self._seen = [self._observe(*pair) for pair in zip(batches, positions, strict=True)]
        self._reused = set.intersection(*(set(item.features) for item in self._seen))
        self._snapshot = Snapshot(partition, partition)
        self._squared_logits: dict[str, float] = {}

    def _observe(self, batch: Batch, positions: TargetPositions) -> _Observation:
        try:
            features = self._forward.features(batch)
            logits = self._forward.logits(batch, positions.mask, features)
        except TypeError as error:  # whose message may hold the model, layer by layer
            lines = str(error).splitlines() or [""]
            what = one_line(lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}", 300)
            raise BatchError(f"the model takes no such batch (its keys: {', '.join(batch)}): {what}") from error
        return _Observation(batch, positions, features, logits)

    @contextlib.contextmanager
    def _only(self, module: str, scale: float = 1.0) -> Iterator[None]:
        """The model with `module` moved by `scale` times its update and the old values of every other."""
        at_rest = self._reused - self._parts[module]  # encoders that do not run: their kept features are passed on
        others = [name for name in self._partition if name != module and self._parts[name] - at_rest]
        with self._snapshot.swapped_in(others, module, scale):
            forget_old_values(self._forward.model)
            yield

    def _over_ranks(self, *values: float) -> list[float]:
        return sum_over_ranks(values, next(self._forward.model.parameters()).device)

    def _moved_logits(self, item: _Observation, module: str) -> Tensor:
        """Logits [answers, vocabulary] of a micro-batch inside `_only(module)`."""
        features, shaped = item.features, self._parts[module] & item.features.keys()
        if shaped:
            now = self._forward.features(item.batch)
            features = {**features, **{name: now[name] for name in shaped}}
        return self._forward.logits(item.batch, item.positions.mask, features)

    def measure(self, displacement: Displacement | None = None, modules: Iterable[str] | None = None) -> Measurement:
        """Drift and H of modules, on all samples; changes nothing in the model.

        Args:
            displacement: How far each module is moved; None measures the step itself.
            modules: The modules to measure, the same on every rank; None for all.
        """
        displacement = displacement or Displacement(1.0)
        modules = tuple(self._partition if modules is None else modules)
        with torch.no_grad(), evaluation_mode(self._forward.model):
            rounding = self._rounding() if displacement.looks_at_floor(modules) else math.nan
            readings = {
                name: displacement.read(name, partial(self.drift_at, name), rounding, partial(self.limit, name))
                for name in modules
            }
            norms = [self._forward.input_norms(item.batch, item.features) for item in self._seen]
        return Measurement(
            readings, learning_steps(self._squared_logits, norms), self._loss(), self._target_tokens, self.samples
        )

    def step_norms(self) -> dict[str, float]:
        """Module to the L2 norm of what the step did to its parameters, all of it: optimizer, decay, regulariser."""
        norms = {}
        for name in self._partition:
            kept = self._snapshot.values(name)
            steps = [p.detach() - old for p, old in zip(self._partition[name], kept, strict=True)]
            norms[name] = float(full_tensor(torch.nn.utils.get_total_norm(steps)))
        return norms

    def drift_at(self, module: str, scale: float) -> float:
        """Drift in nats with a module moved by `scale` times its update."""
        total, squared = 0.0, 0.0
        with self._only(module, scale):
            for item in self._seen:
                new = self._moved_logits(item, module)
                total += float(item.positions.total(token_kl(item.logits, new)))
                squared += float(by_rows(lambda rows: widened(rows).square().sum(-1), new).sum())
        self._squared_logits[module] = squared
        return self._over_ranks(total)[0] / self.samples

    def limit(self, module: str) -> float | None:
        """Drift in nats to second order in the update; None where the model has no forward-mode derivative."""
        if is_sharded(self._forward.model):
            return None
        kept, now = self._snapshot.values(module), self._partition[module]
        velocities = {id(p): p.detach() - old for p, old in zip(now, kept, strict=True)}
        total, missing = 0.0, 0.0
        try:
            with self._snapshot.swapped_in(self._partition), moving(self._forward.model, velocities):
                for item in self._seen:
                    drift = quadratic_drift(self._moved_logits(item, module))
                    if drift is None:
                        missing = 1.0
                    else:
                        total += float(item.positions.total(drift))
        except RuntimeError:  # a kernel without a forward-mode derivative
            missing = 1.0
        total, missing = self._over_ranks(total, missing)
        return None if missing else total / self.samples

    def _loss(self) -> float:
        """Mean over samples of the mean cross-entropy over their answer tokens, in nats."""
        total = 0.0
        for item in self._seen:
            total += float(item.positions.total(by_rows(_cross_entropy, item.logits, item.positions.targets)))
        return self._over_ranks(total)[0] / self.samples

    def _rounding(self) -> float:
        """What rounding the logits alone adds to a drift in nats: half the variance under P of errors up to u |z|."""
        total = 0.0
        for item in self._seen:
            total += float(item.positions.total(by_rows(_variance_of_rounding, item.logits)))
        unit = _unit_roundoff(self._forward.model, self._seen[0].logits)
        return unit**2 / 6 * self._over_ranks(total)[0] / self.samples

    def gradients(self, module: str) -> list[Tensor]:
        """Gradient of a module's drift with respect to that module's new values (lookahead, Eq. 9-10)."""
        parameters = self._partition[module]
        total = [torch.zeros_like(p) for p in parameters]
        with torch.enable_grad(), evaluation_mode(self._forward.model), self._only(module):
            for item in self._seen:
                new = self._moved_logits(item, module)
                drift = item.positions.total(token_kl(item.logits, new)) / self.samples
                torch._foreach_add_(total, gradient_or_zeros(drift, parameters))
        sum_tensors_over_ranks(total)
        return total


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(widened(logits), targets, reduction="none")


def _variance_of_rounding(logits: Tensor) -> Tensor:
    """Under P, of errors as large as the logits."""
    p = logits.float().softmax(-1)
    return (p * (1 - p) * logits.float().masked_fill(p == 0, 0).square()).sum(-1)


def _unit_roundoff(model: nn.Module, logits: Tensor) -> float:
    """Of the coarsest number format on the way to the logits: u, half of what `torch.finfo` calls eps.

    Formats of a byte are for storage; quantised layers say in which one they compute.
    """
    dtypes = {logits.dtype, *(parameter.dtype for parameter in model.parameters())}
    dtypes |= {
        kind for module in model.modules() if isinstance(kind := getattr(module, "compute_dtype", None), torch.dtype)
    }
    device = logits.device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(kind).eps for kind in dtypes if kind.is_floating_point and kind.itemsize > 1) / 2


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
