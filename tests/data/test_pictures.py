"""Pictures of every kind that people have become 8-bit RGB that shows the same."""

from __future__ import annotations

import media_zoo as zoo
import numpy as np
import pytest
from PIL import Image

from commit_tuning.data.files import FaultError
from commit_tuning.data.pictures import check_picture, load_picture, to_rgb


@pytest.mark.parametrize("kind", zoo.PICTURES)
def test_a_picture_shows_what_its_file_shows(kind: str) -> None:
    content, expected = zoo.PICTURES[kind]
    check_picture(content())
    assert zoo.shows(load_picture(content()), expected())


@pytest.mark.parametrize("kind", zoo.ODD_PICTURES)
def test_unreadable_picture_names_its_reason(kind: str) -> None:
    content, reason = zoo.ODD_PICTURES[kind]
    with pytest.raises(FaultError, match=reason):
        load_picture(content())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    content = zoo.saved(zoo.turned(orientation), "PNG", exif=zoo.exif(orientation))
    assert load_picture(content).tobytes() == zoo.scene().tobytes()


def test_a_plain_picture_keeps_every_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    opaque = pixels | np.array([0, 0, 0, 255], np.uint8)
    expected = pixels[..., :3].tobytes()
    assert load_picture(zoo.saved(Image.fromarray(pixels[..., :3].copy()), "PNG")).tobytes() == expected
    assert load_picture(zoo.saved(Image.fromarray(opaque), "PNG")).tobytes() == expected


def test_half_transparent_black_is_grey() -> None:
    assert to_rgb(Image.new("RGBA", (5, 5), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


def test_every_16_bit_value_is_divided_by_257() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    shades = np.asarray(load_picture(zoo.saved(Image.fromarray(values), "PNG")))[..., 0]
    assert np.array_equal(shades, np.round(values / 257))
    assert (shades[0, 0], shades[-1, -1]) == (0, 255)


def test_a_transparent_16_bit_value_is_white() -> None:
    values = np.full((8, 8), 500, np.uint16)
    values[0] = 40_000
    picture = Image.fromarray(values)
    picture.info["transparency"] = 500
    assert np.asarray(to_rgb(picture))[:, 0, 0].tolist() == [156, *[255] * 7]


def test_a_picture_of_one_pixel_is_read() -> None:
    assert load_picture(zoo.saved(Image.new("RGB", (1, 1), zoo.RED), "PNG")).getpixel((0, 0)) == zoo.RED


@pytest.mark.parametrize("kind", ["a plain PNG", "an animated GIF", "a WebP with EXIF", "CMYK", "CMYK as TIFF"])
def test_a_cut_picture_is_a_fault(kind: str) -> None:
    content = zoo.PICTURES[kind][0]()
    with pytest.raises(FaultError, match="is not a whole picture"):
        load_picture(content[: len(content) // 2])


def test_damaged_metadata_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    load_picture(zoo.PICTURES["EXIF that is damaged"][0]())
    assert not recwarn.list


@pytest.mark.parametrize("content", [b"\0\0\0\x18ftypheic" + b"\0" * 99, b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_formats_that_are_read_are_named(content: bytes) -> None:
    with pytest.raises(FaultError, match="is not a whole picture of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"):
        check_picture(content)
