"""A batch for any family: raw inputs that its encoders take, and as many placeholders as features come out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES, ANSWER, TEXT = 2, 3, 6
PLACEHOLDER = {"image": 1, "video": 2, "audio": 3}  # as mm_token_type_ids has them
Raw = dict[str, Tensor]


def random(*shape: int) -> Tensor:
    """Standard normal, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def encoder_function(model: nn.Module, modality: str) -> Any:
    """`get_image_features` and its like, of the model or of what it wraps; None where there is none."""
    for owner in (model, getattr(model, "model", None), getattr(model, "base_model", None)):
        function = getattr(owner, f"get_{modality}_features", None)
        if function is not None:
            return function
    return None


def image_inputs(model: nn.Module, modality: str = "image") -> Iterator[Raw]:
    """What images look like to one family or another; the first that its encoder takes is meant."""
    config: Any = getattr(model.config, "vision_config", None) or model.config
    names = inspect.signature(encoder_function(model, modality)).parameters
    patch = _last(getattr(config, "patch_size", 14))
    side = _last(getattr(config, "image_size", None) or 4 * patch)
    channels = next((c for n in ("in_channels", "in_chans", "num_channels") if (c := getattr(config, n, None))), 3)
    pixels = "pixel_values_videos" if modality == "video" else "pixel_values"
    if f"{modality}_grid_thw" in names:
        merge = _last(getattr(config, "spatial_merge_size", None) or getattr(config, "merge_size", None) or 2)
        frames = getattr(config, "temporal_patch_size", None) or 1
        grid = torch.tensor([[1, 2 * merge, 2 * merge]] * SAMPLES)
        patches = int(grid.prod(-1).sum())
        for shape in ((channels * frames * patch**2,), (channels * patch**2,), (channels, patch, patch)):
            yield {pixels: random(patches, *shape), f"{modality}_grid_thw": grid}
        return
    sizes = {"image_sizes": torch.tensor([[side, side]] * SAMPLES)} if "image_sizes" in names else {}
    for crops in ((), (1,), (3,), (5,)):
        yield {pixels: random(SAMPLES, *crops, channels, side, side), **sizes}


def _last(value: Any) -> int:
    return int(value[-1] if isinstance(value, list | tuple) else value)


def generic_inputs(model: nn.Module) -> dict[str, Raw]:
    """Images that the model's encoder takes.

    Raises:
        RuntimeError: It takes none of those known here.
    """
    faults = []
    for raw in image_inputs(model):
        try:
            with torch.no_grad():
                encoder_function(model, "image")(**raw, return_dict=True)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as fault:
            faults.append(f"{type(fault).__name__}: {fault}"[:200])
        else:
            return {"image": raw}
    raise RuntimeError(" | ".join(faults))


def placeholders(model: nn.Module, modality: str, raw: Raw) -> int:
    """Tokens that one sample's images or sounds take in the text."""
    with torch.no_grad():
        output = encoder_function(model, modality)(**raw, return_dict=True)
    features = getattr(output, "pooler_output", None)
    features = output if features is None else features
    many = features if isinstance(features, list | tuple) else [features]
    return sum(f.numel() // f.shape[-1] for f in many) // SAMPLES


def token_of(config: Any, modality: str) -> int:
    """The id of a modality's placeholder."""
    names = [f"{modality}_token_id", f"{modality}_token_index"]
    return next(int(token) for name in names if (token := getattr(config, name, None)) is not None)


def make_batch(
    model: nn.Module, inputs: Mapping[str, Raw], counts: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Text with placeholders and an answer after the raw inputs; the first sample's answer is one token shorter.

    Args:
        model: Of a family.
        inputs: Modality to raw inputs.
        counts: Modality to placeholders for one sample, where they are not as many as features.
    """
    generator = torch.Generator().manual_seed(1)
    columns = [torch.full((SAMPLES, 1), 3)]
    kinds = [torch.zeros(SAMPLES, 1, dtype=torch.long)]
    for modality, raw in inputs.items():
        count = (counts or {}).get(modality)
        count = placeholders(model, modality, raw) if count is None else count
        columns.append(torch.full((SAMPLES, count), token_of(model.config, modality)))
        kinds.append(torch.full((SAMPLES, count), PLACEHOLDER[modality]))
    columns.append(torch.randint(5, 60, (SAMPLES, TEXT), generator=generator))
    kinds.append(torch.zeros(SAMPLES, TEXT, dtype=torch.long))
    ids, types = torch.cat(columns, 1), torch.cat(kinds, 1)
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    labels[0, -ANSWER] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    for raw in inputs.values():
        batch.update(raw)
    accepted = inspect.signature(model.forward).parameters
    return {**batch, **{n: types for n in ("mm_token_type_ids", "token_type_ids") if n in accepted}}
