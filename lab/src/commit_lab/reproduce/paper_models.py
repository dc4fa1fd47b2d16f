"""The paper's four models as they were released: their sizes, and the same as narrow models that a test can train.

The sizes are those of the published `config.json` files, which are named with each. Nothing is downloaded. A narrow
model has every layer of the large one, so that the names of all parameters are the same, and a width of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from commit_tuning.errors import UserError

TEXT_TOKENS = 64
"""Question and answer: an assumption. The longest answers are captions of Song Describer, 22 words on average."""

_LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
_NARROW: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
_NARROW_TEXT = {**_NARROW, "num_key_value_heads": 2, "vocab_size": 64}


@dataclass(frozen=True)
class Stack:
    """A stack of transformer layers that gradients pass through.

    Attributes:
        tokens: That attend to each other.
        layers: How many.
        width: Of the residual stream.
        heads: Of attention.
        sequences: Of so many tokens in one sample: tiles of a picture.
    """

    tokens: int
    layers: int
    width: int
    heads: int
    sequences: int = 1


@dataclass(frozen=True)
class PaperModel:
    """One of the paper's models.

    Attributes:
        model_class: In transformers, or in `commit_tuning.models.salmonn`.
        sizes: What its config class takes.
        narrow: The sizes that a narrow model changes.
        published: Parameters as published.
        sources: Where sizes and number were published.
        samples: `"image"` or `"audio"`.
        medium_tokens: Placeholders in the text of one sample.
        encoder: The trained part of the encoder, without the projector.
        stored_bytes: Of one parameter in the released files.
        copies: How often the weights lie on disk before a run: twice where they have to be converted.
    """

    model_class: str
    sizes: Mapping[str, Any]
    narrow: Mapping[str, Any]
    published: float
    sources: str
    samples: str
    medium_tokens: int
    encoder: Stack
    stored_bytes: int
    copies: int = 1

    def language_model(self) -> Stack:
        """Return the language model on one sample: placeholders and text."""
        text = self.sizes["text_config"]
        tokens = self.medium_tokens + TEXT_TOKENS
        return Stack(tokens, text["num_hidden_layers"], text["hidden_size"], text["num_attention_heads"])

    def build(self, narrow: bool = False) -> Any:
        """Build the untrained model: in real size on the meta device, without memory, or narrow on the CPU."""
        import transformers

        from commit_tuning.models import salmonn

        home = salmonn if hasattr(salmonn, self.model_class) else transformers
        model_class = getattr(home, self.model_class)
        if narrow:
            return model_class(model_class.config_class(**_merged(self.sizes, self.narrow)))
        with torch.device("meta"):
            return model_class(model_class.config_class(**self.sizes))


def _merged(sizes: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes into the sizes, both nested."""
    merged = dict(sizes)
    for key, value in changes.items():
        merged[key] = _merged(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


PAPER_MODELS: dict[str, PaperModel] = {
    "Salesforce/blip2-opt-2.7b": PaperModel(
        "Blip2ForConditionalGeneration",
        {
            "vision_config": {
                "hidden_size": 1408,
                "intermediate_size": 6144,
                "num_hidden_layers": 39,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
            },
            "qformer_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "cross_attention_frequency": 2,
                "encoder_hidden_size": 1408,
            },
            "text_config": {
                "model_type": "opt",
                "vocab_size": 50304,
                "hidden_size": 2560,
                "word_embed_proj_dim": 2560,
                "ffn_dim": 10240,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
            "num_query_tokens": 32,
            "image_token_index": 50265,
        },
        {
            "vision_config": {**_NARROW, "image_size": 28},
            "qformer_config": {**_NARROW, "encoder_hidden_size": 32},
            "text_config": {
                "vocab_size": 64,
                "hidden_size": 32,
                "word_embed_proj_dim": 32,
                "ffn_dim": 48,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
            },
            "num_query_tokens": 4,
            "image_token_index": 63,
        },
        published=3.74e9,
        sources="huggingface.co/Salesforce/blip2-opt-2.7b: config.json, and its count of parameters",
        samples="image",
        medium_tokens=32,
        encoder=Stack(32, 12, 768, 12),
        stored_bytes=4,
    ),
    "llava-hf/llava-1.5-7b-hf": PaperModel(
        "LlavaForConditionalGeneration",
        {
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
            "text_config": {**_LLAMA_7B, "vocab_size": 32064, "rms_norm_eps": 1e-5},
            "image_token_index": 32000,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
        },
        {
            "vision_config": {**_NARROW, "image_size": 28},
            "text_config": _NARROW_TEXT,
            "image_token_index": 63,
            "image_seq_length": 4,
        },
        published=7.06e9,
        sources="huggingface.co/llava-hf/llava-1.5-7b-hf: config.json, and its count of parameters",
        samples="image",
        medium_tokens=576,
        encoder=Stack(577, 24, 1024, 16),
        stored_bytes=2,
    ),
    "checkpoints/internvl2-8b-hf": PaperModel(
        "InternVLForConditionalGeneration",
        {
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "attention_bias": True,
                "image_size": [448, 448],
                "patch_size": [14, 14],
            },
            "text_config": {
                **_LLAMA_7B,
                "vocab_size": 92553,
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
            },
            "image_token_id": 92546,
            "tie_word_embeddings": False,
        },
        {
            "vision_config": {**_NARROW, "image_size": [56, 56]},
            "text_config": {**_NARROW_TEXT, "num_key_value_heads": 1},
            "image_token_id": 63,
            "image_seq_length": 4,
        },
        published=8.08e9,
        sources="huggingface.co/OpenGVLab/InternVL2-8B: config.json; its card says 8.1 billion",
        samples="image",
        medium_tokens=7 * 256,  # at most six tiles and the whole, as in InternVL's fine-tuning scripts
        encoder=Stack(1025, 24, 1024, 16, sequences=7),
        stored_bytes=2,
        copies=2,
    ),
    "checkpoints/salmonn-7b": PaperModel(
        "SalmonnForConditionalGeneration",
        {"text_config": {**_LLAMA_7B, "vocab_size": 32002}},  # the rest is as in the 13B model, the config's defaults
        {
            "whisper_config": {
                "d_model": 32,
                "encoder_layers": 32,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 48,
                "decoder_layers": 1,
                "num_mel_bins": 8,
                "max_source_positions": 50,
            },
            "beats_config": {
                "num_mel_bins": 32,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "conv_pos": 4,
                "conv_pos_groups": 4,
            },
            "qformer_config": {
                **_NARROW,
                "num_hidden_layers": 2,
                "cross_attention_frequency": 1,
                "vocab_size": 1,
            },
            "text_config": _NARROW_TEXT,
            "audio_token_id": 63,
        },
        published=6.74e9 + 637e6 + 90e6,
        sources="its parts: Vicuna-7B (Llama 2, 6.74 billion), the encoder of Whisper-large-v2 (637 million) and BEATs "
        "(90 million), without the small Q-Former; github.com/bytedance/SALMONN configs/config.yaml",
        samples="audio",
        medium_tokens=88,
        encoder=Stack(1, 2, 768, 12, sequences=88),
        stored_bytes=2,
        copies=2,
    ),
}
"""By the name that the recipes give them."""


