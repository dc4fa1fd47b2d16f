"""What a family needs beyond the rules of `shrink` and `inputs`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from families.exceptions import Exceptions
from families.inputs import SAMPLES, Raw, generic_inputs, random
from families.shrink import DELETE, HEADS, WIDTH

MROPE = {"text_config.rope_parameters.mrope_section": [2, 1, 1]}  # of half a head's 8 dimensions
FRAMES = 20  # of a sound


def patch_positions(side: int) -> Tensor:
    """Column and row of each patch of square images: [samples, patches, 2]."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([columns, rows], -1).reshape(1, -1, 2).repeat(SAMPLES, 1, 1)


def mel_frames(bins: int) -> Raw:
    """Frames of mel bins and their mask, as Gemma takes sounds."""
    return {
        "input_features": random(SAMPLES, FRAMES, bins),
        "input_features_mask": torch.ones(SAMPLES, FRAMES, dtype=torch.bool),
    }


def dots_inputs(model: Any) -> dict[str, Raw]:
    """An image in patches, and a mel spectrogram with the number of wave samples that it stands for."""
    audio = model.config.audio_config
    sound = {
        "input_features": random(SAMPLES, audio.feature_size, 8 * 4),
        "chunk_sample_lengths": torch.full((SAMPLES,), 4 * audio.samples_per_token),
    }
    return {**generic_inputs(model), "audio": sound}


def gemma_config(cls: type[Any]) -> Any:
    """With both encoders, which are left out by default."""
    model_type = cls.config_class.model_type
    return cls.config_class(
        vision_config={"model_type": f"{model_type}_vision"}, audio_config={"model_type": f"{model_type}_audio"}
    )


def gemma4_inputs(model: Any) -> dict[str, Raw]:
    """Flat patches with their positions, 3 x 3 of which become one token, and mel frames."""
    vision, audio = model.config.vision_config, model.config.audio_config
    side = 2 * vision.pooling_kernel_size
    image = {
        "pixel_values": random(SAMPLES, side**2, 3 * vision.patch_size**2),
        "image_position_ids": patch_positions(side),
    }
    return {"image": image, "audio": mel_frames(audio.subsampling_conv_channels[0])}


def gemma4_unified_inputs(model: Any) -> dict[str, Raw]:
    """Flat patches already merged 3 x 3, and frames of the wave itself."""
    vision, audio = model.config.vision_config, model.config.audio_config
    image = {
        "pixel_values": random(SAMPLES, 4, 3 * vision.model_patch_size**2),
        "image_position_ids": patch_positions(2),
    }
    return {"image": image, "audio": mel_frames(audio.audio_embed_dim)}


def glm_image_inputs(model: Any) -> dict[str, Raw]:
    """A source image per sample; the grids are the source's and then that of the image to be made."""
    patch = model.config.vision_config.patch_size
    return {
        "image": {
            "pixel_values": random(SAMPLES * 16, 3 * patch**2),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * 2 * SAMPLES),
            "images_per_sample": torch.full((SAMPLES,), 2),
        }
    }


