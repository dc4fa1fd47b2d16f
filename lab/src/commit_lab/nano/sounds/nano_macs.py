"""Nano-MACS: soundscapes of two or three sounds with five people's captions, in the layout of MACS.

Layout, as in the official release (Martin-Morato and Mesaros 2021)::

    root/audio/<scene>-<city>-<location>-<segment>-<device>.wav     3 s, 16 kHz, one channel
    root/MACS.yaml            files: [{filename, annotations: [{annotator_id, sentence, tags}]}]
    root/MANIFEST.json        counts, seed, versions and checksum; written last

A clip's city decides its split, as it does for MACS itself (`macs.CITIES`), and so the voices
that play in it.
"""

from __future__ import annotations

import random
from pathlib import Path

from commit_lab.nano.building import cache_dir
from commit_lab.nano.sounds.nano_sounds import FORMAT, Clip, Entry, build_sounds, vocabulary
from commit_lab.nano.sounds.sound_concepts import CONCEPTS, Concept, Player, mixed
from commit_tuning.data.readers.macs import CITIES

SECONDS = 3.0
ANNOTATORS = 5
_PEOPLE = 133
_SCENES = {"bird": "park", "sea": "park", "flute": "park", "helicopter": "airport", "telephone": "airport"}
_OTHER_WORDS = {  # what some people say instead
    "bell": "a chime",
    "strings": "a violin",
    "horn": "a trumpet",
    "drum": "drums",
    "clap": "hands",
    "gun": "a shot",
    "bird": "birds",
    "telephone": "a phone",
    "applause": "people clapping",
    "sea": "waves",
}
_FORMS: dict[str, tuple[str, ...]] = {  # {0} is a thing, {a0} what it does
    "two in a row": (
        "{a0} and then {a1}",
        "{a0} followed by {1}",
        "first {0} and then {1}",
        "{0} before {1}",
        "{1} after {0}",
        "{0} and later {1}",
    ),
    "two at once": (
        "{a0} while {a1}",
        "{0} and {1} at the same time",
        "{0} together with {1}",
        "{0} mixed with {1}",
        "{a0} with {1} in the background",
        "a mix of {0} and {1}",
    ),
    "three in a row": (
        "{0} then {1} and then {2}",
        "first {0} then {1} and last {2}",
        "{0} followed by {1} and {2}",
        "{a0} then {1} and {2}",
        "{0} and later {1} and {2}",
        "{0} and {1} before {2}",
    ),
}


def build_nano_macs(
    root: str | Path, *, train: int = 1000, val: int = 150, test: int = 400, seed: int = 0, workers: int = 1
) -> Path:
    """Write Nano-MACS, unless the same dataset lies there complete.

    The same arguments give the same files whatever the number of workers; a folder that exists is complete.

    Args:
        root: Folder to create.
        train: Number of training clips.
        val: Number of validation clips, with other scenes of the same voices.
        test: Number of test clips, with yet others.
        seed: Seed of all chance.
        workers: Number of processes. With more than one, call it under ``if __name__ == "__main__"``.

    Returns:
        ``root`` as a path.

    Raises:
        UserError: A count is not positive, ``root`` holds something else, or a package is not installed.
    """
    counts = {"train": train, "val": val, "test": test}
    return build_sounds(root, "Nano-MACS", counts, make_clip, _write_index, seed=seed, workers=workers)


def default_nano_macs_root(*, workers: int = 1) -> Path:
    """Return the folder of the default Nano-MACS (1000 + 150 + 400 clips, seed 0); the first use builds it."""
    return build_nano_macs(cache_dir() / f"nano-macs-v{FORMAT}", workers=workers)


def nano_macs_vocabulary() -> tuple[str, ...]:
    """Return all words of captions, in lower case, sorted."""
    marks = str.maketrans(dict.fromkeys("{}0123", " "))
    forms = [text.replace("{a", "{").translate(marks) for family in _FORMS.values() for text in family]
    said = [" ".join((concept.phrase, *concept.doing)) for concept in CONCEPTS]
    return vocabulary(*forms, *said, *_OTHER_WORDS.values())


def make_clip(seed: int, split: str, number: int) -> Clip:
    """Draw clip ``number`` of a split with its captions; the kinds of soundscape alternate with the number.

    Args:
        seed: Seed of the dataset.
        split: train, val or test; it decides the voices and the cities.
        number: 0-based number within the split.
    """
    rng = random.Random(f"macs:{seed}:{split}:{number}")
    form = tuple(_FORMS)[number % len(_FORMS)]
    heard = rng.sample(CONCEPTS, 3 if form.startswith("three") else 2)
    player = Player(rng, split)
    if form == "two at once":
        events = [(0.0, player.event(concept, rng.uniform(2.4, 2.9))) for concept in heard]
    else:
        slot = SECONDS / len(heard)
        events = [(place * slot, player.event(concept, rng.uniform(0.75, 0.95))) for place, concept in enumerate(heard)]
    scene = next((_SCENES[concept.name] for concept in heard if concept.name in _SCENES), "public_square")
    file = f"{scene}-{rng.choice(CITIES[split])}-{number}-0-a.wav"
    entry = {"filename": file, "annotations": _annotations(rng, form, heard)}
    return Clip(f"audio/{file}", mixed(events, SECONDS), [entry])


def _annotations(rng: random.Random, form: str, heard: list[Concept]) -> list[Entry]:
    """Return the captions of five people, each in a wording of their own."""
    people = rng.sample(range(1, _PEOPLE + 1), ANNOTATORS)
    return [
        {"annotator_id": person, "sentence": _sentence(rng, words, heard), "tags": [concept.name for concept in heard]}
        for person, words in zip(people, rng.sample(_FORMS[form], ANNOTATORS), strict=True)
    ]


def _sentence(rng: random.Random, words: str, heard: list[Concept]) -> str:
    things = [_thing(rng, concept) for concept in heard]
    acts = {f"a{place}": f"{concept.phrase} {rng.choice(concept.doing)}" for place, concept in enumerate(heard)}
    return words.format(*things, **acts)


def _thing(rng: random.Random, concept: Concept) -> str:
    return rng.choice((concept.phrase, concept.phrase, _OTHER_WORDS.get(concept.name, concept.phrase)))


def _write_index(root: Path, entries: list[Entry]) -> None:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump({"files": entries}, Dumper=dumper, sort_keys=False, allow_unicode=True)
    (root / "MACS.yaml").write_text(text, encoding="utf-8")
