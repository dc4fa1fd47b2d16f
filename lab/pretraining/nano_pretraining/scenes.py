"""Pictures for pre-training: a scene says what lies where, the painter turns a batch of scenes into pixels.

Only Material Design icons are drawn. Their strokes are thinned, thickened, outlined, inverted, stretched and turned,
so that a tower learns drawings and not the style of one font.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from commit_lab.nano.pictures.icons import SPLIT_FAMILIES, Glyph, concepts, load_glyphs, render_glyph
from commit_lab.nano.pictures.nano_questions import COLOURS

LAYOUTS = ("single", "beside", "above", "quarters", "scatter")
PICTURE_PX = 64
MASTER_PX = 48
MAX_ICONS = 9
MIN_STYLES = 4
_FULL, _HALF, _THIRD = PICTURE_PX, PICTURE_PX // 2, PICTURE_PX // 3


@dataclass(frozen=True)
class Icon:
    """One icon of a scene, or a text on a page.

    Attributes:
        glyph: Its number in the book; None on a page, which is painted already.
        name: Concept or text; None outside the concepts.
        colour: Name of the colour.
        cell: x, y, width, height, in pixels: where it may lie, and on a page where it lies.
        size: Least and greatest side in pixels; None on a page.
    """

    glyph: int | None
    name: str | None
    colour: str
    cell: tuple[int, int, int, int]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Scene:
    """Icons in a layout: single, beside, above, quarters or scatter; or a page, which comes painted (uint8, RGB)."""

    layout: str
    icons: tuple[Icon, ...]
    picture: np.ndarray[Any, Any] | None = None


class GlyphBook:
    """Coverage of the pre-training glyphs, and which class each belongs to.

    Besides the concepts these are the drawings that come in at least MIN_STYLES styles (versions, filled, outlined).

    Attributes:
        masks: uint8, (glyphs, MASTER_PX, MASTER_PX).
        labels: int64, (glyphs,): concept, or base drawing where there is none.
        classes: Number of labels.
        by_name: Concept -> glyph numbers.
        names: The concepts.
        said: Every name of a thing in a scene.
        layouts: Every layout of a scene.
    """

    layouts: tuple[str, ...] = LAYOUTS

    def __init__(self, limit: int | None = None) -> None:
        glyphs = [glyph for glyph in load_glyphs() if glyph.family in SPLIT_FAMILIES["pretrain"]]
        named = set(concepts())
        if limit is not None:
            glyphs = [glyph for glyph in glyphs if glyph.concept in named][:limit]
        styles = Counter(glyph.lineage for glyph in glyphs)
        glyphs = [glyph for glyph in glyphs if glyph.concept in named or styles[glyph.lineage] >= MIN_STYLES]
        self.glyphs: list[Glyph] = glyphs
        keys = [glyph.concept or glyph.lineage for glyph in glyphs]
        order = {key: index for index, key in enumerate(sorted(set(keys)))}
        self.masks = torch.stack([_mask(glyph) for glyph in glyphs])
        self.labels = torch.tensor([order[key] for key in keys])
        self.classes = len(order)
        self.by_name: dict[str, list[int]] = {}
        for index, glyph in enumerate(glyphs):
            if glyph.concept in named:
                self.by_name.setdefault(str(glyph.concept), []).append(index)
        self.names = sorted(self.by_name)
        self.said = self.names

    def draw(self, rng: random.Random, layouts: tuple[str, ...], named: float, number: int) -> list[Scene]:
        """Draw a batch of scenes of random layouts, as :func:`draw_scene` does."""
        return [draw_scene(rng, self, layouts, named) for _ in range(number)]

    def paint(self, scenes: list[Scene], rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Paint the scenes' pixels and the coverage of each icon: :func:`paint`."""
        return paint(scenes, self, rng)

    def letters(self, scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return each readable letter's coverage, class and scene number; None where there is nothing to read."""
        return None

    def labels_of(self, icons: list[Icon]) -> torch.Tensor:
        """Return the class of each icon's drawing: int64."""
        return self.labels[[icon.glyph for icon in icons]]


def _mask(glyph: Glyph) -> torch.Tensor:
    return torch.from_numpy(np.array(render_glyph(glyph, MASTER_PX).getchannel("A")))


def draw_scene(rng: random.Random, book: GlyphBook, layouts: tuple[str, ...], named: float) -> Scene:
    """Draw a scene of random layout; each icon is a concept with probability ``named``, else any glyph."""
    layout = rng.choice(layouts)
    if layout == "single":
        return Scene(layout, (_icon(rng, book, named, (0, 0, _FULL, _FULL), (26, 60)),))
    if layout in ("beside", "above"):
        boxes = [(0, 0, _HALF, _FULL), (_HALF, 0, _HALF, _FULL)]
        if layout == "above":
            boxes = [(0, 0, _FULL, _HALF), (0, _HALF, _FULL, _HALF)]
        return Scene(layout, tuple(_icon(rng, book, named, box, (22, 31)) for box in boxes))
    if layout == "quarters":
        boxes = [(_HALF * (i % 2), _HALF * (i // 2), _HALF, _HALF) for i in range(4)]
        return Scene(layout, tuple(_icon(rng, book, named, box, (22, 31)) for box in boxes))
    return _scatter(rng, book, named)


def _scatter(rng: random.Random, book: GlyphBook, named: float) -> Scene:
    """Place groups of equal icons in cells of a 3 x 3 grid."""
    places = rng.sample(range(MAX_ICONS), MAX_ICONS)
    total = rng.randint(1, 7)
    icons: list[Icon] = []
    while len(icons) < total:
        number = min(total - len(icons), rng.choice((1, 1, 2, 3, 4, 5)))
        cells = [
            (_THIRD * (p % 3), _THIRD * (p // 3), _THIRD, _THIRD) for p in places[len(icons) : len(icons) + number]
        ]
        first = _icon(rng, book, named, cells[0], (16, 21))
        alike = rng.random() < 0.5
        for cell in cells:
            colour = first.colour if alike else rng.choice(tuple(COLOURS))
            icons.append(Icon(first.glyph, first.name, colour, cell, first.size))
    return Scene("scatter", tuple(icons))


def _icon(
    rng: random.Random, book: GlyphBook, named: float, cell: tuple[int, int, int, int], size: tuple[int, int]
) -> Icon:
    name = rng.choice(book.names) if rng.random() < named else None
    glyph = rng.choice(book.by_name[name]) if name else rng.randrange(len(book.glyphs))
    return Icon(glyph, name, rng.choice(tuple(COLOURS)), cell, size)


def paint(scenes: list[Scene], book: GlyphBook, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint pixels of a batch of scenes, and where each icon lies.

    Returns:
        Pictures, float32 in 0 to 1, (batch, 3, PICTURE_PX, PICTURE_PX), and the coverage of each icon in the order
        of the scenes, (icons, 1, PICTURE_PX, PICTURE_PX).
    """
    owners = torch.tensor([index for index, scene in enumerate(scenes) for _ in scene.icons])
    ranks = torch.tensor([rank for scene in scenes for rank in range(len(scene.icons))])
    icons = [icon for scene in scenes for icon in scene.icons]
    shapes = vary(book.masks[[icon.glyph for icon in icons]].float() / 255, rng)
    cover = _place(shapes, icons, rng)
    tones = torch.tensor([COLOURS[icon.colour] for icon in icons]) / 255
    tones = (tones + (torch.rand(tones.shape, generator=rng) - 0.5) * 0.15).clamp(0, 1)
    canvas = 0.88 + 0.12 * torch.rand(len(scenes), 3, 1, 1, generator=rng)
    canvas = canvas.expand(-1, -1, PICTURE_PX, PICTURE_PX).clone()
    for rank in range(int(ranks.max()) + 1):
        chosen = (ranks == rank).nonzero().squeeze(1)
        target = owners[chosen]
        canvas[target] = torch.lerp(canvas[target], tones[chosen][:, :, None, None], cover[chosen])
    return canvas, cover


def vary(shapes: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Change the style of masks: mirror, outline, invert, and thin or thicken the strokes.

    Args:
        shapes: Coverage in 0 to 1, (icons, side, side).
        rng: Source of chance.

    Returns:
        (icons, 1, side, side).
    """
    count = len(shapes)

    def chance(probability: float) -> torch.Tensor:
        return torch.rand(count, generator=rng) < probability

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng)

    out = shapes[:, None]
    mirrored, outlined, inverted = chance(0.05), chance(0.12), chance(0.04)
    out[mirrored] = out[mirrored].flip(-1)
    thick, thin = functional.max_pool2d(out[outlined], 5, 1, 2), -functional.max_pool2d(-out[outlined], 5, 1, 2)
    out[outlined] = thick - thin
    small = functional.interpolate(out[inverted], scale_factor=0.625)
    out[inverted] = 1 - functional.pad(small, (9, 9, 9, 9))
    blurred = functional.avg_pool2d(out, 5, 1, 2)
    return ((blurred - between(0.15, 0.6)) * between(2, 6) + 0.5).clamp(0, 1)


def _place(shapes: torch.Tensor, icons: list[Icon], rng: torch.Generator) -> torch.Tensor:
    """Resample each mask into its cell with a random size, place, rotation and stretch: (icons, 1, side, side)."""
    count = len(icons)
    noise = torch.rand(5, count, generator=rng)
    cell = torch.tensor([icon.cell for icon in icons], dtype=torch.float32)
    size = torch.tensor([icon.size for icon in icons], dtype=torch.float32)
    side = size[:, 0] + (size[:, 1] - size[:, 0]) * noise[0]
    centre_x = cell[:, 0] + side / 2 + (cell[:, 2] - side).clamp(min=0) * noise[1]
    centre_y = cell[:, 1] + side / 2 + (cell[:, 3] - side).clamp(min=0) * noise[2]
    angle = (noise[3] - 0.5) * 0.45
    stretch = torch.exp((noise[4] - 0.5) * 0.25)
    cos, sin = torch.cos(angle), torch.sin(angle)
    zoom_x, zoom_y = PICTURE_PX / side * stretch, PICTURE_PX / side / stretch
    shift_x, shift_y = 1 - 2 * centre_x / PICTURE_PX, 1 - 2 * centre_y / PICTURE_PX
    rows = [
        torch.stack([zoom_x * cos, zoom_x * sin, zoom_x * (cos * shift_x + sin * shift_y)], 1),
        torch.stack([-zoom_y * sin, zoom_y * cos, zoom_y * (cos * shift_y - sin * shift_x)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 1, PICTURE_PX, PICTURE_PX], align_corners=False)
    out = torch.zeros(count, 1, PICTURE_PX, PICTURE_PX)
    for small in (True, False):  # halve before shrinking a lot, against aliasing
        chosen = ((side < 34) == small).nonzero().squeeze(1)
        source = functional.avg_pool2d(shapes[chosen], 2) if small else shapes[chosen]
        out[chosen] = functional.grid_sample(source, grid[chosen], align_corners=False)
    return out
