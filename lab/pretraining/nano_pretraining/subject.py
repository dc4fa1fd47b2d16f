"""The nano model in training: its parts by one name, and its inputs."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from commit_lab.nano.models.build import PATCH_PX, SPECIAL_TOKENS, family
from nano_pretraining.forms import FORMS, WORDS, Forms, Pair, make_pairs
from nano_pretraining.scenes import GlyphBook, Scene

REGIONS = 3  # per side


@dataclass
class Nano:
    """A nano model with what its stages need: `forms` may be asked, in the words `asked`."""

    name: str
    model: Any
    processor: Any
    book: GlyphBook
    seed: int
    forms: Forms = field(default_factory=lambda: FORMS)
    asked: str = WORDS

    @property
    def family(self) -> str:
        """nano-llava, nano-blip2 or nano-internvl2, of whichever generation."""
        return family(self.name)

    @property
    def blip2(self) -> bool:
        """Whether the model has a Q-Former."""
        return self.family == "nano-blip2"

    @property
    def words(self) -> list[str]:
        """The vocabulary, sorted, without the special tokens."""
        tokenizer = self.processor.tokenizer
        return sorted(tokenizer.get_vocab().keys() - {*SPECIAL_TOKENS, *tokenizer.get_added_vocab()})

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.model.vision_model if self.blip2 else self.model.model.vision_tower

    @property
    def language_model(self) -> nn.Module:
        """The decoder without its output layer."""
        return self.model.language_model.model if self.blip2 else self.model.model.language_model

    @property
    def position_table(self) -> torch.Tensor:
        """Position embeddings of the tower, that of the class token first: (1 + patches, hidden)."""
        embeddings: Any = self.tower.embeddings
        if self.family == "nano-internvl2":
            return embeddings.position_embeddings[0]
        return embeddings.position_embedding[0] if self.blip2 else embeddings.position_embedding.weight

    @property
    def patches_per_side(self) -> int:
        """Patches in a row of a picture."""
        return round((len(self.position_table) - 1) ** 0.5)

    def pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """Resize and normalise as the processor does."""
        images = self.processor.image_processor
        side = self.patches_per_side * PATCH_PX
        resized = functional.interpolate(pictures, size=side, mode="bicubic", antialias=True)
        mean, std = torch.tensor(images.image_mean), torch.tensor(images.image_std)
        return (resized.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tower's output as the connector gets it, class token first: (batch, 1 + patches, hidden)."""
        if self.family == "nano-llava":
            return self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        return self.tower(pixels).last_hidden_state

    @property
    def slots_per_side(self) -> int:
        """A picture's slots in the language model lie in a square: one a patch, or one a region of 2 x 2 patches."""
        return self.patches_per_side if self.family == "nano-llava" else REGIONS

    @property
    def slots(self) -> int:
        """Tokens of a picture in the language model; BLIP-2 has queries left over after the square."""
        return int(self.model.config.num_query_tokens if self.blip2 else self.model.config.image_seq_length)

    @property
    def prefix(self) -> list[int]:
        """Token ids of a picture's slots, and what the processor puts before and after them."""
        tokenizer = self.processor.tokenizer
        picture = [tokenizer.convert_tokens_to_ids("<image>")] * self.slots
        if self.blip2:
            return [*picture, tokenizer.bos_token_id]
        if self.family == "nano-llava":
            return [tokenizer.bos_token_id, *picture]
        return [
            tokenizer.bos_token_id,
            self.processor.start_image_token_id,
            *picture,
            self.processor.end_image_token_id,
        ]

    @property
    def before(self) -> int:
        """How many tokens stand before a picture's slots."""
        return self.prefix.index(self.processor.tokenizer.convert_tokens_to_ids("<image>"))

    def given(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the connector gives the language model in the square of slots: (batch, slots, width).

        Args:
            features: What :meth:`features` returns.
        """
        if self.family == "nano-llava":
            return self.model.model.multi_modal_projector(features[:, 1:])
        if self.family == "nano-internvl2":
            inner = self.model.model
            plane = features[:, 1:].unflatten(1, (self.patches_per_side, self.patches_per_side))
            return inner.multi_modal_projector(inner.pixel_shuffle(plane, inner.config.downsample_ratio).flatten(1, 2))
        queries = self.model.query_tokens.expand(len(features), -1, -1)
        found = self.model.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        given: torch.Tensor = self.model.language_projection(found[:, : self.slots_per_side**2])
        return given

    def weights(self, cover: torch.Tensor) -> torch.Tensor:
        """Return the share of each icon that lies on each patch: (icons, patches)."""
        weights = functional.adaptive_avg_pool2d(cover, self.patches_per_side).flatten(1) + 1e-6
        return weights / weights.sum(1, keepdim=True)

    def language_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the decoder and of its output layer, each once."""
        both = [*self.language_model.parameters(), *self.model.get_output_embeddings().parameters()]
        return list({id(parameter): parameter for parameter in both}.values())

    def embeddings_of(self, names: Iterable[str]) -> torch.Tensor:
        """Return the mean word embedding of every name, with its gradient: (names, width)."""
        return embeddings_of(self.model, self.processor.tokenizer, names)

    def describe(self) -> dict[str, object]:
        """Describe, for the record, what it is trained on."""
        return {
            "family": "mdi (Material Design Icons 5 and 6)",
            "glyphs": len(self.book.glyphs),
            "drawings": self.book.classes,
            "concepts": len(self.book.names),
            "layouts": list(self.book.layouts),
        }

    def pairs(self, chance: random.Random, scene: Scene, number: int) -> list[Pair]:
        """Return different prompts about a scene, each with its answer."""
        return make_pairs(chance, scene, self.book.names, number, self.forms)

    def encode(self, texts: list[list[Pair]]) -> dict[str, torch.Tensor]:
        """Return token ids, mask and labels of a batch: a picture's slots, prompts and answers; answers are labels."""
        return encode_texts(self.processor.tokenizer, self.prefix, texts)


def embeddings_of(model: Any, tokenizer: Any, names: Iterable[str]) -> torch.Tensor:
    """Return the mean word embedding of every name, with its gradient: (names, width)."""
    table = model.get_input_embeddings().weight
    return torch.stack([table[tokenizer(name, add_special_tokens=False)["input_ids"]].mean(0) for name in names])


def encode_texts(tokenizer: Any, prefix: list[int], texts: list[list[Pair]]) -> dict[str, torch.Tensor]:
    """Return token ids, mask and labels of a batch: the prefix, then prompts and answers; answers are labels."""
    eos = [tokenizer.eos_token_id]
    rows, labels = [], []
    for pairs in texts:
        row, label = list(prefix), [-100] * len(prefix)
        for prompt, answer in pairs:
            asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answered = tokenizer(answer, add_special_tokens=False)["input_ids"] + eos
            row += asked + answered
            label += [-100] * len(asked) + answered
        rows.append(torch.tensor(row))
        labels.append(torch.tensor(label))
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }
