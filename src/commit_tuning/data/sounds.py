"""Reading of untrusted sounds, decoded to one channel at one rate.

libsndfile decodes (WAV, FLAC, Ogg, MP3; package soundfile), the SoX resampler resamples (package soxr).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
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

MIN_SECONDS = 0.025
"""Shortest sound that is decoded: one window of a spectrum."""

_MAX_FRAMES = MAX_SECONDS * 48_000  # whatever rate a file says it has, no more memory than this
_BLOCK = 2**17  # values, of all channels
_LOUDEST = 1e9  # what floats hold beyond it is no sound, and may overflow
_RATES = range(1000, 768_001)  # Hz
_TAIL = 2048  # frames at the end that must be there
_CUT_WAV = re.compile(r"^data\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # libsndfile's words for a header that lies
_STREAMED = (range(1), range(0x7FFF_E000, 0x8000_0001), range(0xFFFF_E000, 2**32))
"""Lengths that programs write that do not know it yet: none, SoX's 0x7FFFF000 in whole frames, all bits set."""
_NO_FORMAT = 1  # libsndfile's code for bytes that are of no format it knows
_UNKNOWN = 2**63 - 1  # frames, for libsndfile; of a FLAC that went through a pipe


def check_sound(source: Source, max_seconds: float | None = None) -> None:
    """Check a sound as far as that is possible without decoding all of it.

    The header must be true to the file's size, or say that the length was not known; and the end must decode. What
    could hold NaN (WAV of floats) is decoded; so is MP3, as far as it will be asked for: its
    frames lean on those before, and libmpg123 complains on stderr when it is sent to the end.

    Args:
        source: The file, or its content.
        max_seconds: How much of it will be asked for; None for all.

    Raises:
        FaultError: The file is missing, empty, cut off, too short, too long, no sound, or not finite.
        UserError: soundfile or soxr is not installed.
    """
    with _opened(source) as file:
        wanted = _wanted(file, source, max_seconds)
        if file.format == "MP3" or file.subtype in {"FLOAT", "DOUBLE"} or not _tail_decodes(file):
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

    with _opened(source) as file:
        wanted, native = _wanted(file, source, max_seconds), file.samplerate
        samples = np.concatenate(list(_mono_blocks(file, source, wanted)))
    if native != rate:
        samples = sound_libraries()[1].resample(samples, native, rate)
    return Audio(samples, rate)


def _wanted(file: Any, source: Source, max_seconds: float | None) -> int:
    """Return how many frames to decode."""
    name, rate = shown(source), file.samplerate
    if file.frames <= 0:
        raise FaultError(f"{name} holds no sound")
    if file.frames == _UNKNOWN:
        raise FaultError(f"{name} does not say how long it is: write it to a file, not through a pipe")
    if rate not in _RATES:
        raise FaultError(f"{name} has a sampling rate of {rate} Hz")
    cut = _CUT_WAV.search(file.extra_info)
    if cut and int(cut[1]) > int(cut[2]) and not any(int(cut[1]) in lengths for lengths in _STREAMED):
        raise FaultError(f"{name} is cut off: {cut[2]} of {cut[1]} bytes")
    asked = file.frames if max_seconds is None else min(file.frames, round(max_seconds * rate))
    if asked < MIN_SECONDS * rate:
        raise FaultError(f"{name} is too short: {asked} frames at {rate} Hz")
    if asked > min(MAX_SECONDS * rate, _MAX_FRAMES):
        raise FaultError(f"{name} is too long: more than {MAX_SECONDS} s at 48 kHz; set max_seconds")
    return int(asked)


def _tail_decodes(file: Any) -> bool:
    """Tell whether the end decodes; the file is then at its start."""
    tail = min(file.frames, _TAIL)
    file.seek(file.frames - tail)
    decodes = len(file.read(tail, dtype="float32")) == tail
    file.seek(0)
    return bool(decodes)


def _mono_blocks(file: Any, source: Source, wanted: int) -> Iterator[NDArray[np.float32]]:
    """Yield the first frames as the mean of the channels; a compressed file may be a little too short."""
    import numpy as np

    name, left, size = shown(source), wanted, max(1, _BLOCK // file.channels)
    while left and len(block := file.read(min(left, size), dtype="float32", always_2d=True)):
        if not (np.abs(block) < _LOUDEST).all():
            raise FaultError(f"{name} holds values that are not finite or beyond {_LOUDEST:g}")
        left -= len(block)
        yield block.mean(axis=1)
    if left > 0.1 * wanted:
        raise FaultError(f"{name} is cut off: {wanted - left} of {wanted} frames")


def sound_libraries() -> tuple[Any, Any]:
    """Return the modules soundfile and soxr; UserError if one is not installed."""
    try:
        return import_module("soundfile"), import_module("soxr")
    except ImportError as error:
        raise UserError(f"sounds need {error.name}: pip install 'commit-tuning[audio]'") from None


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """Open a sound; every failure of libsndfile inside becomes a fault of this file."""
    soundfile, _ = sound_libraries()
    try:
        with soundfile.SoundFile(content_of(source)) as file:
            yield file
    except FaultError:
        raise
    except Exception as error:
        unknown = getattr(error, "code", None) == _NO_FORMAT
        raise not_whole(source, f"sound{' of WAV, FLAC, Ogg or MP3' if unknown else ''}", error) from error
