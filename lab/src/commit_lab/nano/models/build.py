"""How the nano models are built: tokenizer, processor and untrained model; sizes are chosen for one CPU core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

BUILT = ("nano-llava", "nano-blip2", "nano-llava-v2", "nano-blip2-v2", "nano-internvl2", "nano-salmonn")
"""What can be built. Models of the second generation (v2, and InternVL2) have the vocabulary of three datasets."""

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
"""Holds one folder for each nano model, as ``save_pretrained`` writes it."""

NANO_MODELS: tuple[str, ...] = tuple(name for name in BUILT if (WEIGHTS_FOLDER / name).is_dir())
"""Names of the nano models whose weights come with the package."""

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
"""Token ids 0 to 4 of every nano tokenizer."""

PAD, BOS, EOS, _, IMAGE = range(len(SPECIAL_TOKENS))
PATCHES, PATCH_PX = 6, 11  # per side; pixels
IMAGE_PX = PATCHES * PATCH_PX
_BLIP2_QUERIES = 12
MAX_POSITIONS = 128
INIT = 0.09  # standard deviation of fresh weights: about 1 / sqrt(width); the usual 0.02 is for wide models
IMAGE_MEAN, IMAGE_STD = [0.94] * 3, [0.3] * 3  # nearly all of a picture is light background, which becomes zero


LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": INIT,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
"""Of every nano model whose language model is of the Llama kind."""


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer: lower case, split at white space and punctuation, ``<s>`` in front.

    Args:
        words: The vocabulary after the special tokens; sorted and deduplicated here.
    """
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries = (*SPECIAL_TOKENS, *sorted({word.lower() for word in words} - set(SPECIAL_TOKENS)))
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(entries)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    pad, bos, eos, unk, image = SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(image, normalized=False, special=True)], special_tokens=True)
    return tokenizer


def build_processor(name: str, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """Build a LLaVA, BLIP-2 or InternVL processor with a PIL image processor, or a SalmonnProcessor.

    Raises:
        UserError: Unknown name.
    """
    if family(name) == "nano-salmonn":
        from commit_lab.nano.models.salmonn import build_salmonn_processor

        return build_salmonn_processor(tokenizer)
    if family(name) == "nano-internvl2":
        from commit_lab.nano.models.internvl import build_internvl_processor

        return build_internvl_processor(tokenizer)
    if family(name) == "nano-llava":
        from transformers import LlavaProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        images = CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_PX},
            crop_size={"height": IMAGE_PX, "width": IMAGE_PX},
            image_mean=IMAGE_MEAN,
            image_std=IMAGE_STD,
        )
        llava: ProcessorMixin = LlavaProcessor(
            images,
            tokenizer,
            patch_size=PATCH_PX,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        return llava
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    pictures = BlipImageProcessorPil(size=side, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
    blip2: ProcessorMixin = Blip2Processor(pictures, tokenizer, num_query_tokens=_BLIP2_QUERIES)
    return blip2


def build_model(name: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    """Build an untrained model, the same for the same seed; the global random state does not change.

    Args:
        name: One of :data:`BUILT`.
        vocab_size: Number of tokens.
        seed: Of the initial weights.

    Raises:
        UserError: Unknown name.
    """
    import torch

    build: Callable[[int], PreTrainedModel]
    if family(name) == "nano-internvl2":
        from commit_lab.nano.models.internvl import build_internvl as build
    elif family(name) == "nano-salmonn":
        from commit_lab.nano.models.salmonn import build_salmonn as build
    else:
        build = {"nano-llava": _build_llava, "nano-blip2": _build_blip2}[family(name)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(vocab_size).eval()


def known(name: str, among: tuple[str, ...] = NANO_MODELS) -> str:
    """Return the name, or raise an error if it is unknown.

    Raises:
        UserError: It is none of the names.
    """
    if name not in among:
        raise UserError(f"unknown nano model {name!r}: give one of {', '.join(among)}")
    return name


def family(name: str) -> str:
    """Return a nano model's name without its generation: ``nano-llava`` for ``nano-llava-v2``.

    Raises:
        UserError: No such nano model can be built.
    """
    return known(name, BUILT).removesuffix("-v2")


def _build_llava(vocab_size: int) -> PreTrainedModel:
    """Build a CLIP tower (features of the last layer but one, as in LLaVA-1.5), a two-layer projector and a Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        projection_dim=96,
        hidden_act="gelu",
        initializer_range=INIT,
    )
    text = LlamaConfig(vocab_size=vocab_size, **LANGUAGE_MODEL)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=PATCHES**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def _build_blip2(vocab_size: int) -> PreTrainedModel:
    """Build a BLIP-2 tower, a Q-Former with cross-attention in every layer, a linear projection and an OPT."""
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    vision = Blip2VisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        initializer_range=INIT,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=1,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=3,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=_BLIP2_QUERIES,
        initializer_range=INIT,
    )
    text = OPTConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        dropout=0.0,
        init_std=INIT,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=_BLIP2_QUERIES,
        image_token_index=IMAGE,
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=INIT)  # zeros, as transformers leaves them, would stay alike
    return model
