"""What a family needs beyond the rules of `shrink` and `inputs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ConvNextConfig

from families.exceptions import Exceptions
from families.inputs import SAMPLES, Raw, random
from families.shrink import DELETE, VOCABULARY, WIDTH

IMAGE_TOKEN, END_OF_LINE = VOCABULARY - 1, VOCABULARY - 2
CODES, FIRST_CODE, CODE_SIDE = 16, 60, 8  # of a VQ-VAE: how many, the first one's token, pixels along an image's side
SHALLOW: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
SAM: dict[str, Any] = {"output_channels": 8, "window_size": 3, "global_attn_indexes": [1]}
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


def images(side: int) -> Tensor:
    """One square image per sample."""
    return random(SAMPLES, 3, side, side)


def aria_config(cls: type[Any]) -> Any:
    """The queries per number of patches have numbers as keys, which `tiny` does not take."""
    config = cls.config_class()
    config.projector_patch_to_query_dict = {"16": 4}
    return config


def padded_images(model: Any) -> dict[str, Raw]:
    """Images with a mask; the second one is narrow, so that its right quarter is padding."""
    side = model.config.vision_config.image_size
    mask = torch.ones(SAMPLES, side, side, dtype=torch.bool)
    mask[1, :, 3 * side // 4 :] = False
    return {"image": {"pixel_values": images(side) * mask.unsqueeze(1), "pixel_mask": mask}}


def instructions() -> Raw:
    """The instruction as the Q-Former reads it, padded in the first sample."""
    ids = torch.arange(5, 5 + 4 * SAMPLES).view(SAMPLES, 4)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"qformer_input_ids": ids * mask, "qformer_attention_mask": mask}


def instructed_images(model: Any) -> dict[str, Raw]:
    """Images beside an instruction."""
    return {"image": {"pixel_values": images(model.config.vision_config.image_size), **instructions()}}


def instructed_videos(model: Any) -> dict[str, Raw]:
    """Videos of four frames beside an instruction."""
    side = model.config.vision_config.image_size
    return {"video": {"pixel_values": random(SAMPLES, 4, 3, side, side), **instructions()}}


def code_images(model: Any) -> dict[str, Raw]:
    """Images for a VQ-VAE."""
    del model
    return {"image": {"pixel_values": images(CODE_SIDE)}}


def sized_code_images(model: Any) -> dict[str, Raw]:
    """Images for a VQ-VAE, with their sizes."""
    del model
    return {"image": {"pixel_values": images(CODE_SIDE), "image_sizes": torch.tensor([[CODE_SIDE] * 2] * SAMPLES)}}


def chameleon_tokens() -> dict[str, int]:
    """Image codes to tokens; Chameleon spells a code's digits as letters."""
    names = [f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z" for code in range(CODES)]
    return {"<image>": IMAGE_TOKEN, **{name: FIRST_CODE + code for code, name in enumerate(names)}}


def emu_tokens() -> dict[str, int]:
    """Image codes to tokens, and the token that ends a line of them."""
    names = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    codes = {name: FIRST_CODE + code for code, name in enumerate(names)}
    return {"<image>": IMAGE_TOKEN, "<|extra_200|>": END_OF_LINE, **codes}


def views(model: Any) -> dict[str, Raw]:
    """A whole image and two crops of it, which are smaller, per sample."""
    side = model.config.vision_config.sam_config.image_size
    crops = random(2 * SAMPLES, 3, 3 * side // 4, 3 * side // 4)
    return {
        "image": {
            "pixel_values": images(side),
            "pixel_values_local": crops,
            "num_local_patches": torch.tensor([2] * SAMPLES),
        }
    }


def few_queries(model: Any) -> None:
    """Four learned queries per view: the code says 144 and 256, the config nothing."""
    for name in ("query_768_resolution", "query_1024_resolution"):
        setattr(model.model.vision_tower, name, nn.Embedding(4, WIDTH))


def two_resolutions(model: Any) -> dict[str, Raw]:
    """Each image small and large."""
    low, high = model.config.vision_config, model.config.high_res_vision_config
    return {"image": {"pixel_values": images(low.image_size), "high_res_pixel_values": images(high.image_size) / 2}}


def token_kinds(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Which experts a token goes to."""
    del model
    return {"moe_mm_token_type_ids": batch["mm_token_type_ids"]}


def convnext_config(cls: type[Any]) -> Any:
    """FastViT needs timm; a ConvNext makes feature maps of the same kind."""
    tower = ConvNextConfig(
        num_stages=2, hidden_sizes=[16, WIDTH], depths=[1, 1], layer_scale_init_value=0.1, hidden_size=WIDTH
    )
    text = {"model_type": "qwen2"}
    return cls.config_class(vision_config=tower.to_dict(), text_config=text)


def flat_patches(model: Any) -> dict[str, Raw]:
    """Flattened patches of all images, 2 x 3 per image."""
    return {"image": {"pixel_values": random(6 * SAMPLES, 3 * model.config.patch_size**2)}}


ERNIE = Exceptions(
    changes={
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [1, 1, 2]},
        "text_config.moe_intermediate_size": [48, 24],
    },
    extra=token_kinds,
)

EXCEPTIONS: dict[str, Exceptions] = {
    "AriaForConditionalGeneration": Exceptions(
        config=aria_config,
        changes={"max_value_projector_patch_to_query_dict": DELETE},
        inputs=padded_images,
    ),
    "Blip2ForConditionalGeneration": Exceptions(
        changes={"image_token_index": IMAGE_TOKEN, "vision_config.initializer_range": SCALE},
        prepare=fill("query_tokens"),
    ),
    "ChameleonForConditionalGeneration": Exceptions(
        changes={
            "vocabulary_map": chameleon_tokens(),
            "image_token_id": IMAGE_TOKEN,
            **below("vq_config", {**SHALLOW, "latent_channels": 16, "num_embeddings": CODES, "resolution": CODE_SIDE}),
        },
        inputs=code_images,
    ),
    "CohereCompassForConditionalGeneration": Exceptions(
        changes={
            **below("vision_config", {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}),
            "text_config.layer_types": ["sliding_attention", "full_attention"],
            "text_config.rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e4, "mrope_section": [2, 1, 1]},
                "full_attention": None,
            },
        },
    ),
    "DeepseekOcr2ForConditionalGeneration": Exceptions(
        changes={
            **below(
                "vision_config.sam_config",
                {
                    **SAM,
                    "patch_size": 8,
                    "image_size": 64,
                    "downsample_channels": [16, WIDTH],
                    "initializer_range": SCALE,
                },
            ),
            **below("text_config", {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]}),
        },
        inputs=views,
        prepare=few_queries,
    ),
    "DeepseekVLHybridForConditionalGeneration": Exceptions(
        changes=below("high_res_vision_config", {**SAM, "initializer_range": SCALE}),
        inputs=two_resolutions,
        prepare=fill("model.high_res_vision_alpha"),
    ),
    "Emu3ForConditionalGeneration": Exceptions(
        changes={
            "vocabulary_map": emu_tokens(),
            "image_token_id": IMAGE_TOKEN,
            **below("vq_config", {**SHALLOW, "attn_resolutions": [1], "codebook_size": CODES}),
        },
        inputs=sized_code_images,
    ),
    "Ernie4_5_VLMoeForConditionalGeneration": ERNIE,
    "Ernie4_5_VL_MoeForConditionalGeneration": ERNIE,
    "FastVlmForConditionalGeneration": Exceptions(config=convnext_config),
    "FuyuForCausalLM": Exceptions(
        changes={"patch_size": 4, "image_size": 12}, inputs=flat_patches, counts={"image": 6}
    ),
    "Gemma3ForConditionalGeneration": Exceptions(
        changes={"mm_tokens_per_image": 4},
        prepare=fill("model.multi_modal_projector.mm_input_projection_weight"),
    ),
    "InstructBlipForConditionalGeneration": Exceptions(
        changes={"image_token_index": IMAGE_TOKEN, "vision_config.initializer_range": SCALE},
        inputs=instructed_images,
        prepare=fill("query_tokens"),
    ),
    "InstructBlipVideoForConditionalGeneration": Exceptions(
        changes={"video_token_index": IMAGE_TOKEN, "vision_config.initializer_range": SCALE},
        inputs=instructed_videos,
        prepare=fill("query_tokens"),
    ),
    "JanusForConditionalGeneration": Exceptions(
        changes=below(
            "vq_config",
            {**SHALLOW, "latent_channels": 16, "num_embeddings": CODES, "image_token_embed_dim": WIDTH},
        ),
    ),
}
