"""What a family needs beyond the rules of `shrink` and `inputs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config

from families.exceptions import Exceptions
from families.inputs import SAMPLES, Raw, random, token_of
from families.shrink import DELETE, PATCHES, VOCABULARY, WIDTH

IMAGE_TOKEN, AUDIO_TOKEN = VOCABULARY - 1, VOCABULARY - 2
SIDE = 14 * PATCHES  # of an image in patches of 14 pixels
MARKS = {"image": (100, 101), "audio": (102, 103)}  # tokens before and after an image, a sound
MEL_BINS, FRAMES = 16, 32  # of a spectrogram
SCALE = 0.02  # of first weights, where a default of 1e-10 lets next to nothing through


def below(prefix: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The same changes, of a config inside the config."""
    return {f"{prefix}.{key}": value for key, value in changes.items()}


def fill(*names: str) -> Callable[[Any], None]:
    """Give parameters that start at exactly zero small normal values."""

    def prepare(model: Any) -> None:
        for name in names:
            nn.init.normal_(model.get_parameter(name), std=0.1)

    return prepare


def patches(model: Any) -> Raw:
    """Flattened patches of one image per sample, 4 x 4 each, of two frames as Qwen's are."""
    vision = model.config.vision_config
    grid = torch.tensor([[1, PATCHES, PATCHES]] * SAMPLES)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {"pixel_values": random(int(grid.prod(-1).sum()), width), "image_grid_thw": grid}


def sound(mask: str) -> Raw:
    """One spectrogram per sample, and its mask under the name that the family gives it."""
    return {"input_features": random(SAMPLES, MEL_BINS, FRAMES), mask: torch.ones(SAMPLES, FRAMES, dtype=torch.long)}


def sound_of(mask: str) -> Callable[[Any], dict[str, Raw]]:
    """Spectrograms with a mask as the only inputs."""
    return lambda model: {"audio": sound(mask)}


def images_and_sounds(model: Any) -> dict[str, Raw]:
    """One image and one sound per sample."""
    return {"image": patches(model), "audio": sound("feature_attention_mask")}


