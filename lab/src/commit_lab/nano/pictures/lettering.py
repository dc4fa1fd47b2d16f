"""Text in the fonts of four open families, as matplotlib and Pillow carry them.

matplotlib and Pillow are used as packages of data: matplotlib is not imported. Each family has other designers, so a
split by family is strict, like that of the icons.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from commit_lab.nano.building import package_folder
from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FONTS: dict[str, tuple[str, ...]] = {
    "dejavu": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSerif-Italic",
    ),
    "cm": ("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
    "aileron": ("aileron",),
    "stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
"""Family -> file stems: DejaVu, Computer Modern (BaKoMa), Aileron (Pillow's own font, regular alone), STIX."""

SPLIT_FONTS: dict[str, tuple[str, ...]] = {
    "pretrain": ("dejavu",),
    "train": ("cm",),
    "val": ("aileron",),
    "test": ("stix",),
}
"""Split -> families. No family is in two splits."""

_MASTER_PX = 64
_NO_DOLLAR = {"cmti10"}  # Computer Modern's italic has a pound sign in its place


def split_fonts(split: str, text: str = "") -> tuple[str, ...]:
    """Return a split's fonts, as file stems, that can write a text of letters, digits and dollar signs."""
    fonts = (font for family in SPLIT_FONTS[split] for font in FONTS[family])
    return tuple(font for font in fonts if "$" not in text or font not in _NO_DOLLAR)


@lru_cache(maxsize=1)
def font_folder() -> Path:
    """Return the folder of matplotlib's fonts.

    Raises:
        UserError: matplotlib is not installed.
    """
    return package_folder("matplotlib", "mpl-data/fonts/ttf", "experiments", "whose fonts write Nano-TextVQA")


@lru_cache(maxsize=32)
def _font(stem: str) -> object:
    from PIL import ImageFont

    if stem in FONTS["aileron"]:
        return ImageFont.load_default(_MASTER_PX)
    path = font_folder() / f"{stem}.ttf"
    if not path.is_file():
        raise UserError(f"matplotlib holds no font {path}: install matplotlib>=3.9")
    return ImageFont.truetype(str(path), _MASTER_PX)


@lru_cache(maxsize=2048)
def text_mask(text: str, font: str) -> Image.Image:
    """Return the coverage of a line of text, cropped to its ink: mode L, letters of 64 pixels.

    Args:
        text: What to write.
        font: One of :data:`FONTS`' file stems.

    Raises:
        UserError: matplotlib is not installed, or lacks the font.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (_MASTER_PX * (len(text) + 2), 2 * _MASTER_PX))
    ImageDraw.Draw(canvas).text((_MASTER_PX, _MASTER_PX // 3), text, fill=255, font=_font(font))  # type: ignore[arg-type]
    return canvas.crop(canvas.getbbox())
