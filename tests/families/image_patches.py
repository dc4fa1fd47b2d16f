"""Families that take an image as the list of its patches, with their grid or their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from families.exceptions import Exceptions, below
from families.inputs import SAMPLES, Raw, patches, per_sample, random
from families.shrink import MROPE, PATCH, PATCHES, WIDTH


def naflex_images(model: Any) -> dict[str, Raw]:
    """Patches of square images, as SigLIP 2 takes them."""
    del model
    return {
        "image": {
            "pixel_values": random(SAMPLES, PATCHES**2, 3 * PATCH**2),
            "spatial_shapes": per_sample(PATCHES, PATCHES),
            "pixel_attention_mask": torch.ones(SAMPLES, PATCHES**2, dtype=torch.long),
        }
    }


def strip_of_images(side: int) -> Callable[[Any], dict[str, Raw]]:
    """Makes images of `side` x `side` patches, all patches side by side in one strip, as MiniCPM takes them."""
    strip = random(1, 3, PATCH, SAMPLES * side**2 * PATCH)
    return lambda model: {"image": {"pixel_values": strip, "target_sizes": per_sample(side, side)}}


def bare_patches(model: Any) -> dict[str, Raw]:
    """Patches without a grid."""
    del model
    return {"image": {"pixel_values": patches(3 * PATCH**2)}}


def pieces(model: Any) -> dict[str, Raw]:
    """Pieces of an image, one per token, channels last; the grid counts tokens."""
    side = PATCH * model.config.vision_config.spatial_merge_size
    return {"image": {"pixel_values": random(4 * SAMPLES, side, side, 3), "image_grid_thw": per_sample(1, 2, 2)}}


INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": 8, "budget": 8, "compress_ratio": 4}
ERNIE = Exceptions(changes={"text_config.rope_parameters.mrope_section": [1, 1, 2]})  # height, width, time

EXCEPTIONS: dict[str, Exceptions] = {
    "CohereCompassForConditionalGeneration": Exceptions(
        changes={
            "text_config.rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e4, "mrope_section": MROPE},
                "full_attention": None,
            }
        },
    ),
    "Ernie4_5_VLMoeForConditionalGeneration": ERNIE,
    "Ernie4_5_VL_MoeForConditionalGeneration": ERNIE,
    "FuyuForCausalLM": Exceptions(inputs=bare_patches),
    "HunYuanVLForConditionalGeneration": Exceptions(changes={"text_config.head_dim": 8}),
    "Inkling2ForConditionalGeneration": Exceptions(inputs=pieces),
    "Inkling2LoopForConditionalGeneration": Exceptions(inputs=pieces),
    "Lfm2VlForConditionalGeneration": Exceptions(
        changes={"text_config.layer_types": ["conv", "full_attention"]}, inputs=naflex_images
    ),
    "MiniCPMOcrForConditionalGeneration": Exceptions(inputs=strip_of_images(PATCHES)),
    "MiniCPMV4_6ForConditionalGeneration": Exceptions(inputs=strip_of_images(2 * PATCHES)),
    "MiniCPMV4_7ForConditionalGeneration": Exceptions(inputs=strip_of_images(2 * PATCHES)),
    "MuseGlimmerForConditionalGeneration": Exceptions(changes={"out_hidden_size": 4 * WIDTH}),  # 2 x 2 patches a token
    "PaddleOCRVLForConditionalGeneration": Exceptions(changes={"text_config.rope_parameters.mrope_section": MROPE}),
    "Qwen4ExpForConditionalGeneration": Exceptions(
        changes=below("text_config", {f"indexer_{key}": value for key, value in INDEXER.items()})
    ),
}
