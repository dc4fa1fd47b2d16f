"""How a transformers multimodal model is taken apart: language model and feature encoders, by one rule for all."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from commit_tuning.config import PROJECTOR_PLACES, ProjectorPlace
from commit_tuning.errors import PartitionError
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition

ENCODER_OF_MODALITY = {"image": "vision", "video": "vision", "audio": "audio"}
PROJECTOR = "projector"
_QFORMER_NAME = re.compile(r"q_?former|query_tokens", re.IGNORECASE)
_MERGER_NAME = re.compile(r"(?:^|[._])merger(?:[._]|$)")
_AUDIO_NAME = re.compile(r"audio|speech|sound|beats|whisper", re.IGNORECASE)
# Encoders that `get_encoder(modality)` of transformers does not find, as paths inside the model.
_OTHER_TOWERS = {
    "vision": ("embed_vision", "vision_embed_tokens", "embed_tokens_extend.image_embed"),
    "audio": ("embed_audio", "embed_tokens_extend.audio_embed"),
}
# Families whose images become the indices of the nearest codes, through which no gradient passes.
_DISCRETE_IMAGES = ("apertus1p5", "chameleon", "emu3", "glm_image")


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside PEFT, data-parallel and `torch.compile` wrappers, or the model itself."""
    inner: Any = model
    while True:
        if isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return inner


def multimodal_base(model: nn.Module) -> Any:
    """The transformers model inside a model, with a language model and an encoder that can be told apart.

    Raises:
        PartitionError: Not such a model.
    """
    base = unwrap(model)
    if not hasattr(base, "get_decoder") or not hasattr(base, "get_encoder"):
        raise PartitionError(
            f"{type(base).__name__} is not a transformers model; name its modules with ModulePartition({{...}}) instead"
        )
    if getattr(base.config, "model_type", None) in _DISCRETE_IMAGES:
        raise PartitionError(
            f"{type(base).__name__} turns images into the indices of codes, so no gradient can reach its encoder: "
            "there is nothing to balance"
        )
    if not _towers(base) or base.get_decoder() is base:
        raise PartitionError(
            f"{type(base).__name__} has no image, video or audio encoder; CoMMIT balances one with the LLM"
        )
    return base


def partition_model(model: nn.Module, projector: ProjectorPlace = "encoder") -> ModulePartition:
    """Share out the trainable parameters of a transformers multimodal model, PEFT-wrapped or not.

    `language_model` is the text decoder with its embeddings and output head. What is neither belongs to a feature
    encoder: tower, Q-Former, projector. The encoder is called `vision` or `audio`; in a model with both, a parameter
    outside the two towers goes by its name, and an encoder that is frozen beside one that trains is left out.

    Args:
        model: A model with `get_decoder()` and `get_encoder(modality)`, as transformers' generation classes have them.
        projector: Whose the projector is, which the paper leaves open: the `"encoder"`'s, the `"language_model"`'s, or
            its `"own"`, a third module `projector` beside the encoder. The projector is everything outside language
            model and tower that is no Q-Former (`qformer`, `query_tokens`): LLaVA's `multi_modal_projector`, BLIP-2's
            `language_projection`; where nothing is, the tower's own `merger`, as in Qwen2-VL.

    Returns:
        The partition, in which every trainable parameter stands exactly once.

    Raises:
        PartitionError: Not such a model, no encoder in it, nothing trainable in its language model or its encoders, no
            projector to be placed, or something trained beside the model, such as PEFT's soft prompts.
    """
    if projector not in PROJECTOR_PLACES:
        raise PartitionError(f"projector={projector!r} is not one of {', '.join(PROJECTOR_PLACES)}")
    base = multimodal_base(model)
    inside = _parameter_ids(base)
    beside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    if beside:
        raise PartitionError(
            f"trainable parameter {beside[0]!r} lies beside the {type(base).__name__}, where no drift can be measured; "
            "with PEFT use adapters inside the model, such as LoRA, instead of soft prompts"
        )
    towers = _towers(base)
    module_of = part_of_parameter(model)
    modules: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in (LANGUAGE_MODEL, *towers)}
    if projector != "encoder":
        place = LANGUAGE_MODEL if projector == "language_model" else PROJECTOR
        module_of.update(dict.fromkeys(projector_parameters(model), place))
        modules.setdefault(place, [])
    for name, parameter in model.named_parameters():
        modules[module_of[id(parameter)]].append((name, parameter))
    idle = {name for name in towers if not any(parameter.requires_grad for _, parameter in modules[name])}
    if idle == {*modules} - {LANGUAGE_MODEL}:
        raise PartitionError(
            f"module {min(idle)!r} has no trainable parameter, so there is nothing to balance the language model with: "
            "unfreeze its projector, with PEFT by modules_to_save=[...], or adapt all with target_modules='all-linear'"
        )
    return ModulePartition({name: parameters for name, parameters in modules.items() if name not in idle})


