"""How well tower and connector read, before any question: the figure by which a vision stage is judged."""

from __future__ import annotations

import random

import torch
from torch.nn import functional

from nano_pretraining.pages import TEXTS, draw_page, page_cover, page_pixels
from nano_pretraining.subject import Nano


@torch.no_grad()
def texts_read(nano: Nano, pages: int) -> dict[str, dict[str, float]]:
    """Split to layout to the share of texts whose own word is nearest to what the language model is given of them.

    Args:
        nano: The model.
        pages: How many of each split.
    """
    words, found = functional.normalize(nano.embeddings_of(TEXTS), dim=-1), {}
    for split in ("pretrain", "train", "val", "test"):
        drawn = [draw_page(random.Random(f"{split}:{number}:measure"), split=split) for number in range(pages)]
        given = functional.normalize(nano.given(nano.features(nano.pixels(page_pixels(drawn, None)))), dim=-1)
        share = functional.adaptive_avg_pool2d(page_cover(drawn), nano.slots_per_side).flatten(1)
        things = [(owner, page.layout, thing) for owner, page in enumerate(drawn) for thing in page.icons]
        nearest = ((share[:, None] @ given[[owner for owner, _, _ in things]]).squeeze(1) @ words.T).argmax(1).tolist()
        right: dict[str, list[bool]] = {}
        for (_, layout, thing), best in zip(things, nearest, strict=True):
            if thing.name in TEXTS:
                right.setdefault(layout, []).append(TEXTS[best] == thing.name)
        found[split] = {layout: round(sum(hits) / len(hits), 3) for layout, hits in sorted(right.items())}
    return found
