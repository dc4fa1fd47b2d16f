"""How a transformers multimodal model is taken apart: language model and feature encoders, by one rule for all."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from commit_tuning.core.partition import LANGUAGE_MODEL, ModulePartition
from commit_tuning.errors import PartitionError

ENCODER_OF_MODALITY = {"image": "vision", "video": "vision", "audio": "audio"}
_AUDIO_NAME = re.compile(r"audio|speech|sound|beats|whisper", re.IGNORECASE)


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside PEFT and data-parallel wrappers, or the model itself."""
    inner: Any = model
    while True:
        if isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return inner


def partition_model(model: nn.Module) -> ModulePartition:
    """Share out the trainable parameters of a transformers multimodal model, PEFT-wrapped or not.

    `language_model` is the text decoder with its embeddings and output head. What is neither belongs to a feature
    encoder: tower, Q-Former, projector. The encoder is called `vision` or `audio`; in a model with both, a parameter
    outside the two towers goes by its name.

    Args:
        model: A model with `get_decoder()` and `get_encoder(modality)`, as transformers' generation classes have them.

    Returns:
        The partition, in which every trainable parameter stands exactly once.

    Raises:
        PartitionError: Not such a model, no encoder in it, or nothing trainable in one of its modules.
    """
    base = unwrap(model)
    if not hasattr(base, "get_decoder") or not hasattr(base, "get_encoder"):
        raise PartitionError(
            f"{type(base).__name__} is not a transformers model; name its modules with ModulePartition({{...}}) instead"
        )
    language = _parameter_ids(base.get_decoder(), base.get_output_embeddings(), base.get_input_embeddings())
    towers = _towers(base)
    if not towers or base.get_decoder() is base:
        raise PartitionError(
            f"{type(base).__name__} has no image, video or audio encoder; CoMMIT balances one with the LLM"
        )
    modules: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in (LANGUAGE_MODEL, *towers)}
    for name, parameter in model.named_parameters():
        module = LANGUAGE_MODEL if id(parameter) in language else _encoder_of(name, parameter, towers)
        modules[module].append((name, parameter))
    return ModulePartition(modules)


def _parameter_ids(*modules: nn.Module | None) -> set[int]:
    return {id(p) for module in modules if module is not None for p in module.parameters()}


def _towers(base: Any) -> dict[str, set[int]]:
    """Encoder name to the ids of its tower's parameters."""
    towers: dict[str, set[int]] = {}
    for modality, name in ENCODER_OF_MODALITY.items():
        tower = base.get_encoder(modality)
        if isinstance(tower, nn.Module) and tower is not base:
            towers.setdefault(name, set()).update(_parameter_ids(tower))
    return towers


def _encoder_of(name: str, parameter: nn.Parameter, towers: dict[str, set[int]]) -> str:
    for encoder, ids in towers.items():
        if id(parameter) in ids:
            return encoder
    if len(towers) == 1:
        return next(iter(towers))
    return "audio" if _AUDIO_NAME.search(name) else "vision"
