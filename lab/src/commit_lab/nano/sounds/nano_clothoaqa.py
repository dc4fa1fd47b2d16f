"""Nano-Clotho-AQA: questions about sounds in the layout of Clotho-AQA, played with a soundfont.

Layout, as in the official release (Lipping et al. 2022)::

    root/audio_files/<file_name>               3 s, 16 kHz, one channel
    root/clotho_aqa_{train,val,test}.csv       file_name,QuestionText,answer,confidence: a row per annotator
    root/MANIFEST.json                         counts, seed, versions and checksum; written last

Half of the clips are scenes of two or three sounds, one after the other; half are phrases of one to five notes. Both
ask four questions. Answers are drawn first, evenly, and the sound is made to fit, so that the words of a question say
nothing about its answer.
"""

from __future__ import annotations

import csv
import random
from functools import partial
from pathlib import Path

from commit_lab.nano.building import cache_dir
from commit_lab.nano.sounds.nano_sounds import FORMAT, Clip, Entry, Samples, build_sounds, vocabulary
from commit_lab.nano.sounds.sound_concepts import CONCEPTS, INSTRUMENTS, LOUD, QUIET, Concept, Player, levelled, mixed
from commit_lab.nano.sounds.soundfont import Note, render

SECONDS = 3.0
QUESTIONS = 4
"""Questions per clip."""

ANNOTATORS = 3
NUMBERS = ("one", "two", "three", "four", "five")
YES_NO = ("yes", "no")
_NAMES = tuple(concept.name for concept in CONCEPTS)
_SLIPS = 0.2  # of the questions have one annotator who is wrong
_COLUMNS = ("file_name", "QuestionText", "answer", "confidence")
_FORMS: dict[str, tuple[str, ...]] = {
    "hear": ("Can you hear {}?", "Do you hear {}?"),
    "before": ("Do you hear {} before {}?", "Can you hear {} before {}?"),
    "first": ("Which sound comes first?", "What is the first sound?"),
    "last": ("Which sound comes last?", "What is the last sound?"),
    "after": ("What comes after {}?", "Which sound comes after {}?"),
    "sounds": ("How many different sounds are there?", "How many sounds do you hear?"),
    "instrument": ("Which instrument is playing?", "What instrument do you hear?"),
    "notes": ("How many notes are played?", "How many notes do you hear?"),
    "rise": ("Does the melody rise?", "Do the notes go up?"),
    "pitch": ("Are the notes high or low?", "Is the sound high or low?"),
    "level": ("Is the sound loud or quiet?", "Are the notes loud or quiet?"),
    "speed": ("Are the notes fast or slow?", "Is the melody fast or slow?"),
}
_PAIRS = {"pitch": ("high", "low"), "level": ("loud", "quiet"), "speed": ("fast", "slow")}
_KEYS = {"high": (76, 82), "low": (46, 52)}  # of the middle of the melody
_GAPS = {"fast": (0.17, 0.22), "slow": (0.42, 0.5)}  # seconds from note to note
_Asked = tuple[str, str, tuple[str, ...]]  # question, right answer, answers that a wrong annotator may give


