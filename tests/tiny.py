"""Models and batches that the tests share: a plain module, a tiny LLaVA and a tiny BLIP-2, all random."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from commit_tuning import ModulePartition, partition_model

VOCABULARY, LENGTH = 24, 9


class PlainModel(nn.Module):
    """An encoder with dropout and batch norm in front of a small language model; nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8))
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.mixer = nn.GRU(8, 8, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, pixels: torch.Tensor, labels: torch.Tensor) -> Any:
        hidden = self.embed(input_ids) + self.encoder(pixels)[:, None]
        logits = self.head(self.dropout(self.mixer(hidden)[0]))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def plain_partition(model: nn.Module) -> ModulePartition:
    named = dict(model.named_parameters())
    vision = {n: p for n, p in named.items() if n.startswith("encoder")}
    rest = {n: p for n, p in named.items() if n not in vision}
    return ModulePartition({"language_model": rest.items(), "vision": vision.items()})


def tiny_llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=4)
    return LlavaForConditionalGeneration(config)


def tiny_blip2() -> nn.Module:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    vision = Blip2VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        encoder_hidden_size=16,
    )  # fmt: skip
    text = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, dropout=0.1,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), text_config=text.to_dict(),
        num_query_tokens=4, image_token_index=3,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens, std=0.5)  # zeros as initialised sit on the singularity of a layer norm
    return model


def make_batch(kind: str, size: int, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch whose samples have answers of different lengths at different places."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (size, LENGTH), generator=generator)
    labels = ids.clone()
    for row in range(size):
        labels[row, : 5 + row % 3] = -100
    batch = {"input_ids": ids, "labels": labels}
    if kind == "plain":
        return {**batch, "pixels": torch.randn(size, 6, generator=generator, dtype=dtype)}
    ids[:, :4] = 3
    pixels = torch.randn(size, 3, 8, 8, generator=generator, dtype=dtype)
    return {**batch, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


BUILDERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], ModulePartition]]] = {
    "plain": (PlainModel, plain_partition),
    "llava": (tiny_llava, partition_model),
    "blip2": (tiny_blip2, partition_model),
}


def build(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, ModulePartition]:
    """A random model of a kind and its partition."""
    torch.manual_seed(seed)
    make_model, make_partition = BUILDERS[kind]
    model = make_model().to(dtype).train()
    return model, make_partition(model)
