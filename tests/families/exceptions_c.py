"""What a family needs beyond the rules of `shrink` and `inputs`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from families.exceptions import Exceptions
from families.inputs import SAMPLES, TEXT, Raw, random
from families.shrink import DELETE, HEADS, PATCHES, VOCABULARY, WIDTH


def naflex_images(model: Any) -> dict[str, Raw]:
    """Flat patches of square images, as SigLIP 2 takes them."""
    config = model.config.vision_config
    return {
        "image": {
            "pixel_values": random(SAMPLES, PATCHES**2, config.num_channels * config.patch_size**2),
            "spatial_shapes": torch.tensor([[PATCHES, PATCHES]] * SAMPLES),
            "pixel_attention_mask": torch.ones(SAMPLES, PATCHES**2, dtype=torch.long),
        }
    }


def anyres_images(model: Any) -> dict[str, Raw]:
    """Images as large as the first of LLaVA-NeXT's resolutions: the whole one, then its tiles."""
    config = model.config.vision_config
    resolution, side = model.config.image_grid_pinpoints[0], config.image_size
    crops = 1 + prod(resolution) // side**2
    return {
        "image": {
            "pixel_values": random(SAMPLES, crops, config.num_channels, side, side),
            "image_sizes": torch.tensor([resolution] * SAMPLES),
        }
    }


def strip_of_images(patches: int) -> Callable[[Any], dict[str, Raw]]:
    """Makes images of `patches` x `patches`, all their patches side by side in one strip, as MiniCPM takes them."""

    def make(model: Any) -> dict[str, Raw]:
        config = model.config.vision_config
        side = config.patch_size
        return {
            "image": {
                "pixel_values": random(1, config.num_channels, side, SAMPLES * patches**2 * side),
                "target_sizes": torch.tensor([[patches, patches]] * SAMPLES),
            }
        }

    return make