def glm_image_borders(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The tokens around the image, by which its positions are found."""
    ids = batch["input_ids"].clone()
    ids[:, 0], ids[:, 17] = model.config.image_start_token_id, model.config.image_end_token_id
    return {"input_ids": ids}


def granite4_vision_inputs(model: Any) -> dict[str, Raw]:
    """An image twice as wide as high: a small whole one and two tiles."""
    side = model.config.vision_config.image_size
    return {
        "image": {
            "pixel_values": random(SAMPLES, 3, 3, side, side),
            "image_sizes": torch.tensor([[side, 2 * side]] * SAMPLES),
        }
    }


def granite_docling_inputs(model: Any) -> dict[str, Raw]:
    """Two tiles per page, none of them padding."""
    side = model.config.vision_config.image_size
    return {
        "image": {
            "pixel_values": random(SAMPLES, 2, 3, side, side),
            "pixel_attention_mask": torch.ones(SAMPLES, 2, dtype=torch.bool),
        }
    }


def inkling_inputs(model: Any) -> dict[str, Raw]:
    """Patches, each repeated in time, channels last, and frames of quantized mel bins."""
    vision, audio = model.config.vision_config, model.config.audio_config
    patches = random(2 * SAMPLES, 1, vision.patch_size, vision.patch_size, 3)
    bins = torch.randint(
        audio.mel_vocab_size, (SAMPLES, 5, audio.n_mel_bins), generator=torch.Generator().manual_seed(0)
    )
    return {
        "image": {"pixel_values": patches.repeat(1, vision.temporal_patch_size, 1, 1, 1)},
        "audio": {"audio_input_ids": bins, "audio_input_ids_mask": torch.ones(SAMPLES, 5, dtype=torch.bool)},
    }


def inkling2_inputs(model: Any) -> dict[str, Raw]:
    """Pieces of an image, one per token, channels last; the grid counts tokens."""
    vision = model.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    grid = torch.tensor([[1, 2, 2]] * SAMPLES)
    return {"image": {"pixel_values": random(4 * SAMPLES, side, side, 3), "image_grid_thw": grid}}


EXCEPTIONS: dict[str, Exceptions] = {
    "Dots3NoteForConditionalGeneration": Exceptions(
        changes={
            "text_config.num_key_value_heads": HEADS,
            "text_config.index_n_heads": HEADS,
            "text_config.per_layer_config": {1: {"head_dim": 16}},  # of the sliding layer: with and without rope
            "vision_config.per_layer_config": DELETE,
            "vision_config.adapter_in_dim": WIDTH,
            "vision_config.adapter_out_dim": WIDTH,
            "audio_config.feature_size": 16,
            "audio_config.conv_output_size": DELETE,
            "audio_config.adapter_input_size": WIDTH,
            "audio_config.adapter_out_dim": WIDTH,
        },
        inputs=dots_inputs,
    ),
    "Gemma3nForConditionalGeneration": Exceptions(
        reason="Its vision tower is a model of timm, which is not installed."
    ),
    "Gemma4ForConditionalGeneration": Exceptions(
        config=gemma_config,
        changes={
            "text_config.per_layer_config": {1: {"head_dim": 16}},
            "text_config.hidden_size_per_layer_input": 8,
            "vision_config.patch_size": 4,
            "vision_config.position_embedding_size": 16,
            "audio_config.subsampling_conv_channels": [16, 8],  # the first is also the number of mel bins
            "audio_config.output_proj_dims": WIDTH,
        },
        inputs=gemma4_inputs,
    ),
    "Gemma4UnifiedForConditionalGeneration": Exceptions(
        config=gemma_config,
        changes={
            "text_config.per_layer_config": {1: {"head_dim": 16}},
            "vision_config.patch_size": 4,
            "vision_config.mm_embed_dim": WIDTH,
            "vision_config.mm_posemb_size": 16,
            "vision_config.output_proj_dims": WIDTH,
            "audio_config.audio_embed_dim": 16,
        },
        inputs=gemma4_unified_inputs,
    ),
    "Glm46VForConditionalGeneration": Exceptions(changes=MROPE),
    "Glm4vForConditionalGeneration": Exceptions(changes=MROPE),
    # Half of a head turns, so that a head must be twice as wide.
    "Glm4vMoeForConditionalGeneration": Exceptions(changes={**MROPE, "text_config.num_attention_heads": 2}),
    "Glm5NextForConditionalGeneration": Exceptions(
        changes={
            "text_config.num_key_value_heads": HEADS,
            "text_config.index_n_heads": HEADS,
            "text_config.index_kpool": 4,
            "text_config.index_topk": 128,
        }
    ),
    "GlmImageForConditionalGeneration": Exceptions(
        changes={**MROPE, "vq_config.latent_channels": WIDTH, "vq_config.num_embeddings": 64},
        inputs=glm_image_inputs,
        counts={"image": 16},
        extra=glm_image_borders,
    ),
    "GlmOcrForConditionalGeneration": Exceptions(changes=MROPE),
    "Granite4VisionForConditionalGeneration": Exceptions(
        changes={
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "spatial_target_layers": [1, 2, 3, 4],
            "image_grid_pinpoints": [[16, 32], [32, 16]],
            "text_config.num_hidden_layers": 5,
            "vision_config.hidden_size": 64,  # a head of the Q-Former has 64 dimensions
            "vision_config.patch_size": 4,
            "vision_config.image_size": 16,
        },
        inputs=granite4_vision_inputs,
        counts={"image": 14},  # a small image of 4, and two rows of 4 with their newline
    ),
    "GraniteDoclingForConditionalGeneration": Exceptions(
        changes={"vision_config.deepstack_visual_indexes": [0, 1], "vision_config.scale_factor": 2},
        inputs=granite_docling_inputs,
    ),
    "HunYuanVLForConditionalGeneration": Exceptions(
        changes={**MROPE, "text_config.head_dim": 8, "vision_config.max_image_size": 64}
    ),
    "InklingForConditionalGeneration": Exceptions(
        changes={
            "text_config.rel_extent": 64,
            "text_config.d_rel": 4,
            "text_config.sliding_window_size": 64,
            "text_config.logits_mup_width_multiplier": 1.0,
            "vision_config.patch_size": 4,
            "vision_config.num_hidden_layers": 4,  # fewer need scipy
            "audio_config.n_mel_bins": 4,
            "audio_config.mel_vocab_size": 16,
        },
        inputs=inkling_inputs,
    ),
    "Inkling2ForConditionalGeneration": Exceptions(
        changes={
            "text_config.rel_extent": 64,
            "text_config.d_rel": 4,
            "text_config.sliding_window_size": 64,
            "vision_config.patch_size": 4,
            "vision_config.posemb_grid_size": 4,
            "vision_config.projection_hidden_dim": WIDTH,
        },
        inputs=inkling2_inputs,
    ),
    "Kimi_K25ForConditionalGeneration": Exceptions(
        changes={
            "text_config.num_key_value_heads": HEADS,
            "text_config.first_k_dense_replace": 1,
            "vision_config.pos_emb_height": 4,
            "vision_config.pos_emb_width": 4,
        }
    ),
}
