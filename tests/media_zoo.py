"""Pictures and sounds as people have them, each as the bytes of a file, with what a reader makes of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
import soundfile
from PIL import Image

READS_YCBCR = int(PIL.__version__.partition(".")[0]) >= 13  # in a TIFF that is not compressed
RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def scene() -> Image.Image:
    """White, 48 x 32, with red on the top left and black on the bottom right."""
    picture = Image.new("RGB", (48, 32), WHITE)
    picture.paste(RED, (0, 0, 16, 16))
    picture.paste(BLACK, (32, 16, 48, 32))
    return picture


def grey() -> Image.Image:
    return scene().convert("L")


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def cut_out() -> Image.Image:
    """The scene with its white as transparent black."""
    opaque = scene().convert("L").point(lambda value: 0 if value == 255 else 255)
    picture = Image.new("RGBA", scene().size, (0, 0, 0, 0))
    picture.paste(scene(), mask=opaque)
    return picture


def cut_out_in_palette() -> Image.Image:
    picture = cut_out().convert("RGB").quantize(4).convert("PA")  # a direct conversion loses the alpha before Pillow 12
    picture.putalpha(cut_out().getchannel("A"))
    return picture


def palette(transparent: bytes | int) -> bytes:
    """The scene in a palette of red, black, and a black that is transparent."""
    picture = Image.new("P", scene().size, 2)
    picture.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 0])
    picture.paste(0, (0, 0, 16, 16))
    picture.paste(1, (32, 16, 48, 32))
    return saved(picture, "PNG" if isinstance(transparent, bytes) else "GIF", transparency=transparent)


def turned(orientation: int) -> Image.Image:
    """What a camera writes whose sensor lay so that EXIF says this orientation, 1 to 8."""
    flips = Image.Transpose
    back = {
        1: None,
        2: flips.FLIP_LEFT_RIGHT,
        3: flips.ROTATE_180,
        4: flips.FLIP_TOP_BOTTOM,
        5: flips.TRANSPOSE,
        6: flips.ROTATE_90,
        7: flips.TRANSVERSE,
        8: flips.ROTATE_270,
    }[orientation]
    return scene() if back is None else scene().transpose(back)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def damaged_exif(orientation: int) -> bytes:
    """An orientation beside a resolution that is a text."""
    entries = struct.pack("<HHIHHHHII", 0x0112, 3, 1, orientation, 0, 0x011A, 2, 1, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


def keyed(depth: int, kind: int, key: int, row: bytes) -> bytes:
    """A PNG of 8 x 4 pixels, two times four shades a row, of which one is transparent."""
    row = row * (depth * (3 if kind == 2 else 1) // len(row))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 8, 4, depth, kind, 0, 0, 0)
    body = chunk(b"tRNS", struct.pack(">H", key) * (3 if kind == 2 else 1)) + chunk(
        b"IDAT", zlib.compress((b"\0" + row) * 4)
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def shades(*row: int) -> Image.Image:
    return Image.fromarray(np.tile(np.array(row * 2, np.uint8), (4, 1)))


def with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """A TIFF, low byte first, with another short value of a tag."""
    place = tiff.index(struct.pack("<HHI", tag, 3, 1)) + 8
    return tiff[:place] + struct.pack("<H", value) + tiff[place + 2 :]


def of_16_bits(form: str, mode: str = "I;16") -> bytes:
    values = np.asarray(grey()).astype(np.uint16) * 257
    order = ">u2" if mode == "I;16B" else "<u2"
    return saved(Image.frombytes(mode, grey().size, values.astype(order).tobytes()), form)


def several(form: str, **options: Any) -> bytes:
    return saved(scene(), form, save_all=True, append_images=[Image.new("RGB", (48, 32), RED)], **options)


def pgm(most: int) -> bytes:
    values = np.asarray(grey()).astype(np.uint32) * most // 255
    return b"P5 48 32 %d\n" % most + values.astype(">u2").tobytes()


def gone() -> Image.Image:
    """The scene without its black."""
    picture = scene()
    picture.paste(WHITE, (32, 16, 48, 32))
    return picture


def blank() -> Image.Image:
    return Image.new("RGB", (48, 32), WHITE)


def two_level() -> Image.Image:
    """The scene with black for red."""
    picture = scene()
    picture.paste(BLACK, (0, 0, 16, 16))
    return picture


PICTURES: dict[str, tuple[Callable[[], bytes], Callable[[], Image.Image]]] = {  # a new kind joins by one line
    "a plain PNG": (lambda: saved(scene(), "PNG"), scene),
    "a JPEG of a phone held upright": (
        lambda: saved(turned(6), "JPEG", exif=exif(6), quality=95, subsampling=0),
        scene,
    ),
    "a PNG with EXIF": (lambda: saved(turned(8), "PNG", exif=exif(8)), scene),
    "a WebP with EXIF": (lambda: saved(turned(5), "WEBP", exif=exif(5), lossless=True), scene),
    "a TIFF that is turned": (lambda: saved(turned(6), "TIFF", tiffinfo={0x0112: 6}), scene),
    "EXIF that is damaged": (
        lambda: saved(scene(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=95, subsampling=0),
        scene,
    ),
    "EXIF with another tag damaged": (
        lambda: saved(turned(6), "JPEG", exif=damaged_exif(6), quality=95, subsampling=0),
        scene,
    ),
    "an orientation that there is not": (lambda: saved(scene(), "PNG", exif=exif(77)), scene),
    "transparent RGBA": (lambda: saved(cut_out(), "PNG"), scene),
    "transparent WebP": (lambda: saved(cut_out(), "WEBP", lossless=True), scene),
    "transparent grey": (lambda: saved(cut_out().convert("LA"), "PNG"), grey),
    "a transparent palette": (lambda: palette(b"\xff\xff\0"), scene),
    "a transparent GIF": (lambda: palette(2), scene),
    "a transparent TIFF palette": (lambda: saved(cut_out_in_palette(), "TIFF"), scene),
    "RGB with a transparent colour": (lambda: saved(scene().convert("RGB"), "PNG", transparency=BLACK), gone),
    "grey in 2 bits with a transparent shade": (lambda: keyed(2, 0, 1, b"\x1b" * 2), lambda: shades(0, 255, 170, 255)),
    "grey in 4 bits with a transparent shade": (
        lambda: keyed(4, 0, 5, b"\x05\xaf" * 2),
        lambda: shades(0, 255, 170, 255),
    ),
    "RGB in 16 bits with a transparent colour": (
        lambda: keyed(16, 2, 0x1200, b"\0" * 6 + b"\x12\0" * 3 + b"\xaa\xaa" * 3 + b"\xff" * 6),
        lambda: shades(0, 255, 170, 255),
    ),
    "grey in 16 bits": (lambda: of_16_bits("PNG"), grey),
    "grey in 16 bits as TIFF": (lambda: of_16_bits("TIFF"), grey),
    "grey in 16 bits, high byte first": (lambda: of_16_bits("TIFF", "I;16B"), grey),
    "PGM in 16 bits": (lambda: pgm(65_535), grey),
    "PGM in 12 bits": (lambda: pgm(4095), grey),
    "1 bit": (lambda: saved(grey().point(lambda value: 255 * (value > 200)).convert("1"), "PNG"), two_level),
    "CMYK": (lambda: saved(scene().convert("CMYK"), "JPEG", quality=95, subsampling=0), scene),
    "CMYK as TIFF": (lambda: saved(scene().convert("CMYK"), "TIFF"), scene),
    "LAB": (lambda: saved(Image.new("LAB", (48, 32), (255, 128, 128)), "TIFF"), blank),
    "an animated GIF": (lambda: several("GIF"), scene),
    "an animated WebP": (lambda: several("WEBP", lossless=True), scene),
    "an animated PNG": (lambda: several("PNG"), scene),
    "a TIFF of two pages": (lambda: several("TIFF"), scene),
    "two pictures of a phone in one": (lambda: several("MPO", quality=95, subsampling=0), scene),
    "a JPEG with bytes after its end": (lambda: saved(scene(), "JPEG", quality=95, subsampling=0) + b"\0" * 99, scene),
}


def ycbcr() -> bytes:
    return saved(scene().convert("YCbCr"), "TIFF")


if READS_YCBCR:
    PICTURES["YCbCr as TIFF"] = (ycbcr, scene)


def shows(picture: Image.Image, expected: Image.Image) -> bool:
    """Whether two pictures are equal but for what JPEG loses."""
    if picture.mode != "RGB" or picture.size != expected.size:
        return False
    one, other = (np.asarray(it.convert("RGB")).astype(int) for it in (picture, expected))
    return bool(np.abs(one - other).max() <= 24)


ODD_PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {  # skipped, and why
    "floating point": (lambda: saved(Image.new("F", (40, 30), 0.5), "TIFF"), "holds floating-point values"),
    "32 bits": (lambda: saved(Image.new("I", (40, 30), 70_000), "TIFF"), "holds signed or 32-bit values"),
    "16 bits in which 0 is white": (lambda: with_tag(of_16_bits("TIFF"), 262, 0), "holds inverted 16-bit values"),
    "12 bits": (lambda: with_tag(of_16_bits("TIFF"), 258, 12), "holds 12-bit values"),
    "PFM": (lambda: b"Pf 40 30 -1.0\n" + b"\0" * 4800, "holds floating-point values"),
    "one row": (lambda: saved(Image.new("RGB", (100_000, 1)), "PNG"), "is too narrow: 100000 x 1 pixels"),
    "a palette without colours": (
        lambda: saved(Image.new("L", (40, 30)), "PNG").replace(b"\x08\0\0\0\0", b"\x08\x03\0\0\0", 1),
        "is not a whole picture",
    ),
}
if not READS_YCBCR:
    ODD_PICTURES["YCbCr as TIFF"] = (ycbcr, "is not a whole picture")


def wave(channels: int = 1) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A quarter of a second at 16 kHz; the channels differ, and their mean is the same for any number."""
    tone = 0.5 * np.sin(np.arange(4000) / 8)
    return np.stack([tone * (1 + (channel - (channels - 1) / 2) / channels) for channel in range(channels)], 1)


