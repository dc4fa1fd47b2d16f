"""Pictures of a dataset that nobody has vouched for, and the one picture of a multi-image question."""

from __future__ import annotations

import os
import string
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from commit_tuning.data.files import FaultError, Source, content_of, not_whole, shown

if TYPE_CHECKING:
    from PIL import Image

LETTERS = tuple(string.ascii_uppercase)
"""Names of the choices in a collage with a question picture; more choices than letters are refused."""

MAX_PIXELS = 32_000_000
"""Largest picture that is decoded, in pixels (width x height)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened as a picture: the common formats, none that Pillow hands to another program."""

GRID_PLACES = ("top left", "top right", "bottom left", "bottom right")
"""Names of up to four choices in a collage without a question picture."""


def is_plain(picture: Image.Image) -> bool:
    """Whether a picture is of one colour, so that it shows nothing."""
    return picture.getcolors(maxcolors=1) is not None


def choice_names(question: Image.Image, count: int) -> tuple[str, ...]:
    """What the choices of a collage are called: places in a grid of up to four, else letters in reading order."""
    return GRID_PLACES[:count] if is_plain(question) and count <= len(GRID_PLACES) else LETTERS[:count]


def collage(question: Image.Image, choices: Sequence[Image.Image]) -> Image.Image:
    """Lay the pictures of a multi-image question out as one.

    Args:
        question: The question's picture, RGB; one plain colour means that it shows nothing.
        choices: The choices' pictures, RGB, at most 26.

    Returns:
        RGB: the choices two in a row if the question shows nothing; else the question on top of one row of choices,
        each under its letter.
    """
    from PIL import Image, ImageDraw

    plain = is_plain(question)
    width, height = (max(sizes) for sizes in zip(*(choice.size for choice in choices), strict=True))
    columns = 2 if plain and len(choices) > 1 else len(choices)
    rows = -(-len(choices) // columns)
    top, label = (0, 0) if plain else (question.height, 12)
    total = max(columns * width, 0 if plain else question.width)
    sheet = Image.new("RGB", (total, top + rows * (height + label)), question.getpixel((0, 0)) if plain else "white")
    if not plain:
        sheet.paste(question, ((total - question.width) // 2, 0))
    for index, choice in enumerate(choices):
        x, y = (index % columns) * (total // columns), top + (index // columns) * (height + label)
        if label:
            ImageDraw.Draw(sheet).text((x + width // 2, y), LETTERS[index], fill="black", anchor="ma")
        sheet.paste(choice, (x, y + label))
    return sheet


def check_picture(source: Source) -> None:
    """Check size and integrity, if possible without decoding: a PNG has checksums, a JPEG ends with its end marker.

    Args:
        source: The file, or its content.

    Raises:
        FaultError: The file is missing, too large, or no whole picture.
    """
    with _Opened(source) as image:
        if image.format == "PNG":
            image.verify()
        elif image.format != "JPEG" or not _ends_as_jpeg(source):
            image.load()


def load_picture(source: Source) -> Image.Image:
    """Decode a picture as RGB.

    Args:
        source: The file, or its content.

    Raises:
        FaultError: As :func:`check_picture`.
    """
    with _Opened(source) as image:
        if image.mode.startswith("I"):  # grey in 16 bits, which convert() would clip
            return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
        return image.convert("RGB")


def _ends_as_jpeg(source: Source) -> bool:
    if isinstance(source, bytes):
        return source.endswith(b"\xff\xd9")
    with source.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


class _Opened:
    """An open picture of bearable size; every failure of Pillow inside becomes a fault of this file."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> Image.Image:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a limit of our own follows
                self.image: Image.Image = Image.open(content_of(self.source), formats=FORMATS)
        except Image.DecompressionBombError:
            raise FaultError(f"{shown(self.source)} is too large: above {MAX_PIXELS / 1e6:g} million pixels") from None
        except Exception as error:
            raise not_whole(self.source, "picture", error) from error
        width, height = self.image.size
        if width * height > MAX_PIXELS:
            self.image.close()
            raise FaultError(f"{shown(self.source)} is too large: {width} x {height} pixels")
        return self.image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.image.close()
        if isinstance(error, Exception):
            raise not_whole(self.source, "picture", error) from error