def build_nano_clothoaqa(
    root: str | Path, *, train: int = 2400, val: int = 400, test: int = 1200, seed: int = 0, workers: int = 1
) -> Path:
    """Write Nano-Clotho-AQA, unless the same dataset lies there complete.

    The same arguments give the same files whatever the number of workers; a folder that exists is complete.

    Args:
        root: Folder to create.
        train: Number of training questions, four to a clip.
        val: Number of validation questions, on other clips of the same voices.
        test: Number of test questions, on yet others.
        seed: Seed of all chance.
        workers: Number of processes. With more than one, call it under ``if __name__ == "__main__"``.

    Returns:
        ``root`` as a path.

    Raises:
        UserError: A count is not positive, ``root`` holds something else, or a package is not installed.
    """
    counts = {"train": train, "val": val, "test": test}
    clips = {split: -(-count // QUESTIONS) for split, count in counts.items()}
    index = partial(_write_index, counts)
    return build_sounds(root, "Nano-Clotho-AQA", counts, make_clip, index, seed=seed, workers=workers, clips=clips)


def default_nano_clothoaqa_root(*, workers: int = 1) -> Path:
    """Return the default Nano-Clotho-AQA's folder (2400 + 400 + 1200 questions, seed 0); the first use builds it."""
    return build_nano_clothoaqa(cache_dir() / f"nano-clothoaqa-v{FORMAT}", workers=workers)


def nano_clothoaqa_vocabulary() -> tuple[str, ...]:
    """Return all words of questions and answers, in lower case, sorted."""
    forms = [text.replace("{}", " ") for family in _FORMS.values() for text in family]
    pairs = [word for pair in _PAIRS.values() for word in pair]
    return vocabulary(*forms, *_NAMES, *(concept.phrase for concept in CONCEPTS), *NUMBERS, *YES_NO, *pairs)


def make_clip(seed: int, split: str, number: int) -> Clip:
    """Draw clip ``number`` of a split with its questions: scenes have even numbers, phrases odd ones.

    Args:
        seed: Seed of the dataset.
        split: train, val or test; it decides the voices.
        number: 0-based number within the split.
    """
    rng = random.Random(f"clotho:{seed}:{split}:{number}")
    make = (_scene, _phrase)[number % 2]
    samples, asked = make(rng, split, number // 2)
    file = f"{split}_{number:05d}.wav"
    entries = [
        {"split": split, "row": (file, question, answer, confidence)}
        for question, right, others in asked
        for answer, confidence in _votes(rng, right, others)
    ]
    return Clip(f"audio_files/{file}", samples, entries)


def _votes(rng: random.Random, right: str, others: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return three annotators' answers, each with the annotator's confidence; at most one is wrong."""
    votes = [(right, rng.choice(("yes", "yes", "yes", "maybe"))) for _ in range(ANNOTATORS)]
    if rng.random() < _SLIPS:
        wrong = rng.choice([other for other in others if other != right])
        votes[rng.randrange(ANNOTATORS)] = (wrong, rng.choice(("yes", "maybe", "no")))
    return votes


def _ask(rng: random.Random, form: str, right: str, others: tuple[str, ...], *words: str) -> _Asked:
    return rng.choice(_FORMS[form]).format(*words), right, others


def _hear(rng: random.Random, turn: int, heard: list[Concept], among: tuple[Concept, ...]) -> _Asked:
    """Ask for a concept that is there every other time, and else for one that is not."""
    right = YES_NO[turn % 2]
    asked = rng.choice([concept for concept in among if (concept in heard) == (right == "yes")])
    return _ask(rng, "hear", right, YES_NO, asked.phrase)


def _scene(rng: random.Random, split: str, turn: int) -> tuple[Samples, list[_Asked]]:
    """Make two or three sounds one after the other."""
    heard = rng.sample(CONCEPTS, rng.randint(2, 3))
    names, player, slot = [concept.name for concept in heard], Player(rng, split), SECONDS / len(heard)
    events = [(place * slot, player.event(concept, rng.uniform(0.75, 0.95))) for place, concept in enumerate(heard)]
    early, late = sorted(rng.sample(range(len(heard)), 2))
    right = rng.choice(YES_NO)
    order = (early, late) if right == "yes" else (late, early)
    end, at = rng.choice((("first", 0), ("last", -1)))
    follower = rng.randrange(1, len(heard))
    third = rng.choice(
        (
            _ask(rng, "sounds", NUMBERS[len(heard) - 1], NUMBERS[:4]),
            _ask(rng, "after", names[follower], _NAMES, heard[follower - 1].phrase),
        )
    )
    return mixed(events, SECONDS), [
        _hear(rng, turn, heard, CONCEPTS),
        _ask(rng, end, names[at], _NAMES),
        third,
        _ask(rng, "before", right, YES_NO, *(heard[place].phrase for place in order)),
    ]


def _phrase(rng: random.Random, split: str, turn: int) -> tuple[Samples, list[_Asked]]:
    """Make one instrument play one to five notes, up or down."""
    count = 1 + turn % len(NUMBERS)
    concept, rises = rng.choice(INSTRUMENTS), rng.choice(YES_NO)
    drawn = {form: rng.choice(pair) for form, pair in _PAIRS.items()}
    steps = [rng.randint(2, 4) for _ in range(count - 1)]
    keys = [rng.randint(*_KEYS[drawn["pitch"]]) - sum(steps) // 2]
    for step in steps:
        keys.append(keys[-1] + step)
    gap, start = rng.uniform(*_GAPS[drawn["speed"]]), rng.uniform(0.05, 0.3)
    sound, _ = Player(rng, split).sound(concept)
    velocity = rng.randint(80, 110)
    notes = [
        Note(sound.voice, start + place * gap, 0.9 * gap, key, velocity)
        for place, key in enumerate(keys if rises == "yes" else keys[::-1])
    ]
    samples = levelled(render(notes, SECONDS), rng.uniform(*(LOUD if drawn["level"] == "loud" else QUIET)))
    melodic = count >= 3
    form = rng.choice(tuple(_PAIRS) if melodic else ("pitch", "level"))
    third = _ask(rng, "rise", rises, YES_NO)
    if not melodic or rng.random() < 0.3:
        third = _hear(rng, rng.randrange(2), [concept], INSTRUMENTS)
    return mixed([(0.0, samples)], SECONDS), [
        _ask(rng, "instrument", concept.name, tuple(one.name for one in INSTRUMENTS)),
        _ask(rng, "notes", NUMBERS[count - 1], NUMBERS),
        third,
        _ask(rng, form, drawn[form], _PAIRS[form]),
    ]


def _write_index(counts: dict[str, int], root: Path, entries: list[Entry]) -> None:
    for split, count in counts.items():
        rows = [entry["row"] for entry in entries if entry["split"] == split]
        with (root / f"clotho_aqa_{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *rows[: count * ANNOTATORS]])
