"""Multimodal models of small real pretrained parts, and captioned pictures and sounds to tune them on.

A LLaVA of DINOv2-small and SmolLM2-135M, a Qwen2-Audio of Whisper-base's encoder and SmolLM2-135M: each with a fresh
projector, LoRA (r = 8) on every linear layer of the language model, and the encoder tuned in full. Parts are folders as
`save_pretrained` writes them, or hub names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from commit_tuning import partition_model

PROMPT = "Caption:"
LONGEST_CAPTION = 24  # tokens
RATE = 16_000  # Hz
Batch = dict[str, Tensor]


class Captioner:
    """A model, and the batches of its items.

    Args:
        model: LoRA on the language model, the encoder trainable.
        tokenizer: The language model's, with the placeholder.
        placeholder: Id of the token that stands for a vector of the encoder.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, placeholder: int) -> None:
        self.model, self._tokenizer, self._placeholder = model, tokenizer, placeholder

    def media(self, items: Sequence[dict[str, Any]]) -> tuple[Batch, list[int]]:
        """Return the encoder's inputs, and the number of vectors of each item."""
        raise NotImplementedError

    def __call__(self, items: Sequence[dict[str, Any]]) -> Batch:
        """Return a training batch: placeholders, prompt, caption."""
        media, counts = self.media(items)
        prompt = self._ids(PROMPT)
        heads = [[self._placeholder] * count + prompt for count in counts]
        captions = [self._ids(" " + item["caption"])[:LONGEST_CAPTION] for item in items]
        longest = max(len(head) + len(caption) for head, caption in zip(heads, captions, strict=True))
        rows = []
        for head, caption in zip(heads, captions, strict=True):
            gap = longest - len(head) - len(caption)
            ids = head + caption + [self._tokenizer.eos_token_id] * gap
            rows.append((ids, [1] * (longest - gap) + [0] * gap, [-100] * len(head) + caption + [-100] * gap))
        names = ("input_ids", "attention_mask", "labels")
        texts = {name: torch.tensor(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        return texts | media

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


class PictureCaptioner(Captioner):
    """A LLaVA: square pictures of `side` pixels."""

    def __init__(self, vision: str, language: str, side: int) -> None:
        from transformers import AutoImageProcessor, AutoModel, LlavaConfig, LlavaForConditionalGeneration

        tower = AutoModel.from_pretrained(vision, dtype=torch.float32)
        decoder, tokenizer, placeholder = language_model(language, "<image>")
        self._patches = (side // tower.config.patch_size) ** 2
        config = LlavaConfig(
            vision_config=tower.config, text_config=decoder.config, image_token_index=placeholder,
            image_seq_length=self._patches, tie_word_embeddings=True,
        )  # fmt: skip
        model = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(tower.state_dict())
        model.model.language_model.load_state_dict(decoder.model.state_dict())
        model.tie_weights()
        tower = model.model.vision_tower
        super().__init__(with_lora(model, "model.language_model"), tokenizer, placeholder)
        for parameter in (*tower.encoder.layer[-1].parameters(), *tower.layernorm.parameters()):
            parameter.requires_grad_(False)  # a LLaVA reads the last layer but one
        self._processor = AutoImageProcessor.from_pretrained(vision, backend="pil")
        self._size = {"height": side, "width": side}

    def media(self, items: Sequence[dict[str, Any]]) -> tuple[Batch, list[int]]:
        """Return pixel values (B, 3, side, side)."""
        pictures = [_on_white(item["image"]) for item in items]
        pixels = self._processor(pictures, size=self._size, crop_size=self._size)["pixel_values"]
        stacked = torch.stack([torch.as_tensor(row) for row in pixels])
        return {"pixel_values": stacked}, [self._patches] * len(items)


class SoundCaptioner(Captioner):
    """A Qwen2-Audio: the first `seconds` of each sound."""

    def __init__(self, audio: str, language: str, seconds: int) -> None:
        from transformers import (
            Qwen2AudioConfig,
            Qwen2AudioEncoderConfig,
            Qwen2AudioForConditionalGeneration,
            WhisperFeatureExtractor,
            WhisperModel,
        )

        whisper = WhisperModel.from_pretrained(audio, dtype=torch.float32)
        decoder, tokenizer, placeholder = language_model(language, "<audio>")
        frames = seconds * 100
        shapes = ("num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model")
        audio_config = {name: getattr(whisper.config, name) for name in shapes} | {"max_source_positions": frames // 2}
        config = Qwen2AudioConfig(
            audio_config=Qwen2AudioEncoderConfig(**audio_config), text_config=decoder.config,
            audio_token_index=placeholder,
        )  # fmt: skip
        model = Qwen2AudioForConditionalGeneration(config)
        weights = whisper.encoder.state_dict()
        weights["embed_positions.weight"] = weights["embed_positions.weight"][: frames // 2]
        model.get_encoder("audio").load_state_dict(weights)
        model.get_decoder().load_state_dict(decoder.model.state_dict())
        model.lm_head.load_state_dict(decoder.lm_head.state_dict())
        prefix = next(name for name, module in model.named_modules() if module is model.get_decoder())
        super().__init__(with_lora(model, prefix), tokenizer, placeholder)
        self._extractor = WhisperFeatureExtractor.from_pretrained(audio, chunk_length=seconds)

    def media(self, items: Sequence[dict[str, Any]]) -> tuple[Batch, list[int]]:
        """Return log-mel features (B, 80, frames) and their mask (B, frames), cut to 100 frames a second."""
        sounds = [_samples(item["sound"]) for item in items]
        found = self._extractor(sounds, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt")
        frames = found["attention_mask"].sum(-1)
        counts = (((frames - 1) // 2 + 1 - 2) // 2 + 1).tolist()  # a convolution and a pooling of stride 2
        return {"input_features": found["input_features"], "feature_attention_mask": found["attention_mask"]}, counts


def language_model(language: str, placeholder: str) -> tuple[Any, Any, int]:
    """Return a decoder with output head, a tokenizer, and the id of a new token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    decoder = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": [placeholder]})
    decoder.resize_token_embeddings(len(tokenizer))
    return decoder, tokenizer, tokenizer.convert_tokens_to_ids(placeholder)


def with_lora(model: nn.Module, prefix: str) -> nn.Module:
    """Add adapters to the language model's linear layers; everything outside it is trainable."""
    import peft

    model.requires_grad_(True)
    partition = partition_model(model)
    encoders = [parameter for name in partition.encoders for parameter in partition[name]]
    names = "|".join(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=rf"{prefix}\..*\.({names})")
    model = peft.get_peft_model(model, lora)
    for parameter in encoders:
        parameter.requires_grad_(True)
    return model


def read_items(folder: Path, media: str) -> list[dict[str, Any]]:
    """Read the items of `manifest.jsonl` (a line each: image, sound, caption) with a caption and `media`, shuffled."""
    lines = (folder / "manifest.jsonl").read_text("utf-8").splitlines()
    items = [item for item in map(json.loads, lines) if item.get("caption") and item.get(media)]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    return [items[index] | {media: folder / items[index][media]} for index in order]


def _on_white(path: Path) -> Image.Image:
    opened = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened).convert("RGB")


def _samples(path: Path) -> Any:
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(1), rate, RATE)
