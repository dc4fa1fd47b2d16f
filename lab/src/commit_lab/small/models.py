"""Small models of the paper's four families: pretrained parts as they were released, and a fresh connector.

DINOv2 (Oquab et al. 2023, arXiv 2304.07193) sees, Whisper (Radford et al. 2022, arXiv 2212.04356) hears, SmolLM2 (Allal
et al. 2025, arXiv 2502.02737) speaks. LLaVA takes DINOv2 as it is. The towers of InternVL and BLIP-2 are the same
transformer under other names: InternVL has DINOv2's layer scale, in BLIP-2 it is multiplied into the projections before
it. ``lab/pretraining/assemble_small.py`` writes such a model into a folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

SMALL_MODELS = ("small-llava", "small-blip2", "small-internvl2", "small-salmonn")

SMALL_FOLDER = Path("models")
"""Where the shipped recipes look for them, from the working directory."""

PARTS: Mapping[str, str] = {
    "vision": "facebook/dinov2-small",
    "audio": "openai/whisper-base",
    "language": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""Hub names."""

SIDE = 112
"""Pixels of a picture, height and width: eight by eight patches of DINOv2."""

SECONDS = 4
"""What is heard of a sound; the nano datasets' clips last three or four seconds."""

_QFORMER = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 6,
    "vocab_size": 1,  # it reads no text
}
_BLIP2_LAYERS, _SALMONN_LAYERS = 6, 2
_IMAGE = "<image>"