def marked_text(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The text with marks around image and sound, from which the positions are counted."""
    ids = batch["input_ids"]
    for modality, (start, end) in MARKS.items():
        places = (ids[0] == token_of(model.config, modality)).nonzero().flatten()
        first, last = int(places[0]), int(places[-1]) + 1
        before, after = torch.full((SAMPLES, 1), start), torch.full((SAMPLES, 1), end)
        ids = torch.cat([ids[:, :first], before, ids[:, first:last], after, ids[:, last:]], 1)
    added = ids.shape[1] - batch["labels"].shape[1]
    labels = nn.functional.pad(batch["labels"], (added, 0), value=-100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def merged_patches(model: Any) -> dict[str, Raw]:
    """Patches of one image per sample, with how many patches along a side become one feature."""
    vision = model.config.vision_config
    grid = torch.tensor([[1, PATCHES, PATCHES]] * SAMPLES)
    pixels = random(int(grid.prod(-1).sum()), vision.num_channels * vision.patch_size**2)
    sizes = torch.tensor([2] * SAMPLES)
    return {"image": {"pixel_values": pixels, "image_grid_thw": grid, "image_merge_sizes": sizes}}


def image_and_crop(model: Any) -> dict[str, Raw]:
    """An image and one smaller crop of it per sample."""
    vision = model.config.vision_config
    crop = vision.image_size - vision.patch_size
    return {
        "image": {
            "pixel_values": random(SAMPLES, 3, vision.image_size, vision.image_size),
            "pixel_values_local": random(SAMPLES, 3, crop, crop),
            "num_local_patches": torch.ones(SAMPLES, dtype=torch.long),
        }
    }


def image_and_columns(model: Any) -> dict[str, Any]:
    """An image and its left and right half per sample; counts come as lists, as the processor leaves them."""
    side = model.config.vision_config.sam_config.image_size
    return {
        "image": {
            "pixel_values": random(SAMPLES, 3, side, side),
            "pixel_values_local": random(2 * SAMPLES, 3, side // 2, side // 2),
            "num_local_patches": [2] * SAMPLES,
            "patches_grid": [[2, 1]] * SAMPLES,
        }
    }


def plain_sound(model: Any) -> dict[str, Raw]:
    """Spectrograms without a mask."""
    del model
    return {"audio": {"input_features": random(SAMPLES, MEL_BINS, FRAMES)}}


def sound_in_windows(model: Any) -> dict[str, Raw]:
    """Spectrograms of two windows, frames before bins, with a mask of the features that come out."""
    frames, features = 2 * model.config.window_size, 2 * model.config.window_size // model.config.downsample_rate
    return {
        "audio": {
            "input_features": random(SAMPLES, frames, MEL_BINS),
            "input_features_mask": torch.ones(SAMPLES, features, dtype=torch.bool),
        }
    }


def tiles(model: Any) -> dict[str, Raw]:
    """An image of one tile and an image of two."""
    side = model.config.vision_config.image_size
    mask = torch.tensor([[[1, 0]], [[1, 1]]])
    pixels = random(SAMPLES, 1, 2, 3, side, side) * mask[..., None, None, None]
    return {
        "image": {
            "pixel_values": pixels,
            "aspect_ratio_ids": torch.tensor([[1], [2]]),
            "aspect_ratio_mask": mask,
        }
    }


def tiles_seen(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Which tiles a token attends to: those of its image, from the image's placeholder on."""
    seen = (batch["input_ids"] == model.config.image_token_id).cumsum(-1)
    return {"cross_attention_mask": seen[:, :, None, None] * batch["aspect_ratio_mask"][:, None]}


def image(side: int) -> Callable[[Any], dict[str, Raw]]:
    """One image of a given size per sample."""
    return lambda model: {"image": {"pixel_values": random(SAMPLES, 3, side, side)}}


def image_places(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Where the image's features go."""
    return {"image_embeds_position_mask": batch["input_ids"] == model.config.image_token_id}


def decoder_text(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Answers of their own for the decoder, the first one a token shorter, and what the decoder reads before each."""
    text = model.config.text_config
    labels = batch["input_ids"][:, -5:].flip(-1)
    labels[0, -1] = -100
    start = torch.full((SAMPLES, 1), text.decoder_start_token_id)
    before: Tensor = torch.cat([start, labels[:, :-1]], 1)
    return {"labels": labels, "decoder_input_ids": before.masked_fill(before == -100, text.pad_token_id)}


def crops_and_sounds(model: Any) -> dict[str, Raw]:
    """An image with one crop of it, and a spectrogram, frames before bins, per sample."""
    side = model.config.vision_config.image_size
    return {
        "image": {
            "image_pixel_values": random(SAMPLES, 2, 3, side, side),
            "image_sizes": torch.tensor([[side, side]] * SAMPLES),
            "image_attention_mask": torch.ones(SAMPLES, 2, PATCHES, PATCHES),
        },
        "audio": {
            "audio_input_features": random(SAMPLES, FRAMES, MEL_BINS),
            "audio_embed_sizes": torch.tensor([FRAMES // 8] * SAMPLES),
            "audio_attention_mask": torch.ones(SAMPLES, FRAMES, dtype=torch.bool),
        },
    }


def t5_config(cls: type[Any]) -> Any:
    """BLIP-2 over an encoder-decoder."""
    return cls.config_class(text_config=T5Config())


WINDOWS: dict[str, Any] = {"window_size": 28, "fullatt_block_indexes": [1]}  # one merged patch to a window
ROPE: dict[str, Any] = {"text_config.rope_parameters.mrope_section": [2, 1, 1]}
MARKED: dict[str, Any] = {"vision_start_token_id": MARKS["image"][0], "audio_start_token_id": MARKS["audio"][0]}

EXCEPTIONS: dict[str, Exceptions] = {
    "Qwen2_5OmniThinkerForConditionalGeneration": Exceptions(
        changes={**ROPE, **MARKED, **below("vision_config", WINDOWS), "audio_config.n_window": 8},
        inputs=images_and_sounds,
        extra=marked_text,
    ),
    "Qwen2_5_VLForConditionalGeneration": Exceptions(changes={**ROPE, **below("vision_config", WINDOWS)}),
    "Qwen2VLForConditionalGeneration": Exceptions(changes=ROPE),
    "Qwen3OmniMoeThinkerForConditionalGeneration": Exceptions(
        changes={
            **ROPE,
            **MARKED,
            **below("vision_config", {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}),
        },
        inputs=images_and_sounds,
        extra=marked_text,
    ),
    "Qwen4ExpForConditionalGeneration": Exceptions(
        changes={
            **ROPE,
            "vision_config.num_position_embeddings": 16,
            **below(
                "text_config",
                {
                    "eos_token_id": 2,
                    "linear_num_key_heads": 2,
                    "linear_num_value_heads": 4,
                    "hc_lowrank": 8,
                    "ple_layer_ids": [1],
                    "number_of_conv_states": DELETE,  # follows from the layers
                    "ple_embed_dim": WIDTH,
                    "heads_per_ngram": 2,
                    "ngram_vocab_size_base": 97,
                    "make_ngram_vocab_size_divisible_by": 8,
                    "split_ngram_parts": 1,
                    "indexer_n_heads": 2,
                    "indexer_kv_heads": 1,
                    "indexer_head_dim": 8,
                    "indexer_budget": 8,
                    "indexer_compress_ratio": 4,
                },
            ),
        },
    ),
    "Step3p7ForConditionalGeneration": Exceptions(
        changes=below(
            "text_config",
            {
                "layer_types": ["full_attention", "sliding_attention"],
                "mlp_layer_types": ["dense", "sparse"],
                "sliding_window": 4,
                "share_expert_dim": 24,
            },
        ),
        inputs=image_and_crop,
    ),
    "UnlimitedOcrForConditionalGeneration": Exceptions(
        changes=below(
            "vision_config.sam_config",
            {
                "image_size": 128,
                "output_channels": 16,
                "downsample_channels": [24, WIDTH],
                "window_size": 4,
                "global_attn_indexes": [1],
                "initializer_range": SCALE,
            },
        ),
        inputs=image_and_columns,
    ),
    "VideoLlama3ForConditionalGeneration": Exceptions(inputs=merged_patches),
    "VipLlavaForConditionalGeneration": Exceptions(changes={"vision_feature_layer": [-1, -2]}),
    "Qwen2AudioForConditionalGeneration": Exceptions(
        changes={"audio_config.max_source_positions": FRAMES // 2},
        inputs=sound_of("feature_attention_mask"),
        counts={"audio": FRAMES // 4},
    ),
    "GraniteSpeechForConditionalGeneration": Exceptions(
        changes={
            "window_size": 6,
            "downsample_rate": 3,
            **below(
                "encoder_config",
                {
                    "input_dim": MEL_BINS,
                    "hidden_dim": WIDTH,
                    "dim_head": 8,
                    "context_size": 8,
                    "max_pos_emb": 16,
                    "conv_kernel_size": 3,
                },
            ),
        },
        inputs=sound_in_windows,
        counts={"audio": 4},
    ),
    "VoxtralForConditionalGeneration": Exceptions(
        changes={
            "audio_token_id": AUDIO_TOKEN,
            # four features of the tower become one
            **below("audio_config", {"max_source_positions": FRAMES // 2, "intermediate_size": 4 * WIDTH}),
        },
        inputs=plain_sound,
    ),
    "AudioFlamingo3ForConditionalGeneration": Exceptions(
        changes={"audio_config.max_source_positions": FRAMES // 2}, inputs=sound_of("input_features_mask")
    ),
    "MllamaForConditionalGeneration": Exceptions(
        changes={
            "text_config.cross_attention_layers": [1],
            **below(
                "vision_config",
                {
                    "num_global_layers": 1,
                    "intermediate_layers_indices": [0],
                    "vision_output_dim": 2 * WIDTH,
                    "supported_aspect_ratios": [[1, 1], [1, 2]],
                    "max_num_tiles": 2,
                },
            ),
        },
        inputs=tiles,
        counts={"image": 1},
        extra=tiles_seen,
        prepare=fill(
            "model.language_model.layers.1.cross_attn_attn_gate", "model.language_model.layers.1.cross_attn_mlp_gate"
        ),
    ),
    "Florence2ForConditionalGeneration": Exceptions(
        changes={
            "text_config.max_position_embeddings": 64,
            **below(
                "vision_config",
                {
                    "depths": [1, 1],
                    "patch_size": [7, 3],
                    "patch_stride": [4, 2],
                    "patch_padding": [3, 1],
                    "patch_prenorm": [False, True],
                    "embed_dim": [16, WIDTH],
                    "num_heads": [2, 4],
                    "num_groups": [2, 4],
                    "window_size": 4,
                },
            ),
        },
        inputs=image(16),
        extra=decoder_text,
    ),
    "Kosmos2ForConditionalGeneration": Exceptions(
        # the config has no name for the token of the processor's <image>
        changes={"text_config.layers": 2, "latent_query_num": 4, "image_token_id": IMAGE_TOKEN},
        inputs=image(SIDE),
        counts={"image": 4},
        extra=image_places,
    ),
    "Phi4MultimodalForCausalLM": Exceptions(
        changes={
            "image_token_id": IMAGE_TOKEN,  # the config has these two inside its parts only
            "audio_token_id": AUDIO_TOKEN,
            "eos_token_id": 2,
            **below("vision_config", {"image_token_id": IMAGE_TOKEN, "crop_size": SIDE}),
            **below(
                "audio_config",
                {
                    "audio_token_id": AUDIO_TOKEN,
                    "num_blocks": 2,
                    "input_size": MEL_BINS,
                    "nemo_final_size": MEL_BINS // 8,
                    "nemo_conv_channels": 8,
                    "ext_pw_out_channel": WIDTH,
                    "depthwise_separable_out_channel": WIDTH,
                    "bias_max_distance": 16,
                },
            ),
        },
        inputs=crops_and_sounds,
        counts={"image": 13, "audio": FRAMES // 8},
    ),
    "Blip2ForConditionalGeneration (T5)": Exceptions(
        config=t5_config,
        changes={
            "image_token_index": IMAGE_TOKEN,
            "vision_config.initializer_range": SCALE,
            "text_config.d_kv": 8,
            "text_config.decoder_start_token_id": 0,
        },
        prepare=fill("query_tokens"),
        extra=decoder_text,
    ),
}
