"""Reading of untrusted pictures, and the single picture made from a multi-image question."""

from __future__ import annotations

import os
import string
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from commit_tuning.data.files import FaultError, Source, content_of, not_whole, shown

if TYPE_CHECKING:
    from PIL import Image, ImageFile

LETTERS = tuple(string.ascii_uppercase)
"""Names of the choices in a collage with a question picture; more choices than letters are refused."""

MAX_PIXELS = 32_000_000
"""Largest picture that is decoded, in pixels (width x height)."""

MAX_ASPECT = 200
"""How many times the shorter side the longer one may be; processors enlarge the shorter one to hundreds of pixels."""

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG", ".WEBP")
"""How the file of a picture whose dataset names no ending may end, the first that there is."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened as a picture: the common formats, none that Pillow hands to another program."""

_TURNS: dict[object, str] = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What an orientation of EXIF asks for."""

GRID_PLACES = ("top left", "top right", "bottom left", "bottom right")
"""Names of up to four choices in a collage without a question picture."""


def picture_names(stem: str) -> tuple[str, ...]:
    """Return the possible file names of a picture: the stem with each ending, or unchanged."""
    stems = dict.fromkeys((stem, stem.strip()))
    return (*(f"{it}{ending}" for it in stems for ending in ENDINGS), stem)


def is_plain(picture: Image.Image) -> bool:
    """Tell whether a picture has a single colour, so that it shows nothing."""
    return picture.getcolors(maxcolors=1) is not None


def choice_names(question: Image.Image, count: int) -> tuple[str, ...]:
    """Name the choices of a collage: places in a grid of up to four, else letters in reading order."""
    return GRID_PLACES[:count] if is_plain(question) and count <= len(GRID_PLACES) else LETTERS[:count]


def collage(question: Image.Image, choices: Sequence[Image.Image]) -> Image.Image:
    """Lay the pictures of a multi-image question out as one.

    Args:
        question: The question's picture, RGB; one plain colour means that it shows nothing.
        choices: The choices' pictures, RGB, at most 26.

    Returns:
        RGB: the choices two in a row if the question shows nothing; else the question on top of one row of choices,
        each under its letter.

    Raises:
        FaultError: It would be too large.
    """
    from PIL import Image, ImageDraw

    plain = is_plain(question)
    width, height = (max(sizes) for sizes in zip(*(choice.size for choice in choices), strict=True))
    columns = 2 if plain and len(choices) > 1 else len(choices)
    rows = -(-len(choices) // columns)
    top, label = (0, 0) if plain else (question.height, 12)
    total = max(columns * width, 0 if plain else question.width)
    size = total, top + rows * (height + label)
    if size[0] * size[1] > MAX_PIXELS:
        raise FaultError(f"the choices side by side are too large: {size[0]} x {size[1]} pixels")
    sheet = Image.new("RGB", size, question.getpixel((0, 0)) if plain else "white")
    if not plain:
        sheet.paste(question, ((total - question.width) // 2, 0))
    for index, choice in enumerate(choices):
        x, y = (index % columns) * (total // columns), top + (index // columns) * (height + label)
        if label:
            ImageDraw.Draw(sheet).text((x + width // 2, y), LETTERS[index], fill="black", anchor="ma")
        sheet.paste(choice, (x, y + label))
    return sheet


def check_picture(source: Source) -> int:
    """Check size and integrity, if possible without decoding: a PNG has checksums, a JPEG ends with its end marker.

    Args:
        source: The file, or its content.

    Returns:
        How many pixels it has.

    Raises:
        FaultError: The file is missing, too large, too narrow, or no whole picture; or what is white in it
            is not known (floating-point and 32-bit values).
    """
    with _opened(source) as image:
        if image.format == "PNG":
            image.verify()
        elif image.format != "JPEG" or not _ends_as_jpeg(source):
            image.load()
        return image.width * image.height


def load_picture(source: Source) -> Image.Image:
    """Decode a picture (of several the first) as RGB; see :func:`to_rgb`.

    Args:
        source: The file, or its content.

    Raises:
        FaultError: As :func:`check_picture`.
    """
    with _opened(source) as image:
        _scale_key(image)
        image.load()
        return to_rgb(_upright(image))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture, not of mode F, to 8-bit RGB: 16-bit grey is divided by 257, what is transparent is white."""
    from PIL import Image

    if picture.mode.startswith("I"):
        return _in_8_bits(picture).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    sheet = Image.new("RGBA", picture.size, "white")
    sheet.alpha_composite(picture.convert("RGBA"))
    return sheet.convert("RGB")


def _scale_key(image: ImageFile.ImageFile) -> None:
    """Put a PNG's one transparent colour into the 8 bits in which Pillow gives the pixels."""
    raw, key = image.tile[0].args if image.tile else None, image.info.get("transparency")
    if raw in ("L;2", "L;4") and key is not None:
        white = 3 if raw == "L;2" else 15
        image.info["transparency"] = key * 255 // white if key <= white else key
    elif raw == "RGB;16B" and key is not None and max(key) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """Convert grey of 0 to 65,535 to grey of 0 to 255, and the one possible transparent value to white."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.uint32)
    values[values == picture.info.get("transparency", -1)] = 65_535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says, even if other tags are damaged, on which Pillow's own turn fails."""
    from PIL import ExifTags, Image

    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # no EXIF
        turn = None
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _ends_as_jpeg(source: Source) -> bool:
    if isinstance(source, bytes):
        return source.endswith(b"\xff\xd9")
    with source.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


@contextmanager
def _opened(source: Source) -> Iterator[ImageFile.ImageFile]:
    """Open a picture that can be read; every failure of Pillow inside becomes a fault of this file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of odd metadata
            with Image.open(content_of(source), formats=FORMATS) as image:
                _check_kind(image, shown(source))
                yield image
    except FaultError:
        raise
    except Image.DecompressionBombError:
        raise FaultError(f"{shown(source)} is too large: above {MAX_PIXELS / 1e6:g} million pixels") from None
    except UnidentifiedImageError as error:
        raise not_whole(source, f"picture of {', '.join(FORMATS)}", error) from error
    except Exception as error:
        raise not_whole(source, "picture", error) from error


def _check_kind(image: ImageFile.ImageFile, name: str) -> None:
    """Refuse a size that Pillow or a processor cannot bear, and values of which nobody knows what is white."""
    width, height = image.size
    size = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise FaultError(f"{name} is too large: {size}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise FaultError(f"{name} is too narrow: {size}; a side is at most {MAX_ASPECT} times the other")
    values = _unknown_values(image)
    if values is not None:
        raise FaultError(f"{name} holds {values} values, of which none is known to be white: save it in 8 or 16 bits")


def _unknown_values(image: ImageFile.ImageFile) -> str | None:
    """Name pixel values whose white is unknown or that Pillow misreads; None for all others."""
    from PIL import ExifTags

    tags = getattr(image, "tag_v2", {})  # of TIFF
    if image.mode == "F":
        return "floating-point"
    if image.mode == "I" and image.format != "PPM":  # PPM's are of 16 bits
        return "signed or 32-bit"
    if image.mode.startswith("I;16") and tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        return "inverted 16-bit"
    return "12-bit" if image.mode.startswith("I;16") and tags.get(ExifTags.Base.BitsPerSample) == (12,) else None
