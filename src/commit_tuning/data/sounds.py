"""Sounds of a dataset that nobody has vouched for, decoded to one channel at one rate.

libsndfile decodes (WAV, FLAC, Ogg, MP3; package soundfile), the SoX resampler resamples (package soxr).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from commit_tuning.data.files import FaultError, Source, content_of, not_whole, shown
from commit_tuning.data.sample import Audio
from commit_tuning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SECONDS = 1800
"""Longest sound that is decoded."""

_MAX_FRAMES = MAX_SECONDS * 48_000  # whatever rate a file says it has, no more memory than this
_BLOCK = 2**16  # frames
_RATES = range(1000, 768_001)  # Hz
_TAIL = 2048  # frames at the end that must be there
_CUT_WAV = re.compile(r"^data\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # libsndfile's words for a header that lies
_STREAMED = (0, 2**32 - 1)  # lengths that a program writes which does not know the length yet


def check_sound(source: Source, max_seconds: float | None = None) -> None:
    """Check a sound as far as that is possible without decoding all of it.

    The header must be true to the file's size, and the end must decode. What could hold NaN (WAV of floats) is decoded;
    so is MP3, as far as it will be asked for: its frames lean on those before, and libmpg123 complains on stderr when
    it is sent to the end.

    Args:
        source: The file, or its content.
        max_seconds: How much of it will be asked for; None for all.

    Raises:
        FaultError: The file is missing, empty, cut off, too long, no sound, or not finite.
        UserError: soundfile or soxr is not installed.
    """
    with _Opened(source) as file:
        wanted = _wanted(file, source, max_seconds)
        if file.format == "MP3" or file.subtype in {"FLOAT", "DOUBLE"} or not _tail_decodes(file):
            file.seek(0)
            for _ in _mono_blocks(file, source, wanted):
                pass


def load_sound(source: Source, rate: int = 16_000, max_seconds: float | None = None) -> Audio:
    """Decode a sound: the mean of its channels, resampled.

    Args:
        source: The file, or its content.
        rate: The rate to resample to, in Hz.
        max_seconds: Only so much from its start; None for all.

    Returns:
        float32 (T,).

    Raises:
        FaultError: As :func:`check_sound`, anywhere in what is decoded.
        UserError: soundfile or soxr is not installed.
    """
    import numpy as np

    with _Opened(source) as file:
        wanted, native = _wanted(file, source, max_seconds), file.samplerate
        samples = np.concatenate(list(_mono_blocks(file, source, wanted)))
    if native != rate:
        samples = sound_libraries()[1].resample(samples, native, rate)
    return Audio(samples, rate)


def _wanted(file: Any, source: Source, max_seconds: float | None) -> int:
    """How many frames to decode."""
    if file.frames <= 0:
        raise FaultError(f"{shown(source)} holds no sound")
    if file.samplerate not in _RATES:
        raise FaultError(f"{shown(source)} has a sampling rate of {file.samplerate} Hz")
    cut = _CUT_WAV.search(file.extra_info)
    if cut and int(cut[1]) not in _STREAMED and int(cut[1]) > int(cut[2]):
        raise FaultError(f"{shown(source)} is cut off: {cut[2]} of {cut[1]} bytes")
    wanted = file.frames if max_seconds is None else min(file.frames, round(max_seconds * file.samplerate))
    if wanted > min(MAX_SECONDS * file.samplerate, _MAX_FRAMES):
        raise FaultError(f"{shown(source)} is too long: more than {MAX_SECONDS} s at 48 kHz; set max_seconds")
    return max(1, int(wanted))


def _tail_decodes(file: Any) -> bool:
    tail = min(file.frames, _TAIL)
    file.seek(file.frames - tail)
    return bool(len(file.read(tail, dtype="float32")) == tail)


def _mono_blocks(file: Any, source: Source, wanted: int) -> Iterator[NDArray[np.float32]]:
    """The first frames as the mean of the channels; a compressed file may be a little shorter than it says."""
    import numpy as np

    left = wanted
    while left and len(block := file.read(min(left, _BLOCK), dtype="float32", always_2d=True)):
        if not np.isfinite(block).all():
            raise FaultError(f"{shown(source)} holds values that are not finite")
        left -= len(block)
        yield block.mean(axis=1)
    if left > 0.1 * wanted:
        raise FaultError(f"{shown(source)} is cut off: {wanted - left} of {wanted} frames")


def sound_libraries() -> tuple[Any, Any]:
    """The modules soundfile and soxr; UserError if one is not installed."""
    try:
        return import_module("soundfile"), import_module("soxr")
    except ImportError as error:
        raise UserError(f"sounds need {error.name}: pip install 'commit-tuning[audio]'") from None


class _Opened:
    """An open sound; every failure of libsndfile inside becomes a fault of this file."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> Any:
        soundfile, _ = sound_libraries()
        try:
            self.file = soundfile.SoundFile(content_of(self.source))
        except Exception as error:
            raise not_whole(self.source, "sound", error) from error
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, Exception) and not isinstance(error, FaultError):
            raise not_whole(self.source, "sound", error) from error