_AS_INTERNVL = (
    (r"\.attention\.o_proj\.", ".attention.projection_layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.layer_scale([12])\.lambda1$", r".lambda_\1"),
)
_AS_BLIP2 = (
    (r"^embeddings\.cls_token$", "embeddings.class_embedding"),
    (r"^embeddings\.position_embeddings$", "embeddings.position_embedding"),
    (r"^embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
    (r"^encoder\.layer\.", "encoder.layers."),
    (r"\.attention\.qkv\.", ".self_attn.qkv."),
    (r"\.attention\.o_proj\.", ".self_attn.projection."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^layernorm\.", "post_layernorm."),
)


def assemble_small(
    name: str, parts: Mapping[str, str | Path] = PARTS, seed: int = 0
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Assemble a model in evaluation mode (fp32, CPU) and its processor; fresh parts depend on the seed alone.

    Args:
        name: One of :data:`SMALL_MODELS`.
        parts: Folder, as ``save_pretrained`` writes it, or hub name of a DINOv2 (`vision`), a Whisper (`audio`) and a
            causal language model (`language`); the model's kind decides which two are read.
        seed: Of the fresh weights.

    Raises:
        UserError: Unknown name, or a part of another kind.
        OSError: A part that transformers cannot load.
    """
    import torch

    if name not in SMALL_MODELS:
        raise UserError(f"unknown small model {name!r}: give one of {', '.join(SMALL_MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "small-salmonn":
            return _salmonn(parts["audio"], parts["language"])
        tower, (decoder, tokenizer) = dinov2_at(parts["vision"]), _language_model(parts["language"])
        build = {"small-llava": _llava, "small-blip2": _blip2, "small-internvl2": _internvl2}[name]
        model, processor = build(tower, decoder, tokenizer, _pixel_scale(parts["vision"]))
        model.generation_config = decoder.generation_config
        return model.eval(), processor


def dinov2_at(vision: str | Path, side: int = SIDE) -> PreTrainedModel:
    """Fit DINOv2 to pictures of one size: the positions are interpolated once, as its own forward does each time.

    Args:
        vision: Folder or hub name.
        side: Height and width in pixels.

    Raises:
        UserError: Not a DINOv2 with plain feed-forward layers, or patches that do not fit, two by two, into `side`.
    """
    import torch
    from transformers import AutoConfig, Dinov2Config, Dinov2Model

    config = AutoConfig.from_pretrained(vision, trust_remote_code=False)
    if not isinstance(config, Dinov2Config) or config.use_swiglu_ffn:
        raise UserError(f"vision part {str(vision)!r} is no DINOv2 of a size up to large: give {PARTS['vision']}")
    if side % (2 * config.patch_size):
        raise UserError(f"vision part {str(vision)!r} has patches of {config.patch_size}, which do not fit into {side}")
    trained = Dinov2Model.from_pretrained(vision, dtype=torch.float32)
    config.image_size, config.use_mask_token = side, False  # the mask is of its pre-training
    tower = Dinov2Model(config)
    with torch.no_grad():
        state = trained.state_dict()
        tokens = torch.empty(1, (side // config.patch_size) ** 2 + 1, config.hidden_size)
        state["embeddings.position_embeddings"] = trained.embeddings.interpolate_pos_encoding(tokens, side, side)
    state.pop("embeddings.mask_token", None)
    tower.load_state_dict(state)
    return tower


def as_internvl(tower: PreTrainedModel) -> PreTrainedModel:
    """Convert a DINOv2 to InternVL's tower, with the same output."""
    from transformers import InternVLVisionConfig, InternVLVisionModel

    config = tower.config
    vision = InternVLVisionModel(
        InternVLVisionConfig(**_sizes(config), attention_bias=config.qkv_bias, use_mean_pooling=False)
    )
    vision.load_state_dict(_renamed(tower.state_dict(), _AS_INTERNVL))
    return vision


def as_blip2(tower: PreTrainedModel) -> PreTrainedModel:
    """Convert a DINOv2 to BLIP-2's tower, with the same output: queries, keys and values joined, no layer scale."""
    import torch
    from transformers import Blip2VisionConfig, Blip2VisionModel

    config, state = tower.config, tower.state_dict()
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}."
        for kind in ("weight", "bias")[: 1 + config.qkv_bias]:
            parts = [state.pop(f"{layer}attention.{part}_proj.{kind}") for part in "qkv"]
            state[f"{layer}attention.qkv.{kind}"] = torch.cat(parts)
        for scale, linear in (("layer_scale1", "attention.o_proj"), ("layer_scale2", "mlp.fc2")):
            factor = state.pop(f"{layer}{scale}.lambda1")
            state[f"{layer}{linear}.weight"] = factor[:, None] * state[f"{layer}{linear}.weight"]
            state[f"{layer}{linear}.bias"] = factor * state[f"{layer}{linear}.bias"]
    vision = Blip2VisionModel(Blip2VisionConfig(**_sizes(config), qkv_bias=config.qkv_bias))
    vision.load_state_dict(_renamed(state, _AS_BLIP2))
    return vision


def _llava(tower: Any, decoder: Any, tokenizer: Any, scale: dict[str, Any]) -> tuple[Any, Any]:
    """Assemble as LLaVA-1.5: patches of the last layer but one, a projector of two layers."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    token = _add_image_token(tokenizer, decoder)
    processor = LlavaProcessor(
        _square_pictures(scale),
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        image_token_index=token,
        image_seq_length=_patches(tower) ** 2,
        tie_word_embeddings=decoder.config.tie_word_embeddings,
    )
    return _around(LlavaForConditionalGeneration(config), tower, decoder), processor


def _internvl2(tower: Any, decoder: Any, tokenizer: Any, scale: dict[str, Any]) -> tuple[Any, Any]:
    """Assemble with one tile a picture, two by two of its patches one token, and a projector of two layers."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    from commit_lab.nano.models.internvl import NanoInternVLProcessor

    tokens = (_patches(tower) // 2) ** 2
    images = GotOcr2ImageProcessorPil(crop_to_patches=False, **scale)
    processor = NanoInternVLProcessor(images, tokenizer, image_seq_length=tokens)  # adds its marks to the tokenizer
    token = _add_image_token(tokenizer, decoder)
    vision = as_internvl(tower)
    config = InternVLConfig(
        vision_config=vision.config,
        text_config=decoder.config,
        image_token_id=token,
        image_seq_length=tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=decoder.config.tie_word_embeddings,
    )
    return _around(InternVLForConditionalGeneration(config), vision, decoder), processor


def _blip2(tower: Any, decoder: Any, tokenizer: Any, scale: dict[str, Any]) -> tuple[Any, Any]:
    """Assemble with 32 queries through a Q-Former of half BERT's width and depth, and a linear projection."""
    from torch import nn
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, Blip2QFormerConfig

    token, vision = _add_image_token(tokenizer, decoder), as_blip2(tower)
    qformer = Blip2QFormerConfig(**_QFORMER, num_hidden_layers=_BLIP2_LAYERS)
    config = Blip2Config(
        vision_config=vision.config, qformer_config=qformer, text_config=decoder.config, image_token_index=token
    )
    model = Blip2ForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens, std=qformer.initializer_range)  # as in BLIP-2's code; zeros would stay alike
    model.vision_model, model.language_model = vision, decoder
    return model, Blip2Processor(_square_pictures(scale), tokenizer, num_query_tokens=config.num_query_tokens)


def _salmonn(audio: str | Path, language: str | Path) -> tuple[Any, Any]:
    """Assemble SALMONN with Whisper alone."""
    from commit_tuning.models.salmonn import assemble

    qformer = {**_QFORMER, "num_hidden_layers": _SALMONN_LAYERS, "cross_attention_frequency": 1}
    model, processor, _ = assemble(language, audio, seconds=SECONDS, qformer_config=qformer)
    return model, processor


def _language_model(language: str | Path) -> tuple[Any, Any]:
    """Return a decoder with its head, and a tokenizer without chat template, because prompts are plain text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(language, trust_remote_code=False)
    tokenizer.chat_template = None
    return AutoModelForCausalLM.from_pretrained(language, trust_remote_code=False, dtype=torch.float32), tokenizer


def _add_image_token(tokenizer: Any, decoder: Any) -> int:
    """Return the placeholder's id; it and all other added tokens get a row in the embeddings."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(_IMAGE, normalized=False, special=True)], special_tokens=True)
    if len(tokenizer) > decoder.get_input_embeddings().num_embeddings:
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return int(tokenizer.convert_tokens_to_ids(_IMAGE))


def _around(model: Any, tower: Any, decoder: Any) -> Any:
    """Build the model around the pretrained parts; its projector stays as initialised."""
    model.model.vision_tower, model.model.language_model = tower, decoder.base_model
    model.lm_head = decoder.get_output_embeddings()
    return model


def _pixel_scale(vision: str | Path) -> dict[str, Any]:
    """Return size, mean and deviation of the pixels, the latter two as the tower was trained with."""
    from transformers import AutoImageProcessor

    trained = AutoImageProcessor.from_pretrained(vision, trust_remote_code=False, backend="pil")
    size = {"height": SIDE, "width": SIDE}
    return {"size": size, "image_mean": trained.image_mean, "image_std": trained.image_std}


def _square_pictures(scale: dict[str, Any]) -> Any:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil(**scale)


def _patches(tower: Any) -> int:
    """Count the patches along a side."""
    return int(tower.config.image_size // tower.config.patch_size)


def _sizes(config: Any) -> dict[str, Any]:
    """Return the sizes that the configs of all towers call by the same names."""
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
    more = ("image_size", "patch_size", "initializer_range")
    return {name: getattr(config, name) for name in (*same, *more)} | {
        "intermediate_size": int(config.hidden_size * config.mlp_ratio)
    }


def _renamed(state: Mapping[str, Tensor], renamings: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in renamings:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found
