"""The questions of Nano-A-OKVQA: things to recognise, and something to know about them.

A question is a pure function of (seed, split, number). Four forms alternate with the number:

- ``single``: one thing; what does a relation say of it?
- ``value``: two things; what does a relation say of the one in a place? The other's value is among the choices.
- ``which``: three things, of which one has a value. Some choices have the value and are not in the picture, others are
  in the picture and do not have it. So neither the text nor the picture alone suffices.
- ``compare``: two things; which has the value: left, right, both or none?

Values, and within ``compare`` the four outcomes, are counted through, so that a question's words say as little as
possible about its answer: a guess from them is right in 1 of 4, and for ``which`` in 1 of 2 or 3.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from commit_lab.nano.pictures.facts import ALSO_SAID, FACTS, HELD_OUT, PHRASES, VALUES, known_concepts, sentence
from commit_lab.nano.pictures.painter import PICTURE_PX, Painter
from commit_lab.nano.sounds.annotators import ten_answers

if TYPE_CHECKING:
    from PIL import Image

FORMS = ("single", "value", "which", "compare")
CHOICES = 4
OUTCOMES = ("left", "right", "both", "none")
_SLIPS: dict[str, tuple[str, ...]] = {
    "left": ("left one", "the left"),
    "right": ("right one", "the right"),
    "both": ("both of them", "left and right"),
    "none": ("neither", "no"),
}
_HALF = PICTURE_PX // 2
_CELLS: dict[str, tuple[int, int, int, int]] = {
    "on the left": (0, 0, _HALF, PICTURE_PX),
    "on the right": (_HALF, 0, _HALF, PICTURE_PX),
    "at the top": (0, 0, PICTURE_PX, _HALF),
    "at the bottom": (0, _HALF, PICTURE_PX, _HALF),
}
_WHOLE = (0, 0, PICTURE_PX, PICTURE_PX)
_FACING = {place: tuple(_CELLS)[index ^ 1] for index, place in enumerate(_CELLS)}
_TAUGHT = ("pretrain", "train")  # splits that never ask for what is held out
_QUARTERS = tuple((x, y, _HALF, _HALF) for x in (0, _HALF) for y in (0, _HALF))


@dataclass(frozen=True)
class FactQuestion:
    """One question before it is written.

    Attributes:
        label: One of :data:`FORMS`; with `` held out`` if train never asks for this concept's value of this relation.
        question: The text.
        choices: Four.
        right: Index of the right one.
        answers: Ten people's, without choices.
        hard: Whether it is hard to answer without choices, as the official ``difficult_direct_answer`` says.
        rationales: Three reasons.
        picture: RGB, 64 x 64.
    """

    label: str
    question: str
    choices: tuple[str, ...]
    right: int
    answers: tuple[str, ...]
    hard: bool
    rationales: tuple[str, ...]
    picture: Image.Image


def make_fact_question(seed: int, split: str, number: int) -> FactQuestion:
    """Draw question ``number`` of a split.

    Args:
        seed: Seed of the dataset.
        split: train, val, test or pretrain; it decides the icon families and what is held out.
        number: 0-based number within the split.
    """
    asker = _Asker(random.Random(f"{seed}:fact:{split}:{number}"), split, number)
    return _MAKERS[asker.label](asker, *VALUES[asker.turn % len(VALUES)])


def nano_aokvqa_vocabulary() -> tuple[str, ...]:
    """Return all words of questions, choices and right answers, in lower case, sorted, without minority answers."""
    texts = [phrase.replace("{}", " ").replace("?", " ? ") for pair in PHRASES.values() for phrase in pair]
    values = [value for _, value in VALUES]
    words = " ".join(
        [*texts, "which of these object in the picture", *_CELLS, *OUTCOMES, *values, *known_concepts()]
    ).lower()
    return tuple(sorted(set(words.split())))


class _Asker(Painter):
    """Paints the things of one question and puts its words together."""

    def __init__(self, rng: random.Random, split: str, number: int) -> None:
        super().__init__(rng, split)
        self.split, self.label, self.turn = split, FORMS[number % len(FORMS)], number // len(FORMS)
        self._picture = self.canvas()

    def choose(self, relation: str, value: str) -> str:
        """Choose a thing to ask the value of; a held-out fact changes the label."""
        things = FACTS[relation][value]
        taught = [thing for thing in things if self.split not in _TAUGHT or (relation, thing) not in HELD_OUT]
        thing = self.rng.choice(taught)
        self.label += " held out" * ((relation, thing) in HELD_OUT)
        return thing

    def show(self, things: Sequence[str], cells: Sequence[tuple[int, int, int, int]]) -> None:
        """Paint each thing somewhere in its cell."""
        for thing, cell in zip(things, cells, strict=True):
            size = (30, 48) if cell == _WHOLE else (24, 31)
            self.stamp(self._picture, self.glyph(thing), cell, size, self.colour())

    def ask(self, question: str, about: tuple[str, str], right: str, wrong: list[str]) -> FactQuestion:
        """Put the choices in order, ask ten people, and give the reasons from a fact (relation, concept)."""
        slot = self.turn % CHOICES
        self.rng.shuffle(wrong)
        choices = (*wrong[:slot], right, *wrong[slot:])
        answers = ten_answers(self.rng, right, _SLIPS.get(right, ALSO_SAID.get(right, ())))
        hard = about[0] == "goes" and self.label.startswith(("single", "value"))
        fact = sentence(*about)
        reasons = (fact, f"It shows the {about[1]}. {fact}", f"{fact} So the answer is {right}.")
        return FactQuestion(self.label, question, choices, slot, answers, hard, reasons, self._picture)


def _single(asker: _Asker, relation: str, value: str) -> FactQuestion:
    thing = asker.choose(relation, value)
    asker.show((thing,), (_WHOLE,))
    wrong = asker.rng.sample([other for other in FACTS[relation] if other != value], CHOICES - 1)
    return asker.ask(PHRASES[relation][0].format("in the picture"), (relation, thing), value, wrong)


def _value(asker: _Asker, relation: str, value: str) -> FactQuestion:
    rng, table = asker.rng, FACTS[relation]
    thing, place = asker.choose(relation, value), rng.choice(tuple(_CELLS))
    wrong = rng.sample([other for other in table if other != value], CHOICES - 1)
    asker.show((thing, rng.choice(table[wrong[0]])), (_CELLS[place], _CELLS[_FACING[place]]))
    return asker.ask(PHRASES[relation][0].format(place), (relation, thing), value, wrong)


def _which(asker: _Asker, relation: str, value: str) -> FactQuestion:
    rng, table = asker.rng, FACTS[relation]
    thing, *decoys = rng.sample(table[value], min(3, len(table[value])))
    others = rng.sample(_without(relation, value), 2)
    asker.show((thing, *others), rng.sample(_QUARTERS, 3))
    question = f"Which of these {PHRASES[relation][1].format(value)}?"
    return asker.ask(question, (relation, thing), thing, [*decoys, *others][: CHOICES - 1])


def _compare(asker: _Asker, relation: str, value: str) -> FactQuestion:
    outcome = OUTCOMES[asker.turn % len(OUTCOMES)]
    asker.turn //= len(OUTCOMES)
    yes, no = asker.rng.sample(FACTS[relation][value], 2), asker.rng.sample(_without(relation, value), 2)
    left = (yes if outcome in ("left", "both") else no)[0]
    right = (yes if outcome in ("right", "both") else no)[1]
    asker.show((left, right), (_CELLS["on the left"], _CELLS["on the right"]))
    question = f"Which object {PHRASES[relation][1].format(value)}?"
    about = (relation, right if outcome == "right" else left)
    return asker.ask(question, about, outcome, [other for other in OUTCOMES if other != outcome])


def _without(relation: str, value: str) -> list[str]:
    """Return concepts for which a relation has another value."""
    return [thing for other, things in FACTS[relation].items() if other != value for thing in things]


_MAKERS: dict[str, Callable[[_Asker, str, str], FactQuestion]] = {
    "single": _single,
    "value": _value,
    "which": _which,
    "compare": _compare,
}
