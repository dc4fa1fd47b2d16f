"""Sounds of a soundfont: a small sampler for SoundFont 2 files, in numpy.

The recordings are those of TimGM6mb, a General MIDI soundfont that the package pretty_midi carries. A note plays the
recording of its key's and velocity's zone at the key's pitch, loops it while it lasts, and follows the zone's volume
envelope; what else a synthesizer does (filters, vibrato, reverb, panning) is left out. Written after the SoundFont
Technical Specification 2.04 (E-mu Systems 2006), sections 7 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from commit_lab.nano.building import package_folder
from commit_tuning.data.sounds import sound_libraries
from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

RATE = 16_000
"""Sampling rate of what is rendered, in Hz."""

KIT = 128
"""Bank of the percussion kits: there a key is a drum, not a pitch."""

_PLAY = 2 * RATE  # notes are mixed at twice the rate, then resampled once: the folding of high partials stays above
_LONGEST_RELEASE = 0.4  # seconds
_STEP = 32  # samples from point to point of an envelope
# generators of the specification, section 8.1.2
_START, _END, _LOOP_START, _LOOP_END = 0, 1, 2, 3
_START_COARSE, _END_COARSE, _LOOP_START_COARSE, _LOOP_END_COARSE = 4, 12, 45, 50
_DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE = 33, 34, 35, 36, 37, 38
_INSTRUMENT, _KEYS, _VELOCITIES, _ATTENUATION, _COARSE, _FINE, _SAMPLE = 41, 43, 44, 48, 51, 52, 53
_MODES, _SCALE, _ROOT = 54, 56, 58
_DEFAULTS = {_DELAY: -12000, _ATTACK: -12000, _HOLD: -12000, _DECAY: -12000, _RELEASE: -12000, _SCALE: 100}
_NOT_ADDED = {_KEYS, _VELOCITIES, _INSTRUMENT, _SAMPLE, _MODES, _ROOT}
_Zone = dict[int, int]


class Voice(NamedTuple):
    """A sound of the soundfont: bank (0, or :data:`KIT`) and program, from 0."""

    bank: int
    program: int


@dataclass(frozen=True)
class Note:
    """One note, or one stroke.

    Attributes:
        voice: What plays it.
        start: When, in seconds.
        seconds: How long the key is held.
        key: MIDI key; 60 is the middle C.
        velocity: MIDI velocity, 1 to 127.
        shift: Semitones by which the recording is played higher than the key says.
    """

    voice: Voice
    start: float
    seconds: float
    key: int
    velocity: int = 100
    shift: float = 0.0


def render(notes: Iterable[Note], seconds: float) -> NDArray[np.float32]:
    """Mix notes.

    Args:
        notes: What to play; what lies beyond the end is cut.
        seconds: Length of the result.

    Returns:
        float32 (round(seconds x 16000),), not normalized.

    Raises:
        UserError: pretty_midi or soxr is not installed.
    """
    import numpy as np

    length = round(seconds * RATE)
    mix = np.zeros(round(length * _PLAY / RATE))
    for note in notes:
        begin = round(note.start * _PLAY)
        sound = _play(replace(note, start=0.0))[: max(0, len(mix) - begin)]
        mix[begin : begin + len(sound)] += sound
    samples = sound_libraries()[1].resample(mix, _PLAY, RATE)[:length]
    return np.pad(samples, (0, length - len(samples))).astype(np.float32)


def recordings(voice: Voice, keys: Iterable[int]) -> frozenset[int]:
    """Return the numbers of the recordings that a voice plays over some keys."""
    return frozenset(zone[_SAMPLE] for key in keys for zone in _font().zones(voice, key, 100))


@lru_cache(maxsize=64)
def _play(note: Note) -> NDArray[np.float64]:
    """Play a note from its start; the cache serves melodies, which repeat notes."""
    import numpy as np

    font = _font()
    sounds = [font.play(zone, note) for zone in font.zones(note.voice, note.key, note.velocity)]
    mixed = np.zeros(max((len(sound) for sound in sounds), default=0))
    for sound in sounds:
        mixed[: len(sound)] += sound
    return mixed / max(1, len(sounds))


@lru_cache(maxsize=1)
def _font() -> _Font:
    path = package_folder("pretty_midi", "", "nano-audio", "whose soundfont plays the nano sounds") / "TimGM6mb.sf2"
    if not path.is_file():
        raise UserError(f"pretty_midi holds no soundfont {path}: install pretty_midi>=0.2.10")
    return _Font(path)


class _Font:
    """A SoundFont 2 file."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        chunks = dict(_chunks(path.read_bytes()))
        self.samples = np.frombuffer(chunks[b"smpl"], "<i2").astype(np.float32)
        bag = [("gen", "<u2"), ("mod", "<u2")]
        gen = [("kind", "<u2"), ("amount", "<i2")]
        head = [("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("rest", "V12")]
        sample = [("name", "S20"), *((name, "<u4") for name in ("start", "end", "loop", "loop_end", "rate"))]
        sample += [("key", "u1"), ("cents", "i1"), ("link", "<u2"), ("kind", "<u2")]
        self.headers = np.frombuffer(chunks[b"shdr"], np.dtype(sample))
        presets = np.frombuffer(chunks[b"phdr"], np.dtype(head))
        instruments = np.frombuffer(chunks[b"inst"], np.dtype([("name", "S20"), ("bag", "<u2")]))
        bags = {kind: np.frombuffer(chunks[kind + b"bag"], np.dtype(bag))["gen"] for kind in (b"p", b"i")}
        gens = {kind: np.frombuffer(chunks[kind + b"gen"], np.dtype(gen)).tolist() for kind in (b"p", b"i")}
        self.presets = {
            Voice(int(one["bank"]), int(one["program"])): _zones(gens[b"p"], bags[b"p"][one["bag"] : after["bag"] + 1])
            for one, after in pairwise(presets)
        }
        self.instruments = [
            _zones(gens[b"i"], bags[b"i"][one["bag"] : after["bag"] + 1]) for one, after in pairwise(instruments)
        ]

    def zones(self, voice: Voice, key: int, velocity: int) -> list[_Zone]:
        """Return the zones that sound."""
        return [
            _sum(inner, outer)
            for outer in self.presets[voice]
            if _INSTRUMENT in outer and _hears(outer, key, velocity)
            for inner in self.instruments[outer[_INSTRUMENT]]
            if _SAMPLE in inner and _hears(inner, key, velocity)
        ]

    def play(self, zone: _Zone, note: Note) -> NDArray[np.float64]:
        """Play the recording of a zone at the pitch of a note, under the zone's volume envelope."""
        import numpy as np

        header = self.headers[zone[_SAMPLE]]
        root = zone.get(_ROOT, -1) if zone.get(_ROOT, -1) >= 0 else int(header["key"])
        cents = (note.key - root) * zone.get(_SCALE, 100) + 100 * (note.shift + zone.get(_COARSE, 0))
        cents += zone.get(_FINE, 0) + int(header["cents"])
        step = 2 ** (cents / 1200) * float(header["rate"]) / _PLAY
        start, end, loop, loop_end = (
            int(header[name]) + zone.get(fine, 0) + 32768 * zone.get(coarse, 0)
            for name, fine, coarse in (
                ("start", _START, _START_COARSE),
                ("end", _END, _END_COARSE),
                ("loop", _LOOP_START, _LOOP_START_COARSE),
                ("loop_end", _LOOP_END, _LOOP_END_COARSE),
            )
        )
        release = min(_LONGEST_RELEASE, max(0.02, _seconds(zone, _RELEASE)))
        count = round((note.seconds + release) * _PLAY)
        recording = self.samples[start:end]
        if zone.get(_MODES, 0) & 1 and loop_end > loop:
            again = max(0, int(count * step) + 2 - (loop - start))
            recording = np.concatenate([self.samples[start:loop], np.resize(self.samples[loop:loop_end], again)])
        count = max(0, min(count, int((len(recording) - 1) / step)))
        sound = np.interp(np.arange(count) * step, np.arange(len(recording)), recording)
        loudness = (note.velocity / 127) ** 2 * 10 ** (-0.4 * zone.get(_ATTENUATION, 0) / 200)
        return np.asarray(sound * (loudness / 32768) * _envelope(zone, count, note.seconds, release))


def _envelope(zone: _Zone, count: int, held: float, release: float) -> NDArray[np.float64]:
    """Return the gain: linear attack, hold, then decay and release linear in dB, 100 dB in the given time (8.1.2)."""
    import numpy as np

    points = np.arange(0, count + _STEP, _STEP)  # between them straight lines
    time = points / _PLAY - _seconds(zone, _DELAY)
    attack, decay = _seconds(zone, _ATTACK), max(0.001, _seconds(zone, _DECAY))
    sustain = min(100.0, zone.get(_SUSTAIN, 0) / 10)
    decibels = np.clip((time - attack - _seconds(zone, _HOLD)) * 100 / decay, 0, sustain)
    decibels += np.clip((time - held) * 100 / release, 0, 100)
    gains = np.clip(time / attack, 0, 1) * 10 ** (-decibels / 20)
    return np.interp(np.arange(count), points, gains)


def _seconds(zone: _Zone, kind: int) -> float:
    """Convert a time of the envelope from timecents."""
    return float(2 ** (max(-12000, zone.get(kind, -12000)) / 1200))


def _sum(inner: _Zone, outer: _Zone) -> _Zone:
    """Add a preset's values to those of its instrument (section 9.4)."""
    added = {kind: inner.get(kind, _DEFAULTS.get(kind, 0)) + outer[kind] for kind in outer.keys() - _NOT_ADDED}
    return inner | added


def _hears(zone: _Zone, key: int, velocity: int) -> bool:
    spans = ((zone.get(_KEYS), key), (zone.get(_VELOCITIES), velocity))
    return all(span is None or (span & 0xFF) <= value <= (span >> 8 & 0xFF) for span, value in spans)


def _zones(generators: list[tuple[int, int]], bags: NDArray[np.uint16]) -> list[_Zone]:
    """Return the zones of a preset or an instrument; a first one without instrument or sample applies to all."""
    zones = [dict(generators[begin:end]) for begin, end in pairwise(bags)]
    common = zones.pop(0) if zones and not zones[0].keys() & {_INSTRUMENT, _SAMPLE} else {}
    return [{**common, **zone} for zone in zones]


def _chunks(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Yield the chunks of a RIFF file, with lists opened."""
    place = 0
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        body = data[place + 8 : place + 8 + size]
        if name in (b"RIFF", b"LIST"):
            yield from _chunks(body[4:])
        else:
            yield name, body
        place += 8 + size + size % 2
