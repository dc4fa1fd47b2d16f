"""A model with two encoders, and batches of one modality each, as a sampler that groups by modality makes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from commit_tuning import CoMMITConfig, Coordinator, ModulePartition

ENCODERS = ("vision", "audio")


class Output(NamedTuple):
    """What DDP finds the tensors in."""

    loss: Tensor
    logits: Tensor


class Omni(nn.Module):
    """Two encoders in front of a small language model; each runs where the batch has its input."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.audio = nn.Linear(6, 8), nn.Linear(4, 8)
        self.embed, self.mixer, self.head = nn.Embedding(12, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 12)

    def forward(
        self, input_ids: Tensor, labels: Tensor, pixels: Tensor | None = None, sound: Tensor | None = None
    ) -> Any:
        hidden = self.embed(input_ids)
        if pixels is not None:
            hidden = hidden + self.vision(pixels)[:, None]
        if sound is not None:
            hidden = hidden + self.audio(sound)[:, None]
        logits = self.head(self.mixer(hidden)[0])
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(loss, logits)


def batch(kind: str, seed: int, size: int = 6) -> dict[str, Tensor]:
    """A batch with images where the kind holds I, with sounds where it holds A, and of text alone else."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 12, (size, 7), generator=generator)
    pixels, sound = torch.randn(size, 6, generator=generator), torch.randn(size, 4, generator=generator)
    inputs = {"I": {"pixels": pixels}, "A": {"sound": sound}, "T": {}}
    return {"input_ids": ids, "labels": ids.clone(), **{k: v for part in kind for k, v in inputs[part].items()}}


def omni_partition(model: nn.Module) -> ModulePartition:
    """The two encoders, and the language model."""
    named = {name: [(n, p) for n, p in model.named_parameters() if f"{name}." in n] for name in ENCODERS}
    encoders = {name for pairs in named.values() for name, _ in pairs}
    return ModulePartition(
        {"language_model": [(n, p) for n, p in model.named_parameters() if n not in encoders], **named}
    )


def start(wrap: Any = lambda model: model, **settings: Any) -> Coordinator:
    """A coordinator over a fresh model."""
    torch.manual_seed(0)
    model = wrap(Omni())
    partition = omni_partition(model)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2))
    return Coordinator(model, optimizer, CoMMITConfig(**settings), partition)


def train(coordinator: Coordinator, kinds: Iterable[str], first: int = 0) -> list[dict[str, Any]]:
    """Train on a batch of each kind in turn; what every step measured, and what came of it."""
    seen = []
    for step, kind in enumerate(kinds, start=first):
        data = batch(kind, step)
        coordinator._meter.forward.model(**data).loss.backward()
        coordinator.step(data)
        coordinator._optimizer.zero_grad()
        measured = sorted(coordinator.drift) if coordinator._last.measured else None
        seen.append({"step": step, "modules": measured, "kappas": coordinator.kappas, **coordinator.metrics()})
    return seen
