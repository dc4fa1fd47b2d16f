"""The concepts of the nano datasets of sounds: instruments, strokes and sounds of the world, by split.

An instrument is a family of programs. Train, val and test play the same ones, in melodies and scenes of their own; a
fourth split, for pre-training alone, has half of them and some of its own. So tuning has to teach an encoder new
voices, and the test asks whether it did. A sound of the world has one recording, which every split
plays at pitches of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from commit_lab.nano.sounds.soundfont import KIT, Note, Voice, render

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INSTRUMENT, STROKE, WORLD = "instrument", "stroke", "world"
SHIFTS = {"pretrain": (4.5, 6.5), "train": (1.5, 4.0), "val": (0.8, 1.2), "test": (0.0, 0.5)}
"""Semitones, up or down, by which a split shifts the one recording of a sound."""

HIGHEST = 96
"""Highest key that is played: above it some programs of different splits have a recording in common."""

LOUD, MIDDLE, QUIET = (0.12, 0.15), (0.05, 0.08), (0.012, 0.018)
"""Spans of loudness: root mean square of an event's loudest tenth of a second."""

_Key = tuple[int, int, int]  # bank, program, key
_FRAME = 1600
_PEAK = 0.97


@dataclass(frozen=True)
class Sound:
    """One way to play a concept: a voice, at a fixed key if it is no pitched instrument."""

    voice: Voice
    key: int | None = None


@dataclass(frozen=True)
class Concept:
    """A thing that sounds.

    Attributes:
        name: One word, the answer.
        phrase: With its article: "a piano".
        kind: instrument (phrases of several notes), stroke (one to four strokes) or world (one long sound).
        doing: What people say that it does, in the singular or plural that the phrase needs.
        pretrain: How the split of pre-training plays it, some of it as the others do.
        tuned: How train, val and test play it.
    """

    name: str
    phrase: str
    kind: str
    doing: tuple[str, ...]
    pretrain: tuple[Sound, ...] = field(compare=False)
    tuned: tuple[Sound, ...] = field(compare=False)

    @property
    def one_recording(self) -> bool:
        """Whether the splits share the recording, and differ by pitch alone."""
        return self.pretrain == self.tuned


def _instrument(name: str, phrase: str, pretrain: Sequence[int], tuned: Sequence[int]) -> Concept:
    first, later = (tuple(Sound(Voice(0, program)) for program in own) for own in (pretrain, tuned))
    doing = ("play", "are heard") if name == "strings" else ("plays", "is heard")
    return Concept(name, phrase, INSTRUMENT, doing, first, later)


def _strokes(name: str, doing: tuple[str, ...], pretrain: Sequence[_Key], tuned: Sequence[_Key]) -> Concept:
    first, later = (tuple(Sound(Voice(bank, program), key) for bank, program, key in own) for own in (pretrain, tuned))
    return Concept(name, f"a {name}", STROKE, doing, first, later)


def _single(name: str, phrase: str, kind: str, doing: tuple[str, ...], sound: Sound) -> Concept:
    return Concept(name, phrase, kind, doing, (sound,), (sound,))


