"""The stages of pre-training: the language model on symbols, the tower and the connector, then all together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nano_pretraining.forms import FORMS, Pair, chatter_words, with_chatter
from nano_pretraining.scenes import COLOURS, LAYOUTS, Scene
from nano_pretraining.subject import Nano
from nano_pretraining.symbols import Symbols
from nano_pretraining.towers import start_tower

EASY_LAYOUTS, EASY_SHARE = ("quarters",), 0.3  # a tower starts with one layout: on all at once it stays at chance
PAIRS_PER_PICTURE = 3
LETTERS = 36  # classes: at least as many as letters and digits occur
_COLOUR_INDEX = {name: index for index, name in enumerate(COLOURS)}


def optimise(
    groups: list[dict[str, Any]],
    loss_at: Callable[[int], torch.Tensor],
    steps: int,
    log: Callable[[str], None],
) -> float:
    """Train with AdamW, warm-up and cosine decay; return the mean loss of the last tenth."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.01)
    )
    losses = []
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log(f"step {step + 1}/{steps} loss {sum(losses[-100:]) / len(losses[-100:]):.3f}")
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def train_vision(nano: Nano, steps: int, batch: int, lr: float, log: Callable[[str], None]) -> float:
    """Recognise icons, with tower and connector.

    Tower: classify the drawing and the colour of each icon from the mean feature of the patches that it covers.
    Connector: give the language model in each slot what the symbols gave it (embeddings stay as they are), the name
    told apart from all others.
    """
    chance, rng = random.Random(nano.seed), torch.Generator().manual_seed(nano.seed)
    hidden, symbols = nano.tower.config.hidden_size, Symbols(nano)
    words = functional.normalize(nano.embeddings_of(nano.book.said).detach(), dim=-1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(nano.seed)
        drawing, colour = nn.Linear(hidden, nano.book.classes), nn.Linear(hidden, len(COLOURS))
        letter = nn.Linear(hidden, LETTERS)
    norm, scale = nn.LayerNorm(hidden), nn.Parameter(torch.tensor(10.0))
    index: dict[str | None, int] = {name: number for number, name in enumerate(nano.book.said)}
    start_tower(nano)

    def loss_at(step: int) -> torch.Tensor:
        layouts, named = (EASY_LAYOUTS, 1.0) if step < EASY_SHARE * steps else (LAYOUTS, 0.85)
        scenes = nano.book.draw(chance, layouts, named, batch)
        pictures, cover = nano.book.paint(scenes, rng)
        icons = [icon for scene in scenes for icon in scene.icons]
        owners = torch.tensor([index for index, scene in enumerate(scenes) for _ in scene.icons])
        with torch.autocast("cpu", torch.bfloat16):
            features = nano.features(nano.pixels(pictures))
            seen = norm((nano.weights(cover)[:, None] @ features[owners, 1:]).squeeze(1))
            drawings, colours = drawing(seen).float(), colour(seen).float()
            given = nano.given(features).float()
            reading = _letter_loss(nano, features, scenes, norm, letter)
        numbers = torch.tensor([index.get(icon.name, -100) for icon in icons])
        tones = torch.tensor([_COLOUR_INDEX[icon.colour] for icon in icons])
        icon_of = _fill_slots(owners, cover, batch, nano.slots_per_side)
        names, tones_there = _look_up(numbers, icon_of, -100), _look_up(tones, icon_of, -1)
        targets = symbols.vectors(_look_up(numbers, icon_of, -1), tones_there).detach()
        matches = functional.normalize(given, dim=-1) @ words.T * scale
        return (
            functional.cross_entropy(drawings, nano.book.labels_of(icons))
            + 0.3 * functional.cross_entropy(colours, tones)
            + functional.cross_entropy(matches.flatten(0, 1), names.flatten())
            + functional.mse_loss(given, targets) / targets.square().mean()
            + reading
        )

    fixed = {id(parameter) for parameter in nano.language_parameters()}
    free = [parameter for parameter in nano.model.parameters() if id(parameter) not in fixed]
    heads = [scale, *(p for head in (norm, drawing, colour) for p in head.parameters())]
    heads += letter.parameters() if nano.forms is not FORMS else []
    return optimise([{"params": [*free, *heads], "lr": lr}], loss_at, steps, log)


def _letter_loss(
    nano: Nano, features: torch.Tensor, scenes: list[Scene], norm: nn.Module, letter: nn.Module
) -> torch.Tensor | float:
    """Return the loss of naming each letter from its patches, for letters come before words; 0 where none is shown."""
    found = nano.book.letters(scenes)
    if found is None:
        return 0.0
    cover, classes, owners = found
    seen = norm((nano.weights(cover)[:, None] @ features[owners, 1:]).squeeze(1))
    return functional.cross_entropy(letter(seen).float(), classes)


def _fill_slots(owners: torch.Tensor, cover: torch.Tensor, batch: int, side: int) -> torch.Tensor:
    """Return the number of the icon that covers most of each slot, -1 where none covers 5 %: (batch, slots)."""
    share = functional.adaptive_avg_pool2d(cover, side).flatten(1)
    best = torch.full((batch, side**2), 0.05)
    icon_of = torch.full((batch, side**2), -1)
    for icon, (owner, part) in enumerate(zip(owners.tolist(), share, strict=True)):
        more = part > best[owner]
        best[owner][more] = part[more]
        icon_of[owner][more] = icon
    return icon_of


def _look_up(values: torch.Tensor, icon_of: torch.Tensor, missing: int) -> torch.Tensor:
    """Return the value of each slot's icon: (batch, slots)."""
    return torch.where(icon_of >= 0, values[icon_of.clamp(min=0)], missing)


def train_language(nano: Nano, steps: int, batch: int, lr: float, log: Callable[[str], None]) -> float:
    """Answer from pictures given as symbols; the decoder and the embeddings are trained."""
    chance, rng = random.Random(nano.seed + 1), torch.Generator().manual_seed(nano.seed + 1)
    head, symbols = nano.model.get_output_embeddings(), Symbols(nano)

    def loss_at(step: int) -> torch.Tensor:
        layouts = EASY_LAYOUTS if step < EASY_SHARE * steps else LAYOUTS
        scenes = nano.book.draw(chance, layouts, 1.0, batch)
        encoded = nano.encode([nano.pairs(chance, scene, PAIRS_PER_PICTURE) for scene in scenes])
        labels, input_ids = encoded["labels"], encoded["input_ids"]
        inputs = symbols.inputs(input_ids, symbols.vectors(*symbols.lookup(scenes, chance)), rng)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = nano.language_model(inputs_embeds=inputs, attention_mask=encoded["attention_mask"])
            logits = head(decoded.last_hidden_state[:, :-1][labels[:, 1:] != -100]).float()
        return functional.cross_entropy(logits, labels[:, 1:][labels[:, 1:] != -100])

    return optimise([{"params": nano.language_parameters(), "lr": lr}], loss_at, steps, log)


def train_alignment(nano: Nano, steps: int, batch: int, lr: float, log: Callable[[str], None]) -> float:
    """Answer from pictures; every parameter is trained, the tower at a tenth of the rate."""
    chance, rng = random.Random(nano.seed + 2), torch.Generator().manual_seed(nano.seed + 2)

    def loss_at(step: int) -> torch.Tensor:
        layouts = ("single", *EASY_LAYOUTS) if step < EASY_SHARE * steps else LAYOUTS
        scenes = nano.book.draw(chance, layouts, 1.0, batch)
        texts = [nano.pairs(chance, scene, PAIRS_PER_PICTURE) for scene in scenes]
        return _loss_on_pictures(nano, scenes, texts, rng)

    return optimise(tower_last(nano, lr), loss_at, steps, log)


def train_chatter(nano: Nano, steps: int, batch: int, lr: float, log: Callable[[str], None]) -> float:
    """Train with filler words in the prompts, so that a new wording does not confuse the model."""
    chance, rng = random.Random(nano.seed + 4), torch.Generator().manual_seed(nano.seed + 4)
    words = chatter_words(nano.words, nano.book.names, nano.asked)

    def loss_at(step: int) -> torch.Tensor:
        scenes = nano.book.draw(chance, LAYOUTS, 1.0, batch)
        pairs = [nano.pairs(chance, scene, PAIRS_PER_PICTURE) for scene in scenes]
        return _loss_on_pictures(nano, scenes, [with_chatter(chance, some, words) for some in pairs], rng)

    return optimise(tower_last(nano, lr), loss_at, steps, log)


def _loss_on_pictures(nano: Nano, scenes: list[Scene], texts: list[list[Pair]], rng: torch.Generator) -> torch.Tensor:
    pixels = nano.pixels(nano.book.paint(scenes, rng)[0])
    with torch.autocast("cpu", torch.bfloat16):
        loss: torch.Tensor = nano.model(pixel_values=pixels, **nano.encode(texts)).loss
    return loss


def tower_last(nano: Any, lr: float) -> list[dict[str, Any]]:
    """Return parameter groups of all parameters, the tower at a tenth of the rate."""
    tower = list(nano.tower.parameters())
    inside = {id(parameter) for parameter in tower}
    others = [parameter for parameter in nano.model.parameters() if id(parameter) not in inside]
    return [{"params": tower, "lr": lr / 10}, {"params": others, "lr": lr}]


@torch.no_grad()
def measure(nano: Nano, scenes_number: int) -> dict[str, float]:
    """Return the share of fully right answers, by prompt, on new scenes; ``all`` is their mean."""
    chance, rng = random.Random(nano.seed + 3), torch.Generator().manual_seed(nano.seed + 3)
    answered: list[tuple[str, bool]] = []
    for _ in range(scenes_number // 50):
        scenes = nano.book.draw(chance, LAYOUTS, 1.0, 50)
        texts = [nano.pairs(chance, scene, 1) for scene in scenes]
        encoded = nano.encode(texts)
        labels = encoded.pop("labels")[:, 1:]
        logits = nano.model(pixel_values=nano.pixels(nano.book.paint(scenes, rng)[0]), **encoded).logits[:, :-1]
        hits = ((logits.argmax(-1) == labels) | (labels == -100)).all(1).tolist()
        for scene, [(prompt, _)], hit in zip(scenes, texts, hits, strict=True):
            form = scene.layout + ": " + " ".join(prompt.split()[:2])
            answered.append((form, hit))
    return shares_right(answered)


def shares_right(answered: list[tuple[str, bool]]) -> dict[str, float]:
    """Return the share of right answers of each form with five or more; ``all`` is the share of all."""
    right: dict[str, list[bool]] = {}
    for form, hit in answered:
        right.setdefault(form, []).append(hit)
    shares = {form: sum(hits) / len(hits) for form, hits in sorted(right.items()) if len(hits) >= 5}
    total = [hit for hits in right.values() for hit in hits]
    return {"all": sum(total) / max(1, len(total)), **shares}
