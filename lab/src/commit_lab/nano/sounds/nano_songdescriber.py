"""Nano Song Describer: excerpts of tunes and chorales with captions, in the layout of the Song Describer Dataset.

Layout, as in the official release (Manco et al. 2023)::

    root/song_describer.csv                  a row per caption: caption_id,track_id,caption,...,path,duration
    root/audio/<nn>/<track_id>.2min.mp3      4 s, 16 kHz, one channel; <nn> are the id's last two digits
    root/MANIFEST.json                       counts, seed, versions and checksum; written last

A piece stands for an artist, so `songdescriber.split_of` decides its split: no piece, and no
version of a tune under the same title, is in two. Captions tell what the score and the rendering say: mode, metre,
kind, pace and instruments.
"""

from __future__ import annotations

import csv
import random
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import sqrt
from pathlib import Path

from commit_lab.nano.building import cache_dir
from commit_lab.nano.sounds.nano_sounds import FORMAT, Clip, Entry, Samples, build_sounds, vocabulary
from commit_lab.nano.sounds.scores import CHORALE, KINDS, METRES, MODES, Piece, Score, pieces, read_score
from commit_lab.nano.sounds.sound_concepts import CONCEPTS, HIGHEST, INSTRUMENTS, Player, levelled, mixed
from commit_lab.nano.sounds.soundfont import Note, render
from commit_tuning.data.readers.songdescriber import split_of

SECONDS = 4.0
CAPTIONS = 3
"""Captions per track."""

PACES: dict[str, tuple[float, float]] = {"slow": (1.5, 2.0), "moderate": (2.9, 3.5), "fast": (5.2, 6.4)}
"""Notes per second of the highest voice."""

_BEATS = {"two four": 2, "three four": 3, "four four": 4, "six eight": 2}  # to a bar
_LEVEL = (0.08, 0.12)
_DRUM = next(concept for concept in CONCEPTS if concept.name == "drum")
_FORMS = (
    "a {pace} {kind} in {metre} time for {players}",
    "a {pace} {kind} in a {mode} key for {players}",
    "{pace} {mode} music in {metre} for {players}",
    "{players} {play} a {pace} {kind} in {metre}",
    "{players} {play} a {pace} {mode} {kind}",
    "a {mode} {kind} in {metre} played by {players}",
)
_FIRST_ID = {"train": 10_000, "val": 20_000, "test": 30_000}


def build_nano_songdescriber(
    root: str | Path, *, train: int = 800, val: int = 120, test: int = 320, seed: int = 0, workers: int = 1
) -> Path:
    """Write Nano Song Describer, unless the same dataset lies there complete.

    The same arguments give the same files whatever the number of workers; a folder that exists is complete.

    Args:
        root: Folder to create.
        train: Number of training excerpts.
        val: Number of validation excerpts: other pieces, other programs of the same instruments.
        test: Number of test excerpts: yet others.
        seed: Seed of all chance.
        workers: Number of processes. With more than one, call it under ``if __name__ == "__main__"``.

    Returns:
        ``root`` as a path.

    Raises:
        UserError: A count is not positive, ``root`` holds something else, or a package is not installed.
    """
    counts = {"train": train, "val": val, "test": test}
    return build_sounds(
        root, "Nano Song Describer", counts, make_track, _write_index, seed=seed, workers=workers, packages=("music21",)
    )


def default_nano_songdescriber_root(*, workers: int = 1) -> Path:
    """Return the default Nano Song Describer's folder (800 + 120 + 320 excerpts, seed 0); the first use builds it."""
    return build_nano_songdescriber(cache_dir() / f"nano-songdescriber-v{FORMAT}", workers=workers)


def nano_songdescriber_vocabulary() -> tuple[str, ...]:
    """Return all words of captions, in lower case, sorted."""
    slots = {
        "pace": " ".join(PACES),
        "kind": " ".join(KINDS),
        "metre": " ".join(METRES.values()),
        "mode": " ".join(MODES),
    }
    players = " ".join((*(concept.phrase for concept in INSTRUMENTS), "and", _DRUM.phrase))
    return vocabulary(*(form.format(**slots, players=players, play="play plays") for form in _FORMS))