def image_markers(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tokens around an image, at which canvas M-RoPE begins and ends."""
    ids = batch["input_ids"].clone()
    ids[:, 0], ids[:, -TEXT] = model.config.image_start_id, model.config.image_end_id
    return {"input_ids": ids}


def molmo2_images(model: Any) -> dict[str, Raw]:
    """Two crops of an image, the whole one small and one tile; a token pools 2 x 2 patches."""
    config = model.config.vision_config
    crops, pooled = 2 * SAMPLES, PATCHES // 2
    windows = torch.arange(PATCHES**2).view(pooled, 2, pooled, 2).transpose(1, 2).reshape(-1, 4)
    return {
        "image": {
            "pixel_values": random(crops, PATCHES**2, config.num_channels * config.patch_size**2),
            "image_token_pooling": torch.cat([windows + crop * PATCHES**2 for crop in range(crops)]),
            "image_grids": torch.tensor([[pooled] * 4] * SAMPLES),
            "image_num_crops": torch.tensor([2] * SAMPLES),
        }
    }


def muse_images(model: Any) -> dict[str, Raw]:
    """Flat patches over `patch_temporal` frames."""
    config = model.config.vision_config
    return {
        "image": {
            "pixel_values": random(SAMPLES * PATCHES**2, 3 * config.patch_temporal * config.patch_size**2),
            "image_grid_thw": torch.tensor([[1, PATCHES, PATCHES]] * SAMPLES),
        }
    }


def muse_images_and_sounds(model: Any) -> dict[str, Raw]:
    """Patches, and a wave of three tokens."""
    samples = 3 * model.config.audio_config.samples_per_token
    mask = torch.ones(SAMPLES, samples, dtype=torch.int32)
    return {**muse_images(model), "audio": {"input_values": random(SAMPLES, samples), "input_values_mask": mask}}


def nemotron_omni_config(cls: type[Any]) -> Any:
    """With the sound tower that the default lacks, and with the two keys that its released checkpoint adds to it."""
    return cls.config_class(audio_config={"projection_hidden_size": WIDTH, "projection_bias": False})


def nemotron_images_and_sounds(model: Any) -> dict[str, Raw]:
    """Flat patches, and a spectrogram of five tokens."""
    config, frames = model.config.vision_config, 40
    return {
        "image": {
            "pixel_values": random(SAMPLES * PATCHES**2, config.num_channels * config.patch_size**2),
            "image_grid_hw": torch.tensor([[PATCHES, PATCHES]] * SAMPLES),
        },
        "audio": {
            "input_features": random(SAMPLES, frames, model.config.audio_config.num_mel_bins),
            "input_features_mask": torch.ones(SAMPLES, frames, dtype=torch.bool),
        },
    }


def perception_lm_config(cls: type[Any]) -> Any:
    """Its tower needs timm; a CLIP tower makes features of the same kind."""
    tower = CLIPVisionConfig()
    tower.model_args = {"embed_dim": tower.hidden_size}
    return cls.config_class(vision_config=tower)


ANYRES = {"vision_config.image_size": 28, "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]}
MINICPM = {"insert_layer_id": 0, "image_token_id": VOCABULARY - 1, "video_token_id": VOCABULARY - 2}
CANVAS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
MUSE = {
    "out_hidden_size": 4 * WIDTH,  # 2 x 2 patches make a token
    "vision_config.pos_emb_height": PATCHES,
    "vision_config.pos_emb_width": PATCHES,
    "text_config.layer_rope_theta": DELETE,
}

EXCEPTIONS: dict[str, Exceptions] = {
    "Lfm2VlForConditionalGeneration": Exceptions(
        changes={"text_config.layer_types": ["conv", "full_attention"]}, inputs=naflex_images
    ),
    "Llama4ForConditionalGeneration": Exceptions(
        changes={
            "vision_config.intermediate_size": 4 * WIDTH,  # what pixel shuffle makes of the hidden size
            "vision_config.projector_input_dim": WIDTH,
            "vision_config.projector_output_dim": WIDTH,
            "vision_config.vision_output_dim": WIDTH,
            "text_config.intermediate_size_mlp": 48,
            "text_config.moe_layers": [1],
            "text_config.no_rope_layers": [1, 0],
        },
        counts={"image": PATCHES**2 // 4},
    ),
    "LlavaNextForConditionalGeneration": Exceptions(changes=ANYRES, inputs=anyres_images),
    "LlavaNextVideoForConditionalGeneration": Exceptions(changes=ANYRES, inputs=anyres_images),
    "LlavaOnevisionForConditionalGeneration": Exceptions(changes=ANYRES, inputs=anyres_images),
    "MiniCPMOcrForConditionalGeneration": Exceptions(changes=MINICPM, inputs=strip_of_images(PATCHES)),
    "MiniCPMV4_6ForConditionalGeneration": Exceptions(changes=MINICPM, inputs=strip_of_images(2 * PATCHES)),
    "MiniCPMV4_7ForConditionalGeneration": Exceptions(
        changes={
            **MINICPM,
            **{name: VOCABULARY - 3 - place for place, name in enumerate(CANVAS)},
            # all of the head, so that there are frequencies for height and width
            "text_config.rope_parameters.partial_rotary_factor": 1.0,
            "text_config.rope_parameters.mrope_section": [2, 1, 1],
        },
        inputs=strip_of_images(2 * PATCHES),
        extra=image_markers,
    ),
    "MistralLarge4ForConditionalGeneration": Exceptions(
        changes={
            "text_config.kv_source_layers": DELETE,
            "text_config.indexer_types": DELETE,
            "text_config.no_rope_layers": [1, 0],
            "text_config.num_key_value_heads": HEADS,
        }
    ),
    "Molmo2ForConditionalGeneration": Exceptions(
        changes={
            "image_patch_id": VOCABULARY,  # the first of the additional vocabulary, which has no output
            "adapter_config.vision_feature_layer": [1, 0],
            "vision_config.num_position_embeddings": DELETE,
            "text_config.rope_scaling_layers": DELETE,
        },
        inputs=molmo2_images,
    ),
    "MuseGlimmerForConditionalGeneration": Exceptions(changes=MUSE, inputs=muse_images),
    "MuseSparkForConditionalGeneration": Exceptions(
        changes={
            **MUSE,
            "audio_config.patch_sizes": [4, 2],
            "audio_config.hidden_sizes": [16, 32],
            "audio_config.depths": [1, 1],
        },
        inputs=muse_images_and_sounds,
    ),
    "NemotronH_Omni_Reasoning_V3": Exceptions(
        config=nemotron_omni_config,
        changes={
            "image_token_id": VOCABULARY - 1,
            "video_token_id": VOCABULARY - 2,
            "audio_token_id": VOCABULARY - 3,
            "text_config.layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "text_config.ssm_state_size": 8,
            "text_config.n_groups": 2,
            "text_config.chunk_size": 16,
            "vision_config.max_img_size": 64,
            "audio_config.subsampling_conv_channels": 8,
        },
        inputs=nemotron_images_and_sounds,
    ),
    "PaddleOCRVLForConditionalGeneration": Exceptions(changes={"text_config.rope_parameters.mrope_section": [2, 1, 1]}),
    "PerceptionLMForConditionalGeneration": Exceptions(config=perception_lm_config),
}
