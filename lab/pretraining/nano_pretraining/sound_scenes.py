"""Sounds for pre-training: a scene says what sounds when, the mixer adds clips that were rendered once.

Only the sounds of the pre-training split are played (see :mod:`commit_lab.nano.sounds.sound_concepts`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from commit_lab.nano.sounds.sound_concepts import CONCEPTS, INSTRUMENTS, Player, levelled, mixed
from commit_lab.nano.sounds.soundfont import Note, render

SECONDS = 3.0
LONGEST_NOTES = 5
CLIPS, PHRASES = 120, 480  # per concept; per instrument
LEVELS = {"loud": (0.10, 0.17), "quiet": (0.010, 0.020), "": (0.04, 0.09)}
_KEYS = {"high": (72, 86), "low": (42, 56)}  # of the middle of the melody
_GAPS = {"fast": (0.16, 0.24), "slow": (0.38, 0.52)}  # seconds from note to note
_MARGIN = 0.02

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Phrase:
    """A melody of one instrument: pitch (high, low), pace (fast, slow), direction (up, down), its notes in time."""

    pitch: str
    pace: str
    direction: str
    notes: tuple[tuple[float, int], ...]  # start in seconds, key


@dataclass(frozen=True)
class Event:
    """A sound of a scene: its concept, its clip's number, when it sounds (seconds), and how loud it is."""

    name: str
    clip: int
    start: float
    seconds: float
    level: str = ""


@dataclass(frozen=True)
class Scene:
    """Events in a layout: row (two or three), together (two) or phrase (one, with a melody)."""

    layout: str
    events: tuple[Event, ...]
    phrase: Phrase | None = None


class SoundBook:
    """Rendered clips: every concept for scenes, and phrases of every instrument.

    Args:
        seed: Of all chance.
        clips: Clips per concept; four times as many phrases per instrument.
    """

    def __init__(self, seed: int, clips: int | None = None) -> None:
        self.seed, self.count = seed, clips or CLIPS
        self.names = [concept.name for concept in CONCEPTS]
        self.instruments = [concept.name for concept in INSTRUMENTS]
        rng = random.Random(f"lengths:{seed}")
        self.lengths = {name: [_length(rng, turn) for turn in range(self.count)] for name in self.names}
        self.phrases = {name: [_melody(rng) for _ in range(self.count * PHRASES // CLIPS)] for name in self.instruments}

    @cached_property
    def events(self) -> dict[str, list[Samples]]:
        """Clips by concept, as long as :attr:`lengths` says."""
        player = Player(random.Random(f"events:{self.seed}"), "pretrain")
        return {
            concept.name: [player.event(concept, seconds) for seconds in self.lengths[concept.name]]
            for concept in CONCEPTS
        }

    @cached_property
    def melodies(self) -> dict[str, list[Samples]]:
        """Sounds of :attr:`phrases`."""
        rng = random.Random(f"phrases:{self.seed}")
        return {
            concept.name: [_play(rng, concept, phrase) for phrase in self.phrases[concept.name]]
            for concept in INSTRUMENTS
        }


def _length(rng: random.Random, turn: int) -> float:
    """Choose a length: most clips fit a place in a row, and every fourth lasts."""
    return rng.uniform(2.0, 2.9) if turn % 4 == 3 else rng.uniform(0.6, 0.95)


def _melody(rng: random.Random) -> Phrase:
    count, pitch, pace = rng.randint(1, LONGEST_NOTES), rng.choice(tuple(_KEYS)), rng.choice(tuple(_GAPS))
    direction, gap = rng.choice(("up", "down")), rng.uniform(*_GAPS[pace])
    keys = [0]
    for _ in range(count - 1):
        keys.append(keys[-1] + rng.randint(1, 5))
    middle = rng.randint(*_KEYS[pitch]) - keys[-1] // 2
    ordered = keys if direction == "up" else keys[::-1]
    return Phrase(pitch, pace, direction, tuple((turn * gap, middle + key) for turn, key in enumerate(ordered)))


def _play(rng: random.Random, concept: object, phrase: Phrase) -> Samples:
    sound, _ = Player(rng, "pretrain").sound(concept)  # type: ignore[arg-type]
    velocity, held = rng.randint(70, 120), _gap(phrase) * rng.uniform(0.8, 0.95)
    notes = [Note(sound.voice, start, held, key, velocity) for start, key in phrase.notes]
    return levelled(render(notes, phrase.notes[-1][0] + held + 0.4), 1.0)


def _gap(phrase: Phrase) -> float:
    """Return the seconds from note to note."""
    if len(phrase.notes) == 1:
        return sum(_GAPS[phrase.pace]) / 2
    return phrase.notes[1][0] - phrase.notes[0][0]


def draw_scene(rng: random.Random, book: SoundBook, layouts: tuple[str, ...]) -> Scene:
    """Draw a scene of a random layout."""
    layout = rng.choice(layouts)
    if layout == "phrase":
        return _draw_phrase(rng, book)
    if layout == "together":
        names = rng.sample(book.names, 2)
        return Scene(layout, tuple(_event(rng, book, name, rng.uniform(0, 0.1), SECONDS) for name in names))
    names = rng.sample(book.names, rng.randint(2, 3))
    slot = SECONDS / len(names)
    return Scene(
        layout,
        tuple(_event(rng, book, name, turn * slot + rng.uniform(0, 0.06), slot) for turn, name in enumerate(names)),
    )


def _event(rng: random.Random, book: SoundBook, name: str, start: float, room: float) -> Event:
    fitting = [clip for clip, length in enumerate(book.lengths[name]) if (length > 1.5) == (room > 1.5)]
    clip = rng.choice(fitting or range(book.count))
    return Event(name, clip, start, min(book.lengths[name][clip], room))


def _draw_phrase(rng: random.Random, book: SoundBook) -> Scene:
    name = rng.choice(book.instruments)
    clip = rng.randrange(len(book.phrases[name]))
    phrase = book.phrases[name][clip]
    lasting = phrase.notes[-1][0] + _gap(phrase)
    start = rng.uniform(0.02, max(0.05, min(0.6, SECONDS - lasting)))
    return Scene("phrase", (Event(name, clip, start, lasting, rng.choice(("loud", "quiet"))),), phrase)


def mix(scenes: list[Scene], book: SoundBook, rng: random.Random) -> Samples:
    """Mix the sound of a batch of scenes: float32, (batch, SECONDS x 16000)."""
    rows = []
    for scene in scenes:
        shelf = book.melodies if scene.phrase else book.events
        parts = [(event.start, levelled(shelf[event.name][event.clip], _level(rng, event))) for event in scene.events]
        rows.append(mixed(parts, SECONDS))
    return np.stack(rows)


def _level(rng: random.Random, event: Event) -> float:
    return rng.uniform(*LEVELS[event.level])


def windows_of(start: float, seconds: float, window: float) -> range:
    """Return the windows that a sound fills for the better part (at least one)."""
    first = round((start + _MARGIN) / window)
    return range(first, max(first + 1, round((start + seconds) / window)))
