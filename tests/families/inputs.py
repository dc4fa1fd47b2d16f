"""A batch for any family: raw inputs that its encoders take, and as many placeholders as features come out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from families.shrink import FRAMES, MEL_BINS, PATCH, PATCHES, SIDE

SAMPLES, ANSWER, TEXT = 2, 3, 6
START = 3  # a token that no config names
KINDS = {"image": 1, "video": 2, "audio": 3}  # of tokens, as mm_token_type_ids has them
MODULE = {"image": "vision", "video": "vision", "audio": "audio"}
NAMES_OF_KINDS = ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")
FAULTS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
Raw = dict[str, Tensor]


def random(*shape: int) -> Tensor:
    """Standard normal, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def per_sample(*row: int) -> Tensor:
    """The same whole numbers for each sample: [samples, numbers]."""
    return torch.tensor([row] * SAMPLES)


def images(side: int) -> Tensor:
    """One square image per sample."""
    return random(SAMPLES, 3, side, side)


def patches(*shape: int) -> Tensor:
    """The patches of one image per sample, one after another: [patches, *shape]."""
    return random(SAMPLES * PATCHES**2, *shape)


def encoder_functions(model: nn.Module, modality: str) -> list[Any]:
    """`get_image_features` and its like, of the model and of what it wraps."""
    owners = (model, getattr(model, "model", None), getattr(model, "base_model", None))
    functions = (getattr(owner, f"get_{modality}_features", None) for owner in owners)
    return [function for function in functions if function is not None]


def names_of_inputs(model: nn.Module, modality: str) -> set[str]:
    """What an encoder's functions take by name."""
    return {name for f in encoder_functions(model, modality) for name in inspect.signature(f).parameters}


def encode(model: nn.Module, modality: str, raw: Raw) -> Any:
    """What an encoder makes of raw inputs."""
    with torch.no_grad():
        return encoder_functions(model, modality)[0](**raw, return_dict=True)


def image_inputs(model: nn.Module) -> Iterator[Raw]:
    """What images look like to one family or another; the first that the encoder takes is meant."""
    names = names_of_inputs(model, "image")
    grids = {
        "image_grid_thw": per_sample(1, PATCHES, PATCHES),
        "image_grid_hw": per_sample(PATCHES, PATCHES),
        "image_merge_sizes": torch.tensor([2] * SAMPLES),
    }
    grid = {name: value for name, value in grids.items() if name in names}
    if grid:
        vision = model.config.vision_config
        frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", 1)
        for shape in ((3 * frames * PATCH**2,), (3 * PATCH**2,), (3, PATCH, PATCH)):
            yield {"pixel_values": patches(*shape), **grid}
        return
    size = getattr(model.config, "image_grid_pinpoints", [[SIDE, SIDE]])[0]
    for sizes in ({}, {"image_sizes": per_sample(*size)}):
        for crops in ((), (1,), (3,), (5,)):
            yield {"pixel_values": random(SAMPLES, *crops, 3, SIDE, SIDE), **sizes}


def sound_inputs(model: nn.Module) -> Iterator[Raw]:
    """What sounds look like to one family or another: spectrograms, bins before frames or after them."""
    masks = [name for name in names_of_inputs(model, "audio") if name.endswith("_mask")]
    mask = {name: torch.ones(SAMPLES, FRAMES, dtype=torch.bool) for name in masks}
    for shape in ((MEL_BINS, FRAMES), (FRAMES, MEL_BINS)):
        yield {"input_features": random(SAMPLES, *shape), **mask}


def generic_inputs(model: nn.Module) -> dict[str, Raw]:
    """Images and sounds, whichever the model has an encoder for, in the first form that the encoder takes.

    Raises:
        RuntimeError: It takes none of those known here, or has no function for features.
    """
    makers = {"image": image_inputs, "audio": sound_inputs}
    found = {modality: make for modality, make in makers.items() if encoder_functions(model, modality)}
    if not found:
        raise RuntimeError(f"{type(model).__name__} has neither get_image_features nor get_audio_features")
    return {modality: _first_taken(model, modality, make(model)) for modality, make in found.items()}


def _first_taken(model: nn.Module, modality: str, forms: Iterator[Raw]) -> Raw:
    faults = []
    for raw in forms:
        try:
            encode(model, modality, raw)
        except FAULTS as fault:
            faults.append(f"{type(fault).__name__}: {fault}"[:200])
        else:
            return raw
    raise RuntimeError(" | ".join(faults))


def placeholders(model: nn.Module, modality: str, raw: Raw) -> int:
    """Tokens that one sample's images or sounds take in the text."""
    output = encode(model, modality, raw)
    found = (getattr(output, name, None) for name in ("pooler_output", "last_hidden_state"))
    features = next((f for f in found if f is not None), output)
    many = features if isinstance(features, list | tuple) else [features]
    return sum(f.numel() // f.shape[-1] for f in many) // SAMPLES


def _token(config: Any, *names: str) -> int | None:
    return next((int(token) for name in names if (token := getattr(config, name, None)) is not None), None)


def token_of(config: Any, modality: str) -> int:
    """The id of a modality's placeholder."""
    token = _token(config, f"{modality}_token_id", f"{modality}_token_index")
    assert token is not None, f"no {modality} token in {type(config).__name__}"
    return token


def marks(config: Any, modality: str) -> list[int]:
    """The tokens before and after a modality's placeholders: those that the config names, or any."""
    stems = [[f"{kind}_{place}" for kind in (modality, MODULE[modality])] for place in ("start", "end")]
    found = [_token(config, *(f"{stem}{ending}" for stem in pair for ending in ("_token_id", "_id"))) for pair in stems]
    return [START if token is None else token for token in found]


def make_batch(
    model: nn.Module, inputs: Mapping[str, Raw], counts: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Marked placeholders, then text that ends with an answer; the first sample's answer is one token shorter.

    Args:
        model: Of a family.
        inputs: Modality to raw inputs.
        counts: Modality to placeholders for one sample, where they are not as many as features.
    """
    columns, kinds = [START], [0]
    for modality, raw in inputs.items():
        count = (counts or {}).get(modality) or placeholders(model, modality, raw)
        before, after = marks(model.config, modality)
        columns += [before, *[token_of(model.config, modality)] * count, after]
        kinds += [0, *[KINDS[modality]] * count, 0]
    text = torch.randint(5, 60, (SAMPLES, TEXT), generator=torch.Generator().manual_seed(1))
    ids, types = torch.cat([per_sample(*columns), text], 1), per_sample(*kinds, *[0] * TEXT)
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    labels[0, -ANSWER] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    for raw in inputs.values():
        batch.update(raw)
    accepted = inspect.signature(model.forward).parameters
    return {**batch, **{name: types for name in NAMES_OF_KINDS if name in accepted}}
