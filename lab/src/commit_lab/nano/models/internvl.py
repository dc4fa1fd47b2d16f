"""The nano InternVL2: processor and untrained model, in the sizes of the other nano models.

InternVL2's original checkpoints (Chen et al. 2024, arXiv 2404.16821; OpenGVLab/InternVL2-*) run code of their own that
comes with them. This is the class that transformers has for the converted ones (``-hf``): InternViT, whose 2 x 2
neighbouring patches become one token (pixel shuffle), a two-layer projector, and Qwen2. A picture is one tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoProcessor, InternVLConfig, InternVLProcessor

from commit_lab.nano.models.build import (
    IMAGE,
    IMAGE_MEAN,
    IMAGE_PX,
    IMAGE_STD,
    INIT,
    LANGUAGE_MODEL,
    PATCH_PX,
    PATCHES,
    SPECIAL_TOKENS,
)

if TYPE_CHECKING:
    from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

TOKENS = (PATCHES // 2) ** 2
"""Of a picture, after the pixel shuffle."""

_MARKS = {
    "context_image_token": SPECIAL_TOKENS[IMAGE],
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "video_token": "<video>",
}


class NanoInternVLProcessor(InternVLProcessor):  # type: ignore[misc]
    """InternVL's processor of one tile a picture, without its part for videos, which needs torchvision.

    Args:
        image_processor: Of pictures.
        tokenizer: Of the language model; the marks of a picture are added to it.
        image_seq_length: Tokens of a picture.
        chat_template: None for plain prompts.
    """

    images_kwargs: ClassVar[dict[str, Any]] = {"crop_to_patches": False}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = TOKENS,
        chat_template: str | None = None,
    ) -> None:
        tokenizer.add_tokens(list(_MARKS.values()), special_tokens=True)
        for name, mark in _MARKS.items():
            setattr(tokenizer, name, mark)
            setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(mark))
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template)


class _NanoInternVLConfig(InternVLConfig):  # type: ignore[misc]
    """Keeps the processor's place in transformers' table, beside that of InternVL's own."""


AutoProcessor.register(_NanoInternVLConfig, NanoInternVLProcessor, exist_ok=True)


def build_internvl_processor(tokenizer: PreTrainedTokenizerFast) -> NanoInternVLProcessor:
    """Build a processor from a nano tokenizer, which gets the marks of a picture, and a PIL image processor."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    images = GotOcr2ImageProcessorPil(size=side, crop_to_patches=False, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
    return NanoInternVLProcessor(images, tokenizer)


def build_internvl(vocab_size: int) -> InternVLForConditionalGeneration:
    """Build InternViT, pixel shuffle, two-layer projector and Qwen2, untrained."""
    from transformers import InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    vision = InternVLVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        attention_bias=True,
        initializer_range=INIT,
    )
    text = Qwen2Config(vocab_size=vocab_size, **LANGUAGE_MODEL)
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    return InternVLForConditionalGeneration(config)
