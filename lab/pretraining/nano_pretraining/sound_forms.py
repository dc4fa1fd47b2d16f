"""Texts for pre-training on sounds: short questions, none in a form that the nano datasets of sounds use."""

from __future__ import annotations

import random
from collections.abc import Callable

from nano_pretraining.forms import Pair
from nano_pretraining.sound_scenes import Scene, SoundBook

_ENDING = " answer :"
_COUNTS = ("one", "two", "three", "four", "five")
WORDS = (
    "answer : , list there name order next previous total tally note pitch level pace way one of is a both ? yes no "
    "first last high low loud quiet fast slow up down " + " ".join(_COUNTS)
)
"""Every word of the forms besides the concepts' names."""


def make_pairs(rng: random.Random, scene: Scene, book: SoundBook, number: int) -> list[Pair]:
    """Make different prompts about one scene, each with its answer.

    Args:
        rng: Source of chance.
        scene: What is heard.
        book: For names, also of what is absent.
        number: How many pairs at most.
    """
    heard = [event.name for event in scene.events]
    forms = rng.sample(_FORMS[scene.layout], number)
    made = [form(rng, scene, heard, book) for form in forms]
    return [(f"{prompt}{_ENDING}", answer) for prompt, answer in made]


_Form = Callable[[random.Random, Scene, list[str], SoundBook], Pair]


def _absent(rng: random.Random, heard: list[str], book: SoundBook, number: int) -> list[str]:
    among = book.instruments if len(heard) == 1 else book.names
    return rng.sample([name for name in among if name not in heard], number)


def _list(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    return "list :", " , ".join(heard)


def _both(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    return "both :", " , ".join(sorted(heard))


def _end(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    word, place = rng.choice((("first", 0), ("last", -1)))
    return f"{word} :", heard[place]


def _next(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    place = rng.randrange(1, len(heard))
    if rng.random() < 0.5:
        return f"next {heard[place - 1]} :", heard[place]
    return f"previous {heard[place]} :", heard[place - 1]


def _order(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    one, other = sorted(rng.sample(range(len(heard)), 2))
    asked = rng.sample((heard[one], heard[other]), 2)
    return f"order {' , '.join(asked)} :", f"{heard[one]} , {heard[other]}"


def _total(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    return "total :", _COUNTS[len(heard) - 1]


def _one_of(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    right = rng.choice(heard)
    options = [right, *_absent(rng, heard, book, rng.randint(1, 3))]
    rng.shuffle(options)
    return f"one of {' , '.join(options)} :", right


def _is_there(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    if rng.random() < 0.5:
        return f"is there a {rng.choice(heard)} ?", "yes"
    return f"is there a {_absent(rng, heard, book, 1)[0]} ?", "no"


def _name(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    return "name :", heard[0]


def _tally(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    return "tally :", _COUNTS[len(scene.phrase.notes) - 1] if scene.phrase else ""


def _quality(rng: random.Random, scene: Scene, heard: list[str], book: SoundBook) -> Pair:
    """Ask for pitch or level, and for three or more notes also for pace and direction."""
    phrase = scene.phrase
    if phrase is None:
        raise ValueError("only a phrase has qualities")
    qualities = {"pitch": phrase.pitch, "level": scene.events[0].level, "pace": phrase.pace, "way": phrase.direction}
    asked = rng.choice(tuple(qualities)[: 4 if len(phrase.notes) > 2 else 2])
    return f"{asked} :", qualities[asked]


_FORMS: dict[str, list[_Form]] = {
    "row": [_list, _end, _next, _order, _total, _one_of, _is_there],
    "together": [_both, _both, _total, _one_of, _is_there],
    "phrase": [_name, _tally, _tally, _quality, _quality, _quality, _one_of, _is_there],
}
