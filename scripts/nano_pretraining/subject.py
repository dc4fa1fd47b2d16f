"""The nano model in training: its parts by one name, and its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from commit_tuning.models.nano_build import SPECIAL_TOKENS
from nano_pretraining.forms import Pair
from nano_pretraining.scenes import LAYOUTS, GlyphBook

BLIP2_REGIONS = 3  # per side; one query each


@dataclass
class Nano:
    """A nano model with what its stages need."""

    name: str
    model: Any
    processor: Any
    book: GlyphBook
    seed: int

    @property
    def llava(self) -> bool:
        """Whether the model is nano-llava."""
        return self.name == "nano-llava"

    @property
    def words(self) -> list[str]:
        """The vocabulary, sorted, without the special tokens."""
        return sorted(set(self.processor.tokenizer.get_vocab()) - set(SPECIAL_TOKENS))

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.model.model.vision_tower if self.llava else self.model.vision_model

    @property
    def language_model(self) -> nn.Module:
        """The decoder without its output layer."""
        return self.model.model.language_model if self.llava else self.model.language_model.model

    def pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """Resize and normalise as the processor does."""
        config, images = self.tower.config, self.processor.image_processor
        resized = functional.interpolate(pictures, size=config.image_size, mode="bicubic", antialias=True)
        mean, std = torch.tensor(images.image_mean), torch.tensor(images.image_std)
        return (resized.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tower output as the projector or Q-Former gets it, class token first: (batch, 1 + patches, hidden)."""
        if self.llava:
            return self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        return self.tower(pixels).last_hidden_state

    @property
    def slots_per_side(self) -> int:
        """A picture's slots in the language model lie in a square: LLaVA one slot a patch, BLIP-2 a query a region."""
        return self.tower.config.image_size // self.tower.config.patch_size if self.llava else BLIP2_REGIONS

    @property
    def slots(self) -> int:
        """Tokens of a picture in the language model; BLIP-2 has queries left over after the square."""
        return int(self.model.config.image_seq_length if self.llava else self.model.config.num_query_tokens)

    def given(self, features: torch.Tensor) -> torch.Tensor:
        """What the connector gives the language model in the square of slots: (batch, slots, width).

        Args:
            features: What :meth:`features` returns.
        """
        if self.llava:
            return self.model.model.multi_modal_projector(features[:, 1:])
        queries = self.model.query_tokens.expand(len(features), -1, -1)
        found = self.model.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        given: torch.Tensor = self.model.language_projection(found[:, : self.slots_per_side**2])
        return given

    def weights(self, cover: torch.Tensor) -> torch.Tensor:
        """Share of each icon that lies on each patch: (icons, patches)."""
        side = self.tower.config.image_size // self.tower.config.patch_size
        weights = functional.adaptive_avg_pool2d(cover, side).flatten(1) + 1e-6
        return weights / weights.sum(1, keepdim=True)

    def language_parameters(self) -> list[nn.Parameter]:
        """Parameters of the decoder and of its output layer, each once."""
        both = [*self.language_model.parameters(), *self.model.get_output_embeddings().parameters()]
        return list({id(parameter): parameter for parameter in both}.values())

    def embeddings_of(self, names: Iterable[str]) -> torch.Tensor:
        """Mean word embedding of every name, with its gradient: (names, width)."""
        return embeddings_of(self.model, self.processor.tokenizer, names)

    def describe(self) -> dict[str, object]:
        """What it is trained on: for the record."""
        return {
            "family": "mdi (Material Design Icons 5 and 6)",
            "glyphs": len(self.book.glyphs),
            "drawings": self.book.classes,
            "concepts": len(self.book.names),
            "layouts": list(LAYOUTS),
        }

    def encode(self, texts: list[list[Pair]]) -> dict[str, torch.Tensor]:
        """Token ids, mask and labels of a batch: a picture's slots, then prompts and answers; answers are labels."""
        tokenizer = self.processor.tokenizer
        picture = [tokenizer.convert_tokens_to_ids("<image>")] * self.slots
        bos = [tokenizer.bos_token_id]
        return encode_texts(tokenizer, [*bos, *picture] if self.llava else [*picture, *bos], texts)


def embeddings_of(model: Any, tokenizer: Any, names: Iterable[str]) -> torch.Tensor:
    """Mean word embedding of every name, with its gradient: (names, width)."""
    table = model.get_input_embeddings().weight
    return torch.stack([table[tokenizer(name, add_special_tokens=False)["input_ids"]].mean(0) for name in names])


def encode_texts(tokenizer: Any, prefix: list[int], texts: list[list[Pair]]) -> dict[str, torch.Tensor]:
    """Token ids, mask and labels of a batch: the prefix, then prompts and answers; answers are labels."""
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
