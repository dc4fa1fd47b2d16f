"""The stages of pre-training on sounds: the language model on symbols, the encoders, then all together."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nano_pretraining.forms import chatter_words, with_chatter
from nano_pretraining.listener import Listener
from nano_pretraining.sound_forms import WORDS, make_pairs
from nano_pretraining.sound_scenes import Scene, draw_scene
from nano_pretraining.stages import optimise, shares_right, tower_last

LAYOUTS = ("row", "row", "phrase", "phrase", "together")
PAIRS = 4
_Log = Callable[[str], None]


def _draw(listener: Listener, chance: random.Random, batch: int) -> list[Scene]:
    return [draw_scene(chance, listener.book, LAYOUTS) for _ in range(batch)]


def train_language(listener: Listener, steps: int, batch: int, lr: float, log: _Log) -> float:
    """Answer from sounds given as symbols; the decoder and the embeddings are trained."""
    chance, rng = random.Random(listener.seed + 1), torch.Generator().manual_seed(listener.seed + 1)

    def loss_at(step: int) -> torch.Tensor:
        scenes = _draw(listener, chance, batch)
        encoded = listener.encode([make_pairs(chance, scene, listener.book, PAIRS) for scene in scenes])
        labels = encoded["labels"][:, 1:]
        inputs = listener.inputs(encoded["input_ids"], listener.vectors(*listener.symbols(scenes)), rng)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = listener.model.model.language_model(
                inputs_embeds=inputs, attention_mask=encoded["attention_mask"]
            )
            logits = listener.model.lm_head(decoded.last_hidden_state[:, :-1][labels != -100]).float()
        return functional.cross_entropy(logits, labels[labels != -100])

    return optimise([{"params": listener.language_parameters(), "lr": lr}], loss_at, steps, log)


def train_hearing(listener: Listener, steps: int, batch: int, lr: float, log: _Log) -> float:
    """Tell in each window what sounds there, with encoders, Q-Former and projector; the decoder stays as it is.

    Two linear heads read the Q-Former's output: one which concepts and qualities are there, one how many notes begin
    and how high the melody is. The projector gives the language model what the symbols gave it; where one concept
    sounds, its name is told apart from all others.
    """
    chance = random.Random(listener.seed)
    width, kinds = listener.model.config.qformer_config.hidden_size, len(listener.book.names) + 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(listener.seed)
        sounds, notes = nn.Linear(width, kinds), nn.Linear(width, 2)
    words = functional.normalize(listener.embeddings_of(listener.book.names).detach(), dim=-1)
    scale = nn.Parameter(torch.tensor(10.0))

    def loss_at(step: int) -> torch.Tensor:
        scenes = _draw(listener, chance, batch)
        (shares, melody), features = listener.symbols(scenes), listener.hear(scenes, chance)
        with torch.autocast("cpu", torch.bfloat16):
            heard = listener.model.get_audio_features(**features)
            found, played = sounds(heard.last_hidden_state).float(), notes(heard.last_hidden_state).float()
        given = heard.pooler_output.float().view(batch, listener.windows, -1)
        targets = listener.vectors(shares, melody).detach()
        present = shares[..., : len(words)]
        alone = present.sum(-1) == 1
        matches = functional.normalize(given[alone], dim=-1) @ words.T * scale
        return (
            functional.cross_entropy(matches, present[alone].argmax(-1))
            + 5 * functional.binary_cross_entropy_with_logits(found, shares)
            + 3 * functional.mse_loss(played, melody)
            + functional.mse_loss(given, targets) / targets.square().mean()
        )

    fixed = {id(parameter) for parameter in listener.language_parameters()}
    free = [parameter for parameter in listener.model.parameters() if id(parameter) not in fixed]
    heads = [scale, *sounds.parameters(), *notes.parameters()]
    return optimise([{"params": [*free, *heads], "lr": lr}], loss_at, steps, log)


def train_alignment(listener: Listener, steps: int, batch: int, lr: float, log: _Log) -> float:
    """Answer from sounds; every parameter is trained, the encoders at a tenth of the rate.

    Half of the prompts are among words that say nothing, so that a new wording does not throw the model off.
    """
    chance = random.Random(listener.seed + 2)
    words = chatter_words(listener.words, listener.book.names, WORDS)

    def loss_at(step: int) -> torch.Tensor:
        scenes = _draw(listener, chance, batch)
        texts = [make_pairs(chance, scene, listener.book, PAIRS) for scene in scenes]
        texts = [with_chatter(chance, pairs, words) if chance.random() < 0.5 else pairs for pairs in texts]
        inputs = {**listener.hear(scenes, chance), **listener.encode(texts)}
        with torch.autocast("cpu", torch.bfloat16):
            loss: torch.Tensor = listener.model(**inputs).loss
        return loss

    return optimise(tower_last(listener, lr), loss_at, steps, log)


@torch.no_grad()
def measure(listener: Listener, scenes_number: int) -> dict[str, float]:
    """Return the share of fully right answers, by prompt, on new scenes; ``all`` is their mean."""
    chance = random.Random(listener.seed + 3)
    answered: list[tuple[str, Any]] = []
    for _ in range(scenes_number // 50):
        scenes = _draw(listener, chance, 50)
        texts = [make_pairs(chance, scene, listener.book, 1) for scene in scenes]
        encoded = listener.encode(texts)
        labels = encoded.pop("labels")[:, 1:]
        logits = listener.model(**listener.hear(scenes, chance), **encoded).logits[:, :-1]
        hits = ((logits.argmax(-1) == labels) | (labels == -100)).all(1).tolist()
        answered += [
            (f"{scene.layout}: {prompt.split()[0]}", hit)
            for scene, [(prompt, _)], hit in zip(scenes, texts, hits, strict=True)
        ]
    return shares_right(answered)
