"""Families that hear, whether or not they see."""

from __future__ import annotations

from typing import Any

import torch

from families.exceptions import Exceptions, below
from families.inputs import SAMPLES, Raw, image_inputs, per_sample, random
from families.shrink import DELETE, FRAMES, MEL_BINS, PATCH, PATCHES, SIDE, VOCABULARY, WIDTH

HEARD = torch.ones(SAMPLES, FRAMES, dtype=torch.bool)  # no frame is padding


def sized_chunks(model: Any) -> dict[str, Raw]:
    """An image in patches, and a spectrogram with the number of wave samples that it stands for."""
    audio = model.config.audio_config
    sound = {
        "input_features": random(SAMPLES, MEL_BINS, FRAMES),
        "chunk_sample_lengths": torch.full((SAMPLES,), FRAMES // 8 * audio.samples_per_token),
    }
    return {"image": next(image_inputs(model)), "audio": sound}


def masked_frames(model: Any) -> dict[str, Raw]:
    """Spectrograms, bins before frames; the model has no function for their features alone."""
    del model
    return {"audio": {"input_features": random(SAMPLES, MEL_BINS, FRAMES), "feature_attention_mask": HEARD}}


def both_towers(cls: type[Any]) -> Any:
    """Gemma's config with the encoders that it leaves out by default."""
    towers = {f"{kind}_config": {"model_type": f"{cls.config_class.model_type}_{kind}"} for kind in ("vision", "audio")}
    return cls.config_class(**towers)


def placed_patches(side: int, width: int) -> Raw:
    """The patches of square images with column and row of each."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([columns, rows], -1).reshape(1, -1, 2).repeat(SAMPLES, 1, 1)
    return {"pixel_values": random(SAMPLES, side**2, width), "image_position_ids": places}


def frames(bins: int) -> Raw:
    """Frames of a sound and their mask."""
    return {"input_features": random(SAMPLES, FRAMES, bins), "input_features_mask": HEARD}


def gemma4_inputs(model: Any) -> dict[str, Raw]:
    """Patches, 3 x 3 of which become one token, and mel frames."""
    side = 2 * model.config.vision_config.pooling_kernel_size
    bins = model.config.audio_config.subsampling_conv_channels[0]
    return {"image": placed_patches(side, 3 * PATCH**2), "audio": frames(bins)}


def gemma4_unified_inputs(model: Any) -> dict[str, Raw]:
    """Patches already merged 3 x 3, and frames of the wave itself."""
    width = 3 * model.config.vision_config.model_patch_size**2
    return {"image": placed_patches(2, width), "audio": frames(model.config.audio_config.audio_embed_dim)}


def inkling_inputs(model: Any) -> dict[str, Raw]:
    """Patches, each repeated in time, channels last, and frames of quantized mel bins."""
    vision, audio = model.config.vision_config, model.config.audio_config
    pieces = random(2 * SAMPLES, 1, PATCH, PATCH, 3).repeat(1, vision.temporal_patch_size, 1, 1, 1)
    bins = torch.arange(SAMPLES * 5 * audio.n_mel_bins).view(SAMPLES, 5, -1) % audio.mel_vocab_size
    return {
        "image": {"pixel_values": pieces},
        "audio": {"audio_input_ids": bins, "audio_input_ids_mask": torch.ones(SAMPLES, 5, dtype=torch.bool)},
    }


def waves(model: Any) -> dict[str, Raw]:
    """An image in patches, and a wave of three tokens."""
    samples = 3 * model.config.audio_config.samples_per_token
    mask = torch.ones(SAMPLES, samples, dtype=torch.int32)
    sound = {"input_values": random(SAMPLES, samples), "input_values_mask": mask}
    return {"image": next(image_inputs(model)), "audio": sound}


def spectrograms_and_filter_banks(model: Any) -> dict[str, Raw]:
    """What two encoders hear of the same sounds: bins before frames, and frames before bins."""
    del model
    banks = {"fbank_features": random(SAMPLES, FRAMES, MEL_BINS), "fbank_features_mask": HEARD}
    return {"audio": {"input_features": random(SAMPLES, MEL_BINS, FRAMES), **banks}}


def windows(model: Any) -> dict[str, Raw]:
    """Spectrograms of two windows, frames before bins, with a mask of the features that come out."""
    length = 2 * model.config.window_size
    mask = torch.ones(SAMPLES, length // model.config.downsample_rate, dtype=torch.bool)
    return {"audio": {"input_features": random(SAMPLES, length, MEL_BINS), "input_features_mask": mask}}


def nemotron_config(cls: type[Any]) -> Any:
    """With the sound tower that the default lacks, and with the two keys that its released checkpoint adds to it."""
    return cls.config_class(audio_config={"projection_hidden_size": WIDTH, "projection_bias": False})


def crops_and_sounds(model: Any) -> dict[str, Raw]:
    """An image with one crop of it, and a spectrogram, frames before bins, per sample."""
    del model
    return {
        "image": {
            "image_pixel_values": random(SAMPLES, 2, 3, SIDE, SIDE),
            "image_sizes": per_sample(SIDE, SIDE),
            "image_attention_mask": torch.ones(SAMPLES, 2, PATCHES, PATCHES),
        },
        "audio": {
            "audio_input_features": random(SAMPLES, FRAMES, MEL_BINS),
            "audio_embed_sizes": torch.tensor([FRAMES // 8] * SAMPLES),
            "audio_attention_mask": HEARD,
        },
    }


OMNI = {"vision_start_token_id": 100}  # read, but no key of the config
TWO_HEAD_DIMS = {"text_config.per_layer_config": {1: {"head_dim": 16}}}  # one for each kind of attention

EXCEPTIONS: dict[str, Exceptions] = {
    "Dots3NoteForConditionalGeneration": Exceptions(
        changes={
            **TWO_HEAD_DIMS,
            "vision_config.per_layer_config": DELETE,
            "audio_config.feature_size": MEL_BINS,
            "audio_config.conv_output_size": DELETE,
        },
        inputs=sized_chunks,
    ),
    "Gemma4ForConditionalGeneration": Exceptions(config=both_towers, changes=TWO_HEAD_DIMS, inputs=gemma4_inputs),
    "Gemma4UnifiedForConditionalGeneration": Exceptions(
        config=both_towers, changes=TWO_HEAD_DIMS, inputs=gemma4_unified_inputs
    ),
    "GraniteSpeechForConditionalGeneration": Exceptions(
        changes={"downsample_rate": 2, "encoder_config.input_dim": MEL_BINS},
        inputs=windows,
    ),
    "InklingForConditionalGeneration": Exceptions(inputs=inkling_inputs),
    "MuseSparkForConditionalGeneration": Exceptions(
        changes={"out_hidden_size": 4 * WIDTH, "audio_config.num_hidden_layers": 4},  # 2 x 2 patches make a token
        inputs=waves,
    ),
    "NemotronH_Omni_Reasoning_V3": Exceptions(
        config=nemotron_config,
        changes=below(
            "text_config",
            {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "n_groups": 2},
        ),
    ),
    "Phi4MultimodalForCausalLM": Exceptions(
        changes={
            "image_token_id": VOCABULARY - 1,  # the config has these two inside its parts only
            "audio_token_id": VOCABULARY - 2,
            "vision_config.crop_size": SIDE,
            **below(
                "audio_config",
                {
                    "num_blocks": 2,
                    "input_size": MEL_BINS,
                    "nemo_final_size": MEL_BINS // 8,
                    "nemo_conv_channels": 8,
                    "ext_pw_out_channel": WIDTH,
                    "depthwise_separable_out_channel": WIDTH,
                },
            ),
        },
        inputs=crops_and_sounds,
        counts={"image": 13, "audio": FRAMES // 8},
    ),
    "Qwen2AudioForConditionalGeneration": Exceptions(inputs=masked_frames, counts={"audio": FRAMES // 4}),
    "Qwen2_5OmniThinkerForConditionalGeneration": Exceptions(changes=OMNI),
    "Qwen3OmniMoeThinkerForConditionalGeneration": Exceptions(changes=OMNI),
    "SalmonnForConditionalGeneration": Exceptions(
        changes={"seconds_per_window": 0.1, "seconds_stride": 0.1, "beats_config.conv_pos": PATCH},
        inputs=spectrograms_and_filter_banks,
    ),
    "VoxtralForConditionalGeneration": Exceptions(
        changes={"audio_config.intermediate_size": 4 * WIDTH}  # four features of the tower become one
    ),
}