def find_paper_model(name: str) -> PaperModel:
    """Find a model by the name in its recipe.

    Raises:
        UserError: It is none of the paper's.
    """
    if name not in PAPER_MODELS:
        raise UserError(f"model.name {name!r} is none of the paper's models: {', '.join(PAPER_MODELS)}")
    return PAPER_MODELS[name]


def narrow_batch(model: Any, samples: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make a random batch for a narrow model: placeholders and eight tokens of text, the last three the answer.

    Args:
        model: Of `PaperModel.build(narrow=True)`, wrapped by nothing.
        samples: Rows.
        seed: Of pixels, spectrograms and tokens.

    Returns:
        What the model's forward takes, with `labels` [samples, length].
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    placeholder = next(i for n in ("image_token_id", "audio_token_id") if (i := getattr(config, n, None)) is not None)
    if hasattr(config, "whisper_config"):
        count, bins = config.num_audio_tokens, config.beats_config.num_mel_bins
        shape = (samples, config.whisper_config.num_mel_bins, 2 * config.whisper_config.max_source_positions)
        media = {
            "input_features": torch.randn(shape, generator=generator),
            "fbank_features": torch.randn(samples, 96, bins, generator=generator),
            "fbank_features_mask": torch.ones(samples, 96, dtype=torch.bool),
        }
    else:
        count, side = 4, config.vision_config.image_size
        side = side if isinstance(side, int) else side[0]
        media = {"pixel_values": torch.randn(samples, 3, side, side, generator=generator)}
    text = torch.randint(3, 60, (samples, 8), generator=generator)
    ids = torch.cat([torch.full((samples, count), placeholder), text], dim=1)
    labels = ids.clone()
    labels[:, :-3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **media}