def written(subtype: str | None = None, channels: int = 1, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave(channels), 16_000, subtype, format=form)
    return file.getvalue()


def streamed(data: int, riff: int, content: bytes | None = None) -> bytes:
    """A WAV file whose lengths its writer did not know."""
    content = written("PCM_16") if content is None else content
    place = content.index(b"data")
    head = content[:4] + struct.pack("<I", riff) + content[8 : place + 4]
    return head + struct.pack("<I", data) + content[place + 8 :]


def sox(bits: int, channels: int = 1) -> bytes:
    """What ``sox a.flac -b BITS -t wav - speed 1 | cat`` writes: 0x7FFFF000 bytes of sound, in whole frames."""
    content = written({16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}[bits], channels, "WAVEX" if bits == 24 else "WAV")
    frame = bits // 8 * channels
    data = 0x7FFF_F000 // frame * frame
    return streamed(data, data + content.index(b"data"), content)


SOUNDS: dict[str, Callable[[], bytes]] = {  # a new kind joins by one line
    "a plain WAV": written,
    "SoX through a pipe": lambda: sox(16),
    "SoX through a pipe, six channels": lambda: sox(16, 6),
    "SoX through a pipe, 24 bits": lambda: sox(24),
    "SoX through a pipe, 24 bits, five channels": lambda: sox(24, 5),
    "SoX through a pipe, floats": lambda: sox(32),
    "FFmpeg through a pipe": lambda: streamed(2**32 - 1, 2**32 - 1),
    "a recorder that was stopped": lambda: streamed(0, 8),
    "arecord through a pipe": lambda: streamed(0x8000_0000, 0x8000_0024),
    "24 bits": lambda: written("PCM_24"),
    "32 bits": lambda: written("PCM_32"),
    "floats": lambda: written("FLOAT"),
    "doubles": lambda: written("DOUBLE"),
    "u-law": lambda: written("ULAW"),
    "A-law": lambda: written("ALAW"),
    "extensible": lambda: written("PCM_16", 4, "WAVEX"),
    "RF64": lambda: written("PCM_16", 2, "RF64"),
    "FLAC": lambda: written("PCM_24", 2, "FLAC"),
    "AIFF": lambda: written("PCM_16", 1, "AIFF"),
}