def part_of_parameter(model: nn.Module) -> dict[int, str]:
    """`id` of a transformers model's parameter to where it acts: `language_model`, or the encoder it is on the way of.

    Projectors count to the encoders here: an encoder's features are what comes out of its projector.
    """
    base = unwrap(model)
    language = _parameter_ids(base.get_decoder(), base.get_output_embeddings(), base.get_input_embeddings())
    towers = _towers(base)
    language -= set().union(*towers.values())  # a tower may sit inside the decoder's embeddings
    return {
        id(parameter): LANGUAGE_MODEL if id(parameter) in language else _encoder_of(name, parameter, towers)
        for name, parameter in model.named_parameters()
    }


def projector_parameters(model: nn.Module) -> set[int]:
    """The ids of the projector's parameters, frozen ones included: see `partition_model`.

    Raises:
        PartitionError: There is no projector.
    """
    part_of, towers = part_of_parameter(model), _towers(unwrap(model))
    inside = set().union(*towers.values())
    encoders = {id(p): name for name, p in model.named_parameters() if part_of[id(p)] != LANGUAGE_MODEL}
    outside = {key for key, name in encoders.items() if key not in inside and not _QFORMER_NAME.search(name)}
    found = outside or {key for key, name in encoders.items() if _MERGER_NAME.search(name)}
    if not found:
        raise PartitionError(
            f"{type(unwrap(model)).__name__} has no projector that stands by itself; use projector='encoder', or name "
            "its modules with ModulePartition({...})"
        )
    return found


def _parameter_ids(*modules: nn.Module | None) -> set[int]:
    return {id(p) for module in modules if module is not None for p in module.parameters()}


def _towers(base: Any) -> dict[str, set[int]]:
    """Encoder name to the ids of its tower's parameters."""
    towers: dict[str, set[int]] = {}
    for modality, name in ENCODER_OF_MODALITY.items():
        tower = base.get_encoder(modality)
        if isinstance(tower, nn.Module) and tower is not base:
            towers.setdefault(name, set()).update(_parameter_ids(tower))
    for name, paths in _OTHER_TOWERS.items():
        for tower in filter(None, (_submodule(base.base_model, path) for path in paths)):
            if name not in towers:
                towers[name] = _parameter_ids(tower)
    if not towers and hasattr(base.base_model, "get_audio_features"):
        towers["audio"] = _parameter_ids(
            _submodule(base.base_model, "encoder")
        )  # of speech recognisers, such as Granite
    return {name: ids for name, ids in towers.items() if ids}


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _encoder_of(name: str, parameter: nn.Parameter, towers: dict[str, set[int]]) -> str:
    for encoder, ids in towers.items():
        if id(parameter) in ids:
            return encoder
    if len(towers) == 1:
        return next(iter(towers))
    return "audio" if _AUDIO_NAME.search(name) else "vision"
