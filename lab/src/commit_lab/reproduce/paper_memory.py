"""Bytes of a training step at real size, counted on tensors that have shapes and formats and no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from commit_lab.reproduce.paper_models import PaperModel
from commit_tuning.partition.discover import unwrap
from commit_tuning.train.model_setup import precision
from commit_tuning.train.recipe.schema import Model

FLOAT32 = 4


def saved_bytes(model: nn.Module, paper: PaperModel, settings: Model, samples: int) -> tuple[int, int]:
    """Count what the forward pass of a micro-batch keeps for the backward pass, without gradient checkpointing.

    The encoder and the language model run one after the other, at full size, as fake tensors of PyTorch: every
    operation gives shapes and formats, and what autograd saves is added up. The kernels are those of the CPU; their
    attention keeps no scores, as the fused ones of a GPU.

    Args:
        model: On the meta device, as `prepare` leaves it; its tensors are exchanged for fake ones.
        paper: Its sizes.
        settings: The recipe's `model` section.
        samples: Of the micro-batch.

    Returns:
        Bytes of the language model, from embeddings to last hidden states, and of the encoder with its projector.
    """
    base, text, own = unwrap(model.train()), paper.language_model(), getattr(torch, settings.dtype or "float32")
    with FakeTensorMode(), precision(settings, "cpu"):
        _fake(model)
        embedded = torch.zeros(samples, text.tokens, text.width, dtype=own, requires_grad=True)
        mask = torch.ones(samples, text.tokens, dtype=torch.long)
        language = _saved(
            lambda: base.get_decoder()(inputs_embeds=embedded * 1, attention_mask=mask, use_cache=False), model
        )
        encoder = _saved(lambda: _encode(base, paper, samples), model)
    return language, encoder


def activation_bytes(saved: tuple[int, int], paper: PaperModel, samples: int, checkpointed: bool) -> int:
    """Count what a micro-batch keeps: `saved_bytes`, or with checkpointing all layers' inputs and one layer.

    A layer's input counts as float32. The logits of all b s tokens take 14 bytes for each of the vocabulary: bfloat16,
    float32, their log-softmax and its gradient.
    """
    text, encoder = paper.language_model(), paper.encoder
    logits: int = 14 * samples * text.tokens * paper.sizes["text_config"]["vocab_size"]
    if not checkpointed:
        return sum(saved) + logits
    inputs = sum(FLOAT32 * samples * s.sequences * s.tokens * s.width * s.layers for s in (text, encoder))
    return inputs + max(saved[0] // text.layers, saved[1] // encoder.layers) + logits


def measurement_bytes(trainable: dict[str, int], paper: PaperModel, samples: int) -> int:
    """Estimate the memory of a measurement of kappa.

    `measure/probe.py` keeps the values of all trained parameters from before the step, and their present ones while
    they are swapped out: 8 bytes each. Forward mode adds the update of one module, 4 bytes each, and runs attention
    with its plain kernel, which keeps scores: heads x tokens^2 of a sequence, in float32, before and after the softmax,
    each with its derivative.
    """
    stacks = (paper.language_model(), paper.encoder)
    scores = max(4 * FLOAT32 * samples * s.sequences * s.heads * s.tokens**2 for s in stacks)
    return 2 * FLOAT32 * sum(trainable.values()) + FLOAT32 * max(trainable.values()) + scores


def regularizer_bytes(trainable: dict[str, int], saved: tuple[int, int]) -> int:
    """Estimate the further memory of Eq. 9-10: the drift's gradients, and a backward pass in evaluation mode.

    Gradient checkpointing works in training mode alone, so this pass keeps the activations of every layer.
    """
    return FLOAT32 * (sum(trainable.values()) + max(trainable.values())) + sum(saved)


def _fake(model: nn.Module) -> None:
    """Give a model fake tensors in the place of its own, shared ones shared, inside a `FakeTensorMode`."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in made:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                    made[id(value)] = (
                        nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake
                    )
                table[name] = made[id(value)]  # type: ignore[assignment]


def _saved(run: Callable[[], Any], model: nn.Module) -> int:
    """Count the bytes that autograd saves in a forward pass, each storage once, without parameters."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    storages: dict[int, int] = {}
    kept: list[Any] = []  # alive, so that no storage gets the address of another

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept.append(run())
    return sum(storages.values())


def _encode(base: Any, paper: PaperModel, samples: int) -> Any:
    """Run the encoder on nothing, in the shape that its processor makes."""
    if paper.samples == "audio":
        mels, frames = base.config.whisper_config.num_mel_bins, 2 * base.config.whisper_config.max_source_positions
        banks = torch.zeros(samples, frames - 2, base.config.beats_config.num_mel_bins)
        return base.get_audio_features(input_features=torch.zeros(samples, mels, frames), fbank_features=banks)
    side = base.config.vision_config.image_size
    side = side if isinstance(side, int) else side[0]
    pictures = torch.zeros(samples * paper.encoder.sequences, 3, side, side)
    return base.get_image_features(pixel_values=pictures, return_dict=True)