CONCEPTS: tuple[Concept, ...] = (
    _instrument("piano", "a piano", pretrain=(0, 2, 3, 5), tuned=(0, 1, 3, 4, 5, 6)),
    _instrument("bell", "a bell", pretrain=(8, 10, 11, 13, 112), tuned=(8, 9, 10, 14, 112)),
    _instrument("organ", "an organ", pretrain=(16, 18, 20, 22), tuned=(16, 17, 18, 19, 20)),
    _instrument("guitar", "a guitar", pretrain=(24, 26, 28, 30, 31, 105), tuned=(24, 25, 26, 27, 31)),
    _instrument("strings", "the strings", pretrain=(40, 42, 45, 48, 50, 51), tuned=(40, 41, 42, 43, 48, 49)),
    _instrument("horn", "a horn", pretrain=(56, 58, 60, 62, 63), tuned=(56, 57, 58, 59, 60, 61)),
    _instrument("saxophone", "a saxophone", pretrain=(64, 66), tuned=(64, 65, 66, 67)),
    _instrument("flute", "a flute", pretrain=(72, 74, 77, 79), tuned=(72, 73, 74, 75, 77)),
    _strokes(
        "drum",
        ("beats", "is hit"),
        pretrain=(
            *((0, 47, 45), (0, 116, 60), (0, 118, 52)),
            *((KIT, 0, key) for key in (38, 40, 48, 61, 63, 64, 66)),
        ),
        tuned=(
            *((0, 116, 52), (0, 116, 60), (0, 118, 52)),
            *((KIT, 0, key) for key in (36, 38, 45, 48, 50, 63)),
        ),
    ),
    _strokes(
        "cymbal",
        ("crashes", "is hit"),
        pretrain=tuple((KIT, 0, key) for key in (42, 44, 46, 51, 53)),
        tuned=tuple((KIT, 0, key) for key in (46, 49, 51, 52, 53)),
    ),
    _strokes(
        "rattle",
        ("shakes", "is shaken"),
        pretrain=tuple((KIT, 0, key) for key in (54, 70, 74, 83, 85)),
        tuned=tuple((KIT, 0, key) for key in (54, 69, 70, 73)),
    ),
    _single("clap", "a clap", STROKE, ("sounds", "is heard"), Sound(Voice(KIT, 0), 39)),
    _single("whistle", "a whistle", STROKE, ("blows", "is blown"), Sound(Voice(KIT, 0), 72)),
    _single("gun", "a gun", STROKE, ("fires", "is shot"), Sound(Voice(0, 127), 60)),
    _single("bird", "a bird", WORLD, ("sings", "chirps"), Sound(Voice(0, 123), 60)),
    _single("telephone", "a telephone", WORLD, ("rings", "is ringing"), Sound(Voice(0, 124), 60)),
    _single("helicopter", "a helicopter", WORLD, ("flies", "passes by"), Sound(Voice(0, 125), 60)),
    _single("applause", "applause", WORLD, ("sounds", "is heard"), Sound(Voice(0, 126), 60)),
    _single("sea", "the sea", WORLD, ("roars", "is heard"), Sound(Voice(0, 122), 60)),
)
"""Every concept, in a fixed order."""

INSTRUMENTS: tuple[Concept, ...] = tuple(concept for concept in CONCEPTS if concept.kind == INSTRUMENT)


class Player:
    """Plays concepts with the sounds of one split; all chance comes from one generator."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng, self.split = rng, split

    def sound(self, concept: Concept) -> tuple[Sound, float]:
        """Return a sound of the concept, and the number of semitones by which it is shifted."""
        shift = self.rng.choice((-1, 1)) * self.rng.uniform(*SHIFTS[self.split]) if concept.one_recording else 0.0
        return self.rng.choice(concept.pretrain if self.split == "pretrain" else concept.tuned), shift

    def event(self, concept: Concept, seconds: float) -> NDArray[np.float32]:
        """Play a concept as in a scene, at a middle loudness: float32 (round(seconds x 16000),)."""
        sound, shift = self.sound(concept)
        if concept.kind == WORLD:
            notes = [Note(sound.voice, 0.0, seconds - 0.1, sound.key or 60, 100, shift)]
        else:
            count = self.rng.randint(2, 4) if concept.kind == INSTRUMENT else self.rng.randint(1, 3)
            base = self.rng.randint(52, 72)
            keys = [sound.key or base + self.rng.choice((0, 2, 3, 4, 5, 7)) for _ in range(count)]
            gap = (seconds - 0.1) / count
            velocity = self.rng.randint(80, 110)
            notes = [Note(sound.voice, turn * gap, gap, key, velocity, shift) for turn, key in enumerate(keys)]
        return levelled(render(notes, seconds), self.rng.uniform(*MIDDLE))


def levelled(samples: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """Scale samples to a loudness (see :data:`LOUD`).

    Args:
        samples: float32 (T,), not silent.
        level: Root mean square of the loudest tenth of a second.
    """
    import numpy as np

    padded = np.pad(samples, (0, -len(samples) % _FRAME)).reshape(-1, _FRAME)
    return samples * np.float32(level / np.sqrt((padded**2).mean(axis=1).max()))


def mixed(events: Sequence[tuple[float, NDArray[np.float32]]], seconds: float) -> NDArray[np.float32]:
    """Add events at their start times; scaled down only where it would clip.

    Args:
        events: Start in seconds, and float32 (T,).
        seconds: Length of the result.

    Returns:
        float32 (round(seconds x 16000),), within -1 and 1.
    """
    import numpy as np

    from commit_lab.nano.sounds.soundfont import RATE

    mix = np.zeros(round(seconds * RATE), np.float32)
    for start, samples in events:
        begin = round(start * RATE)
        end = min(len(mix), begin + len(samples))
        mix[begin:end] += samples[: end - begin]
    return np.asarray(mix * np.float32(min(1.0, _PEAK / max(1e-9, float(np.abs(mix).max())))))