def values(*samples: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.resize(np.array(samples, np.float32), 4000), 16_000, "FLOAT", format="WAV")
    return file.getvalue()


def silence(frames: int, rate: int, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(frames), rate, "PCM_U8" if form == "WAV" else None, format=form)
    return file.getvalue()


def unknown_length() -> bytes:
    """A FLAC that says of no length, as ``sox a.wav -t flac - | cat`` writes it."""
    content = bytearray(written("PCM_16", 1, "FLAC"))
    content[21] &= 0xF0  # STREAMINFO's 36 bits of the number of samples
    content[22:26] = bytes(4)
    return bytes(content)


ODD_SOUNDS: dict[str, tuple[Callable[[], bytes], str]] = {  # skipped, and why
    "NaN": (lambda: values(0.1, float("nan")), "not finite"),
    "infinity": (lambda: values(0.1, float("inf")), "not finite"),
    "1e38": (lambda: values(1e38, -1e38), "beyond 1e+09"),
    "no frames": (lambda: silence(0, 16_000), "holds no sound"),
    "one frame": (lambda: silence(1, 16_000), "is too short: 1 frames at 16000 Hz"),
    "a rate of 1 MHz": (lambda: silence(100_000, 1_000_000), "has a sampling rate of 1000000 Hz"),
    "half a WAV": (lambda: written()[:4000], "is cut off"),
    "a length that is not known": (unknown_length, "does not say how long it is"),
}