def make_track(seed: int, split: str, number: int) -> Clip:
    """Draw track ``number`` of a split with its captions.

    Args:
        seed: Seed of the dataset.
        split: train, val or test; it decides the pieces and the voices.
        number: 0-based number within the split.
    """
    rng = random.Random(f"songs:{seed}:{split}:{number}")
    piece = _pick(rng, split)
    pace = tuple(PACES)[number % len(PACES)]
    samples, players = _perform(rng, split, piece, pace)
    said = {"pace": pace, "kind": piece.kind, "mode": piece.mode, "metre": piece.metre}
    said |= {
        "players": " and ".join(players),
        "play": "play" if len(players) > 1 or "strings" in players[0] else "plays",
    }
    track = _FIRST_ID[split] + number
    path = f"{track % 100:02d}/{track}"
    entries = [
        {
            "caption_id": CAPTIONS * track + turn,
            "track_id": track,
            "caption": form.format(**said),
            "is_valid_subset": True,
            "familiarity": rng.randrange(3),
            "artist_id": piece.name,
            "album_id": piece.kind,
            "path": f"{path}.mp3",
            "duration": SECONDS,
        }
        for turn, form in enumerate(rng.sample(_FORMS, CAPTIONS))
    ]
    return Clip(f"audio/{path}.2min.mp3", samples, entries)


def _pick(rng: random.Random, split: str) -> Piece:
    """Choose a piece: modes are equally likely, and metres by the square root of how many pieces they have."""
    groups = _groups(split)[rng.choice(MODES)]
    return rng.choice(rng.choices(groups, [sqrt(len(group)) for group in groups])[0])


@lru_cache(maxsize=3)
def _groups(split: str) -> dict[str, list[list[Piece]]]:
    """Group the pieces of a split by mode, then by metre."""
    groups: dict[str, dict[str, list[Piece]]] = {mode: {} for mode in MODES}
    for piece in pieces():
        if split_of(piece.name) == split:
            groups[piece.mode].setdefault(piece.metre, []).append(piece)
    return {mode: list(metres.values()) for mode, metres in groups.items()}


def _perform(rng: random.Random, split: str, piece: Piece, pace: str) -> tuple[Samples, list[str]]:
    """Play an excerpt from the start of a bar; returns the sound and the players' names.

    A chorale has one player, or two for its upper and lower voices; a tune has one, two an octave apart, or one and a
    drum.
    """
    score, player = read_score(piece), Player(rng, split)
    first, second = rng.sample(INSTRUMENTS, 2)
    ensemble = rng.choice(("one", "two") if piece.kind == CHORALE else ("one", "two", "drum", "drum"))
    sounds = [player.sound(concept)[0].voice for concept in (first, second)]
    melody = score.voices[0]
    mean = sum(tone.length for tone in melody) / len(melody)
    unit = 1 / (rng.uniform(*PACES[pace]) * float(mean))  # seconds
    start, shift = _first_bar(rng, score, SECONDS / unit), rng.randint(-3, 3)
    parts = [(tones, sounds[ensemble == "two" and place >= 2], 0) for place, tones in enumerate(score.voices)]
    if ensemble == "two" and piece.kind != CHORALE:
        parts.append((melody, sounds[1], -12))
    notes = [
        Note(
            voice,
            float(tone.start - start) * unit,
            0.95 * float(tone.length) * unit,
            _key(tone.key + shift + octave),
            90,
        )
        for tones, voice, octave in parts
        for tone in tones
        if 0 <= (tone.start - start) * unit < SECONDS
    ]
    if ensemble == "drum":
        drum, _ = player.sound(_DRUM)
        beats = [(float(beat - start) * unit, velocity) for beat, velocity in _beats(score, _BEATS[piece.metre])]
        notes += [Note(drum.voice, at, 0.3, drum.key or 60, velocity) for at, velocity in beats if 0 <= at < SECONDS]
    samples = mixed([(0.0, levelled(render(notes, SECONDS), rng.uniform(*_LEVEL)))], SECONDS)
    others = {"one": [], "two": [second.phrase], "drum": [_DRUM.phrase]}[ensemble]
    return samples, [first.phrase, *others]


def _key(key: int) -> int:
    """Return a playable key: keys that are too high go down an octave."""
    return key - 12 if key > HIGHEST else key


def _beats(score: Score, count: int) -> list[tuple[Fraction, int]]:
    """Return the beats of the whole bars with their velocities, the first of each bar the strongest."""
    lengths = [after - bar for bar, after in pairwise(score.bars)]
    length = max(lengths, key=lengths.count, default=Fraction(0))
    bars = [bar for bar, own in zip(score.bars, lengths, strict=False) if own == length]
    return [(bar + turn * length / count, 60 if turn else 110) for bar in bars for turn in range(count)]


def _first_bar(rng: random.Random, score: Score, length: float) -> float:
    """Return where the excerpt begins: at a bar with enough music after it, or at the beginning."""
    end = score.voices[0][-1].start
    return float(rng.choice([bar for bar in score.bars if bar + length <= end] or score.bars[:1]))


def _write_index(root: Path, entries: list[Entry]) -> None:
    with (root / "song_describer.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)
