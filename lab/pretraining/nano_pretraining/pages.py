"""Pages for pre-training: words and numbers on plates, in DejaVu, beside Material Design icons.

The painter is that of Nano-TextVQA, which is told what it paints where; the layouts are those of its pictures. Strokes
are thinned, thickened and blurred, so that a tower learns letters and not the style of one font.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ImageChops
from torch.nn import functional

from commit_lab.nano.pictures.nano_questions import COLOURS
from commit_lab.nano.pictures.nano_text_questions import NUMBERS, PICTURE_PX, WORDS, _Writer
from nano_pretraining.scenes import LAYOUTS, GlyphBook, Icon, Scene

TEXTS = (*WORDS, *NUMBERS)
CHARACTERS = tuple(sorted(set("".join(TEXTS))))
PAGE_LAYOUTS = ("sign", "labels", "plates")
PAGES = 12_000
_HALF = PICTURE_PX // 2


class _Recorder(_Writer):
    """Paints as the writer does, and notes what lies where."""

    def __init__(self, rng: random.Random, split: str) -> None:
        super().__init__(rng, split)
        self.things: list[Icon] = []

    def stamp(self, canvas: Any, glyph: Any, cell: Any, size: tuple[int, int], colour: str) -> None:
        with self._noting(str(glyph.concept), colour):
            super().stamp(canvas, glyph, cell, size, colour)

    def plate(self, cell: Any, text: str, colour: str, filled: bool = False) -> None:
        with self._noting(text.lower().removeprefix("$"), colour):
            super().plate(cell, text, colour, filled)

    @contextmanager
    def _noting(self, name: str, colour: str) -> Iterator[None]:
        before = self.picture.copy()
        yield
        left, top, right, bottom = ImageChops.difference(before, self.picture).getbbox() or (0, 0, 1, 1)
        self.things.append(Icon(None, name, colour, (left, top, right - left, bottom - top), None))


def draw_page(chance: random.Random, layouts: tuple[str, ...] = PAGE_LAYOUTS, split: str = "pretrain") -> Scene:
    """Draw a page of random layout: a sign and an icon, two icons with text, or two plates of two colours.

    On a sign the text comes last, on the others top comes before bottom.

    Args:
        chance: Source of all chance.
        layouts: Of :data:`PAGE_LAYOUTS`.
        split: Decides fonts and icon families; all but ``pretrain`` are for measuring alone.
    """
    writer, layout = _Recorder(chance, split), chance.choice(layouts)
    if layout == "sign":
        writer.sign(chance.choice(WORDS))
    else:
        texts = chance.sample(chance.choice((WORDS, NUMBERS)), 2)
        pairs = writer.concepts(2) if layout == "labels" else chance.sample(tuple(COLOURS), 2)
        for top, with_it, text in zip((0, _HALF), pairs, texts, strict=True):
            if layout == "labels":
                writer.row(top, with_it, f"${text}" if text.isdigit() else text)
            else:
                writer.plate((0, top, PICTURE_PX, _HALF), writer.cased(text), with_it, filled=text.isdigit())
    return Scene(layout, tuple(writer.things), np.array(writer.picture))


def page_pixels(pages: list[Scene], rng: torch.Generator | None) -> torch.Tensor:
    """Paint pages, float32 in 0 to 1, (batch, 3, PICTURE_PX, PICTURE_PX); without a generator unchanged."""
    clean = torch.from_numpy(np.stack([np.asarray(page.picture) for page in pages])).permute(0, 3, 1, 2).float() / 255
    if rng is None:
        return clean
    near = functional.pad(clean, (1, 1, 1, 1), mode="replicate")
    kinds = [functional.avg_pool2d(near, 3, 1), functional.max_pool2d(near, 3, 1), -functional.max_pool2d(-near, 3, 1)]
    kind = torch.randint(3, (len(pages),), generator=rng)
    amount = 0.6 * torch.rand(len(pages), 1, 1, 1, generator=rng)
    return torch.lerp(clean, torch.stack(kinds)[kind, torch.arange(len(pages))], amount)


def page_cover(pages: list[Scene]) -> torch.Tensor:
    """Return the coverage of each thing in the order of the pages: (things, 1, PICTURE_PX, PICTURE_PX)."""
    things = [thing for page in pages for thing in page.icons]
    cover = torch.zeros(len(things), 1, PICTURE_PX, PICTURE_PX)
    for row, thing in zip(cover, things, strict=True):
        x, y, width, height = thing.cell
        row[0, y : y + height, x : x + width] = 1
    return cover


def letter_cover(pages: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return roughly where each letter or digit lies: its equal part of the text's plate.

    Returns:
        Coverage as of :func:`page_cover` (a row a letter), class (int64), and each one's page.
    """
    boxes, classes, owners = [], [], []
    for owner, page in enumerate(pages):
        for thing in page.icons:
            text = str(thing.name) if thing.name in TEXTS else ""
            x, y, width, height = thing.cell
            cuts = [x + round(width * k / max(1, len(text))) for k in range(len(text) + 1)]
            for letter, left, right in zip(text, cuts, cuts[1:], strict=False):
                boxes.append(Icon(None, letter, thing.colour, (left, y, right - left, height), None))
                classes.append(CHARACTERS.index(letter))
                owners.append(owner)
    return page_cover([Scene("letters", tuple(boxes))]), torch.tensor(classes), owners


