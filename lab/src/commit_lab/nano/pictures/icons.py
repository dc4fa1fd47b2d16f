"""Icons of six open families, read from the fonts that the QtAwesome package ships.

QtAwesome is used as a package of data: neither it nor Qt is imported. Each family has other artists, so a split by
family is the strictest form of a split by lineage: no drawing, no weight of it and no later version of it
can be on both sides.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from commit_lab.nano.building import package_folder
from commit_lab.nano.pictures.concepts import CONCEPT_NAMES
from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FAMILIES: dict[str, tuple[str, ...]] = {
    "mdi": ("materialdesignicons5-webfont", "materialdesignicons6-webfont"),
    "fa": (
        "fontawesome5-regular-webfont",
        "fontawesome5-solid-webfont",
        "fontawesome6-regular-webfont",
        "fontawesome6-solid-webfont",
    ),
    "ph": ("phosphor",),
    "ri": ("remixicon",),
    "msc": ("codicon",),
    "ei": ("elusiveicons-webfont",),
}
"""Family -> font file stems: Material Design Icons, Font Awesome (no brands), Phosphor, Remix, Codicons, Elusive."""

SPLIT_FAMILIES: dict[str, tuple[str, ...]] = {
    "pretrain": ("mdi",),
    "train": ("ri", "msc", "ei"),
    "val": ("fa",),
    "test": ("ph",),
}
"""Split -> families. No family is in two splits."""

_FILL = re.compile(r"-(fill|filled|duotone|line|outline|outlined)$")
_WEIGHT = re.compile(r"-(thin|light|bold)$")  # only Phosphor names weights; elsewhere the words are part of a name
_VARIANT = re.compile(r"-(variant|alt|\d+)$")
_MASTER_PX = 72
_UNDRAWN = {"blank", "font-awesome-logo-full"}  # named in a charmap, but without ink


@dataclass(frozen=True, slots=True)
class Glyph:
    """One drawing of one font.

    Attributes:
        family: Key of :data:`FAMILIES`.
        font: File name of the font.
        name: Name in the font's charmap, such as ``heart-bold``.
        codepoint: Unicode code point.
        concept: Name of the concept drawn, such as ``shopping cart``; None outside the concept table.
        lineage: Family and base name; versions, weights and styles of one drawing share it.
    """

    family: str
    font: str
    name: str
    codepoint: int
    concept: str | None
    lineage: str


def _strip(name: str, *suffixes: re.Pattern[str]) -> str:
    while match := next((found for suffix in suffixes if (found := suffix.search(name)) and found.start()), None):
        name = name[: match.start()]
    return name


def style_free(name: str, family: str) -> str:
    """Name of a drawing without its weight and fill (``heart-2-line`` -> ``heart-2``)."""
    return _strip(name, _FILL, _WEIGHT) if family == "ph" else _strip(name, _FILL)


def base_name(name: str, family: str) -> str:
    """Name of a drawing without weight, fill, version and variant (``heart-2-line`` -> ``heart``)."""
    return _strip(name, _FILL, _VARIANT, _WEIGHT) if family == "ph" else _strip(name, _FILL, _VARIANT)


@lru_cache(maxsize=1)
def font_folder() -> Path:
    """Return the folder of QtAwesome's fonts.

    Raises:
        UserError: QtAwesome is not installed.
    """
    return package_folder("qtawesome", "fonts", "experiments", "whose fonts draw Nano-IconQA")


def _only_file(pattern: str) -> Path:
    found = sorted(font_folder().glob(pattern))
    if len(found) != 1:
        raise UserError(
            f"QtAwesome holds {len(found)} files {pattern} in {font_folder()}, not 1: install qtawesome>=1.4"
        )
    return found[0]


def _concept_of() -> dict[tuple[str, str], str]:
    """Map (family, drawing without its style) to concept."""
    index: dict[tuple[str, str], str] = {}
    for concept, names in CONCEPT_NAMES.items():
        for entry in names:
            only, _, name = entry.rpartition("!")
            for family in (only,) if only else FAMILIES:
                index[family, name] = concept
    return index


@lru_cache(maxsize=1)
def load_glyphs() -> tuple[Glyph, ...]:
    """Load all glyphs of all families, in a fixed order (family, font, name).

    Raises:
        UserError: QtAwesome is not installed, or its fonts are not the expected ones.
    """
    concepts = _concept_of()
    glyphs = []
    for family, stems in FAMILIES.items():
        for stem in stems:
            font = _only_file(f"{stem}-[0-9]*.ttf").name
            charmap: dict[str, str] = json.loads(_only_file(f"{stem}-charmap-*.json").read_text("utf-8"))
            for name, code in sorted(charmap.items()):
                if name in _UNDRAWN:
                    continue
                concept = concepts.get((family, style_free(name, family)))
                lineage = f"{family}:{base_name(name, family)}"
                glyphs.append(Glyph(family, font, name, int(code, 16), concept, lineage))
    return tuple(glyphs)


@lru_cache(maxsize=8)
def concept_glyphs(split: str) -> dict[str, tuple[Glyph, ...]]:
    """Map each concept to its glyphs in the families of a split of :data:`SPLIT_FAMILIES`, without hairline weights."""
    found: dict[str, list[Glyph]] = {}
    for glyph in load_glyphs():
        drawn = glyph.family in SPLIT_FAMILIES[split] and not glyph.name.endswith("-thin")
        if glyph.concept is not None and drawn:
            found.setdefault(glyph.concept, []).append(glyph)
    return {concept: tuple(glyphs) for concept, glyphs in sorted(found.items())}


@lru_cache(maxsize=1)
def concepts() -> tuple[str, ...]:
    """Return the concepts that the families of every split draw, sorted."""
    return tuple(sorted(set.intersection(*(set(concept_glyphs(split)) for split in SPLIT_FAMILIES))))


@lru_cache(maxsize=32)
def _font(name: str) -> object:
    from PIL import ImageFont

    return ImageFont.truetype(str(font_folder() / name), _MASTER_PX)


@lru_cache(maxsize=4096)
def _master(font: str, codepoint: int) -> Image.Image:
    """Return the coverage of a glyph, cropped to its ink and padded to a square: mode L, about 72 pixels."""
    from PIL import Image, ImageDraw

    side = 2 * _MASTER_PX
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    draw.text((side // 2, side // 2), chr(codepoint), fill=255, font=_font(font), anchor="mm")  # type: ignore[arg-type]
    if canvas.getbbox() is None:
        raise UserError(f"{font} draws nothing at U+{codepoint:X}: install the qtawesome version of constraints.txt")
    return _square(canvas)


def _square(mask: Image.Image) -> Image.Image:
    """Crop a mask to its ink and pad it to a square about the same centre."""
    from PIL import Image

    ink = mask.crop(mask.getbbox())
    square = Image.new("L", (max(ink.size),) * 2)
    square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
    return square


def render_glyph(
    glyph: Glyph, size_px: int, colour: tuple[int, int, int] = (0, 0, 0), *, rotation: float = 0.0
) -> Image.Image:
    """Draw a glyph so that its ink fills a square.

    Args:
        glyph: What to draw.
        size_px: Side of the result in pixels; the longer side of the ink is as long.
        colour: RGB, 0 to 255.
        rotation: Degrees counter-clockwise about the centre.

    Returns:
        RGBA image of size_px x size_px, transparent around the ink: paste it with itself as the mask.
    """
    from PIL import Image

    mask = _master(glyph.font, glyph.codepoint)
    if rotation:
        mask = _square(mask.rotate(rotation, resample=Image.Resampling.BILINEAR, expand=True))
    mask = mask.resize((size_px, size_px), Image.Resampling.BOX if size_px < mask.width else Image.Resampling.BILINEAR)
    icon = Image.new("RGBA", (size_px, size_px), (*colour, 255))
    icon.putalpha(mask)
    return icon
