"""Families that cut an image up: into tiles, into crops beside the whole, or into columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from families.exceptions import Exceptions, below, fill
from families.inputs import SAMPLES, Raw, images, per_sample, random
from families.shrink import PATCH, PATCHES, SIDE, VOCABULARY, WIDTH


def image_and_crops(model: Any) -> dict[str, Raw]:
    """A whole image and two crops of it, which are smaller, per sample."""
    del model
    crops = random(2 * SAMPLES, 3, SIDE - PATCH, SIDE - PATCH)
    counts = torch.tensor([2] * SAMPLES)
    return {"image": {"pixel_values": images(SIDE), "pixel_values_local": crops, "num_local_patches": counts}}


def image_and_columns(model: Any) -> dict[str, Any]:
    """An image and its left and right half per sample; counts come as lists, as the processor leaves them."""
    del model
    return {
        "image": {
            "pixel_values": images(SIDE),
            "pixel_values_local": random(2 * SAMPLES, 3, SIDE // 2, SIDE // 2),
            "num_local_patches": [2] * SAMPLES,
            "patches_grid": [[2, 1]] * SAMPLES,
        }
    }


def pages(model: Any) -> dict[str, Raw]:
    """Two tiles per page, none of them padding."""
    del model
    tiles = random(SAMPLES, 2, 3, SIDE, SIDE)
    return {"image": {"pixel_values": tiles, "pixel_attention_mask": torch.ones(SAMPLES, 2, dtype=torch.bool)}}


def one_tile_or_two(model: Any) -> dict[str, Raw]:
    """An image of one tile and an image of two."""
    del model
    mask = torch.tensor([[[1, 0]], [[1, 1]]])
    return {
        "image": {
            "pixel_values": random(SAMPLES, 1, 2, 3, SIDE, SIDE) * mask[..., None, None, None],
            "aspect_ratio_ids": torch.tensor([[1], [2]]),
            "aspect_ratio_mask": mask,
        }
    }


def tiles_seen(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Which tiles a token attends to: those of its image, from the image's placeholder on."""
    seen = (batch["input_ids"] == model.config.image_token_id).cumsum(-1)
    return {"cross_attention_mask": seen[:, :, None, None] * batch["aspect_ratio_mask"][:, None]}


def pooled_crops(model: Any) -> dict[str, Raw]:
    """Two crops of an image, the whole one small and one tile; a token pools 2 x 2 patches."""
    del model
    crops, pooled = 2 * SAMPLES, PATCHES // 2
    windows = torch.arange(PATCHES**2).view(pooled, 2, pooled, 2).transpose(1, 2).reshape(-1, 4)
    return {
        "image": {
            "pixel_values": random(crops, PATCHES**2, 3 * PATCH**2),
            "image_token_pooling": torch.cat([windows + crop * PATCHES**2 for crop in range(crops)]),
            "image_grids": per_sample(*[pooled] * 4),
            "image_num_crops": torch.tensor([2] * SAMPLES),
        }
    }


def few_queries(model: Any) -> None:
    """Four learned queries per view: the code says 144 and 256, the config nothing."""
    for name in ("query_768_resolution", "query_1024_resolution"):
        setattr(model.model.vision_tower, name, nn.Embedding(4, WIDTH))


EXCEPTIONS: dict[str, Exceptions] = {
    "DeepseekOcr2ForConditionalGeneration": Exceptions(
        changes=below("text_config", {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}),
        prepare=few_queries,
        inputs=image_and_crops,
    ),
    "Granite4VisionForConditionalGeneration": Exceptions(
        changes={
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "vision_config.hidden_size": 64,  # a head of the Q-Former has 64 dimensions
        },
        counts={"image": 14},  # a small image of 4, and two rows of 4 with their newline
    ),
    "GraniteDoclingForConditionalGeneration": Exceptions(inputs=pages),
    "MllamaForConditionalGeneration": Exceptions(
        changes=below(
            "vision_config",
            {"vision_output_dim": 2 * WIDTH, "supported_aspect_ratios": [[1, 1], [1, 2]], "max_num_tiles": 2},
        ),
        prepare=fill(
            "model.language_model.layers.1.cross_attn_attn_gate", "model.language_model.layers.1.cross_attn_mlp_gate"
        ),
        inputs=one_tile_or_two,
        counts={"image": 1},
        extra=tiles_seen,
    ),
    "Molmo2ForConditionalGeneration": Exceptions(
        changes={"image_patch_id": VOCABULARY},  # the first of the additional vocabulary, which has no output
        inputs=pooled_crops,
    ),
    "UnlimitedOcrForConditionalGeneration": Exceptions(inputs=image_and_columns),
}
