"""The common part of the nano datasets of pictures: small pictures of icons."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from commit_lab.nano.pictures.icons import Glyph, concept_glyphs, concepts, render_glyph

if TYPE_CHECKING:
    from PIL import Image

PICTURE_PX = 64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 30, 35),
    "blue": (30, 80, 215),
    "green": (15, 135, 50),
    "orange": (235, 125, 0),
    "purple": (140, 40, 170),
    "black": (25, 25, 25),
}


class Painter:
    """Draws icons of one split; all chance comes from one generator.

    Args:
        rng: Source of all chance.
        split: A split of :data:`commit_lab.nano.pictures.icons.SPLIT_FAMILIES`.
    """

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.glyphs = concept_glyphs(split)
        self.background = self.tint((232, 255))

    def tint(self, span: tuple[int, int]) -> tuple[int, int, int]:
        """Draw a random colour whose three parts lie in a span."""
        return (self.rng.randint(*span), self.rng.randint(*span), self.rng.randint(*span))

    def concepts(self, count: int) -> list[str]:
        """Choose some different concepts."""
        return self.rng.sample(concepts(), count)

    def glyph(self, concept: str) -> Glyph:
        """Choose a drawing of a concept."""
        return self.rng.choice(self.glyphs[concept])

    def colour(self) -> str:
        """Name of a colour."""
        return self.rng.choice(tuple(COLOURS))

    def canvas(self, side: int = PICTURE_PX) -> Image.Image:
        """Make a square of the background, in RGB."""
        from PIL import Image

        return Image.new("RGB", (side, side), self.background)

    def tone(self, colour: str) -> tuple[int, int, int]:
        """Choose a shade of a named colour."""
        red, green, blue = (min(255, max(0, part + self.rng.randint(-15, 15))) for part in COLOURS[colour])
        return (red, green, blue)

    def stamp(
        self, canvas: Image.Image, glyph: Glyph, cell: tuple[int, int, int, int], size: tuple[int, int], colour: str
    ) -> None:
        """Paint a glyph somewhere in a cell (x, y, width, height), its side between the two sizes."""
        side = self.rng.randint(*size)
        icon = render_glyph(glyph, side, self.tone(colour), rotation=self.rng.uniform(-12, 12))
        x, y, width, height = cell
        canvas.paste(icon, (x + self.rng.randint(0, width - side), y + self.rng.randint(0, height - side)), icon)

    def scatter(self, icons: list[tuple[Glyph, str]]) -> Image.Image:
        """Paint up to nine icons into cells of a grid of 3 x 3, in random order: sides of 17 to 20 pixels."""
        canvas = self.canvas()
        for place, (glyph, colour) in zip(self.rng.sample(range(9), len(icons)), icons, strict=True):
            cell = (21 * (place % 3), 21 * (place // 3), 21, 21)
            self.stamp(canvas, glyph, cell, (17, 20), colour)
        return canvas
