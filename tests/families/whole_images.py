"""Families that look at an image as a whole: the encoders are CLIP's kind, behind them a projector or a Q-Former."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from families.exceptions import Exceptions, fill
from families.inputs import SAMPLES, Raw, images, random
from families.shrink import DELETE, PATCHES, SIDE, VOCABULARY, WIDTH


def instruction() -> Raw:
    """An instruction as the Q-Former reads it, padded in the first sample."""
    ids = torch.arange(5, 5 + 4 * SAMPLES).view(SAMPLES, 4)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"qformer_input_ids": ids * mask, "qformer_attention_mask": mask}


def instructed_images(model: Any) -> dict[str, Raw]:
    """Images beside an instruction."""
    del model
    return {"image": {"pixel_values": images(SIDE), **instruction()}}


def instructed_videos(model: Any) -> dict[str, Raw]:
    """Videos of four frames beside an instruction."""
    del model
    return {"video": {"pixel_values": random(SAMPLES, 4, 3, SIDE, SIDE), **instruction()}}


def two_resolutions(model: Any) -> dict[str, Raw]:
    """Each image small and large."""
    del model
    return {"image": {"pixel_values": images(SIDE), "high_res_pixel_values": images(SIDE) / 2}}


def convnext_config(cls: type[Any]) -> Any:
    """A ConvNext, which makes feature maps as FastViT does."""
    tower = transformers.ConvNextConfig(
        num_stages=2, hidden_sizes=[16, WIDTH], depths=[1, 1], layer_scale_init_value=0.1, hidden_size=WIDTH
    )
    return cls.config_class(vision_config=tower.to_dict(), text_config={"model_type": "qwen2"})


def clip_config(cls: type[Any]) -> Any:
    """A CLIP tower, which makes a feature for each patch as the family's own does."""
    tower = transformers.CLIPVisionConfig()
    tower.model_args = {"embed_dim": tower.hidden_size}
    return cls.config_class(vision_config=tower)


def t5_config(cls: type[Any]) -> Any:
    """BLIP-2 over an encoder-decoder."""
    return cls.config_class(text_config=transformers.T5Config(decoder_start_token_id=0))


def decoder_text(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Answers of their own for the decoder, the first one a token shorter."""
    del model
    labels = batch["input_ids"][:, -5:].flip(-1)
    labels[0, -1] = -100
    return {"labels": labels}


def image_places(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Where the image's features go."""
    return {"image_embeds_position_mask": batch["input_ids"] == model.config.image_token_id}


EXCEPTIONS: dict[str, Exceptions] = {
    "AriaForConditionalGeneration": Exceptions(changes={"projector_patch_to_query_dict": {str(PATCHES**2): 4}}),
    "Blip2ForConditionalGeneration": Exceptions(prepare=fill("query_tokens")),
    "Blip2ForConditionalGeneration (T5)": Exceptions(
        config=t5_config, prepare=fill("query_tokens"), extra=decoder_text
    ),
    "DeepseekVLHybridForConditionalGeneration": Exceptions(
        prepare=fill("model.high_res_vision_alpha"), inputs=two_resolutions
    ),
    "FastVlmForConditionalGeneration": Exceptions(
        config=convnext_config, note="a ConvNext for the tower, which needs timm"
    ),
    "Florence2ForConditionalGeneration": Exceptions(extra=decoder_text),
    "Gemma3ForConditionalGeneration": Exceptions(
        prepare=fill("model.multi_modal_projector.mm_input_projection_weight")
    ),
    "InstructBlipForConditionalGeneration": Exceptions(prepare=fill("query_tokens"), inputs=instructed_images),
    "InstructBlipVideoForConditionalGeneration": Exceptions(prepare=fill("query_tokens"), inputs=instructed_videos),
    "Kosmos2ForConditionalGeneration": Exceptions(
        changes={"image_token_id": VOCABULARY - 1},  # the config has no name for it
        inputs=lambda model: {"image": {"pixel_values": images(SIDE)}},
        counts={"image": 4},
        extra=image_places,
    ),
    "Llama4ForConditionalGeneration": Exceptions(
        changes={"vision_config.intermediate_size": 4 * WIDTH},  # what pixel shuffle makes of the hidden size
        reason="its forward fails in transformers 5.24.0" if transformers.__version__ == "5.24.0" else None,
    ),
    "MistralLarge4ForConditionalGeneration": Exceptions(
        changes={"text_config.kv_source_layers": DELETE}  # follows from the layers
    ),
    "PerceptionLMForConditionalGeneration": Exceptions(
        config=clip_config, note="a CLIP tower for its own, which needs timm"
    ),
    "Step3p7ForConditionalGeneration": Exceptions(changes={"text_config.sliding_window": 4}),
}