class Library(GlyphBook):
    """Glyphs, and a shelf of pages that are drawn once.

    Args:
        limit: Of :class:`GlyphBook`.
        pages: How many.
        share: Of a batch that are pages.
        seed: Of the pages.
    """

    layouts = (*LAYOUTS, *PAGE_LAYOUTS)

    def __init__(self, limit: int | None = None, pages: int = PAGES, share: float = 0.75, seed: int = 0) -> None:
        super().__init__(limit)
        chance = random.Random(f"{seed}:pages")
        self.share, self.shelf = share, [draw_page(chance) for _ in range(pages)]
        self._easy = [page for page in self.shelf if page.layout == PAGE_LAYOUTS[0]]
        self._drawings, self.said = self.classes, [*self.names, *TEXTS]
        self.classes += len(TEXTS)

    def draw(self, rng: random.Random, layouts: tuple[str, ...], named: float, number: int) -> list[Scene]:
        """Draw a batch, its pages last; a batch of icons in one layout has pages of one layout."""
        shelf, pages = self.shelf if len(layouts) > 1 else self._easy, round(self.share * number)
        return super().draw(rng, layouts, named, number - pages) + rng.choices(shelf, k=pages)

    def paint(self, scenes: list[Scene], rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Paint pixels, all of the size of a page, and the coverage of each thing."""
        icons = [scene for scene in scenes if scene.picture is None]
        pages = scenes[len(icons) :]
        drawn = [functional.interpolate(part, PICTURE_PX, mode="bilinear") for part in super().paint(icons, rng)]
        return torch.cat([drawn[0], page_pixels(pages, rng)]), torch.cat([drawn[1], page_cover(pages)])

    def letters(self, scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return the letters of the pages of a batch."""
        cover, classes, owners = letter_cover([scene for scene in scenes if scene.picture is not None])
        return cover, classes, torch.tensor(owners) + sum(scene.picture is None for scene in scenes)

    def labels_of(self, icons: list[Icon]) -> torch.Tensor:
        """Return the class of each thing; every text has one of its own."""
        return torch.tensor([self._label(icon) for icon in icons])

    def _label(self, icon: Icon) -> int:
        if icon.glyph is None and icon.name in TEXTS:
            return self._drawings + TEXTS.index(icon.name)
        return int(self.labels[self.by_name[str(icon.name)][0] if icon.glyph is None else icon.glyph])
