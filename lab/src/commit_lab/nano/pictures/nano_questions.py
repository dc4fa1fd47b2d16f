"""The questions of Nano-IconQA: what is asked, what is drawn, and which answer is right.

A question is a pure function of (seed, split, number): the order of building does not matter. Answers are spread
evenly by counting through the answer slots (option 1 to 4, place in the grid, number 1 to 5), and every other choice is
drawn uniformly, so that the words of a question say nothing about its answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from commit_lab.nano.pictures.icons import concepts
from commit_lab.nano.pictures.painter import COLOURS, Painter
from commit_tuning.data.sample import Sample

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("choose_txt", "choose_img", "fill_in_blank")
CHOICE_PX = 32
OPTIONS = 4
MAX_COUNT = 5

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "identity": ("What is shown in the picture?", "What does the picture show?", "Which icon do you see?"),
    "frequency": ("Which icon appears most often?", "Which icon is there more of?"),
    "left": ("What is on the left side?",),
    "right": ("What is on the right side?",),
    "top": ("What is at the top?",),
    "bottom": ("What is at the bottom?",),
    "find": ("Which picture shows the {}?", "In which picture is the {}?", "Find the picture with the {}."),
    "odd": ("Which picture is different from the others?", "Which picture does not match the others?"),
    "count": ("How many {} icons are there?", "Count the {} icons."),
    "count all": ("How many icons are there?", "Count all icons."),
    "count colour": ("How many {} icons are there?", "Count the {} icons."),
}
_MIX: dict[str, tuple[str, ...]] = {  # each entry is equally likely
    "choose_txt": ("identity", "identity", "frequency", "position"),
    "choose_img": ("find", "find", "find", "odd"),
    "fill_in_blank": ("count", "count", "count all", "count colour"),
}
_PROMPT_WORDS = "options answer : , . ?"
_PRETRAINING_WORDS = (
    "a an and another are both but by contains drawing here icon icons image in is it its no none not of on one or "
    "painted picture see shown side symbol that the there these this to two three four five six seven eight nine "
    "we with yes colour color coloured small large big left right top bottom middle above below next zero"
)


@dataclass(frozen=True)
class Question:
    """One question before it is written: the fields of the official ``data.json`` and the pictures.

    Attributes:
        kind: One of :data:`KINDS`.
        label: Name of the template family.
        question: The text.
        choices: Option words, or for choose_img nothing (the choices are pictures); None for fill_in_blank.
        answer: Index of the right choice, or for fill_in_blank the answer itself.
        picture: RGB, 64 x 64; one plain colour when the question is about the choice pictures alone.
        choice_pictures: RGB, 32 x 32 each; empty except for choose_img.
    """

    kind: str
    label: str
    question: str
    choices: tuple[str, ...] | None
    answer: int | str
    picture: Image.Image
    choice_pictures: tuple[Image.Image, ...] = ()


def make_question(seed: int, split: str, number: int) -> Question:
    """Draw question ``number`` of a split; kinds alternate with the number.

    Args:
        seed: Seed of the dataset.
        split: train, val or test; it decides the icon families.
        number: 0-based number within the split.
    """
    rng = random.Random(f"{seed}:{split}:{number}")
    kind = KINDS[number % len(KINDS)]
    label = rng.choice(_MIX[kind])
    return _MAKERS[label](_Painter(rng, split), kind, label, number // len(KINDS))


def word_samples(count: int) -> list[Sample]:
    """Return the first training questions that choose among words (every third question does), as samples."""
    drawn = [make_question(0, "train", 3 * number) for number in range(count)]
    return [
        Sample(str(3 * number), q.kind, q.question, q.choices, (q.choices[int(q.answer)],), q.picture)
        for number, q in enumerate(drawn)
        if q.choices is not None
    ]


def nano_vocabulary(extra: Iterable[str] = ()) -> list[str]:
    """Return all words of nano questions, options, answers and pre-training captions, in lower case, sorted.

    Args:
        extra: Texts whose words are added.
    """
    texts = [text.replace("{}", " ") for family in _TEMPLATES.values() for text in family]
    texts += [*concepts(), *COLOURS, _PROMPT_WORDS, _PRETRAINING_WORDS, *map(str, range(10)), "a b c d e", *extra]
    spaced = " ".join(texts).lower()
    for mark in ".,:?":
        spaced = spaced.replace(mark, f" {mark} ")
    return sorted(set(spaced.split()))


class _Painter(Painter):
    """A painter that knows the sentences."""

    def sentence(self, label: str, word: str = "") -> str:
        return self.rng.choice(_TEMPLATES[label]).format(word)


def _options(right: str, others: list[str], slot: int) -> tuple[str, ...]:
    return (*others[:slot], right, *others[slot:])


def _identity(painter: _Painter, kind: str, label: str, turn: int) -> Question:
    right, *others = painter.concepts(OPTIONS)
    canvas = painter.canvas()
    painter.stamp(canvas, painter.glyph(right), (0, 0, 64, 64), (28, 48), painter.colour())
    slot = turn % OPTIONS
    return Question(kind, label, painter.sentence(label), _options(right, others, slot), slot, canvas)


def _frequency(painter: _Painter, kind: str, label: str, turn: int) -> Question:
    right, *others = painter.concepts(OPTIONS)
    rarer = painter.rng.choice(others)
    counts = ((right, painter.rng.randint(3, 5)), (rarer, painter.rng.randint(1, 2)))
    glyphs = {concept: painter.glyph(concept) for concept, _ in counts}
    icons = [(glyphs[concept], painter.colour()) for concept, count in counts for _ in range(count)]
    slot = turn % OPTIONS
    return Question(kind, label, painter.sentence(label), _options(right, others, slot), slot, painter.scatter(icons))


def _position(painter: _Painter, kind: str, _: str, turn: int) -> Question:
    cells = {"left": (0, 0, 32, 64), "right": (32, 0, 32, 64), "top": (0, 0, 64, 32), "bottom": (0, 32, 64, 32)}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    side = painter.rng.choice(tuple(cells))
    right, *others = painter.concepts(OPTIONS)
    canvas = painter.canvas()
    for concept, place in ((right, side), (painter.rng.choice(others), opposite[side])):
        painter.stamp(canvas, painter.glyph(concept), cells[place], (24, 30), painter.colour())
    slot = turn % OPTIONS
    return Question(kind, side, painter.sentence(side), _options(right, others, slot), slot, canvas)


def _pictures(painter: _Painter, shown: Iterable[str]) -> tuple[Image.Image, ...]:
    pictures = []
    for concept in shown:
        canvas = painter.canvas(CHOICE_PX)
        painter.stamp(canvas, painter.glyph(concept), (0, 0, CHOICE_PX, CHOICE_PX), (23, 30), painter.colour())
        pictures.append(canvas)
    return tuple(pictures)


def _find(painter: _Painter, kind: str, label: str, turn: int) -> Question:
    right, *others = painter.concepts(OPTIONS)
    slot = turn % OPTIONS
    pictures = _pictures(painter, _options(right, others, slot))
    return Question(kind, label, painter.sentence(label, right), (), slot, painter.canvas(), pictures)


def _odd(painter: _Painter, kind: str, label: str, turn: int) -> Question:
    right, other = painter.concepts(2)
    slot = turn % OPTIONS
    pictures = _pictures(painter, _options(right, [other] * (OPTIONS - 1), slot))
    return Question(kind, label, painter.sentence(label), (), slot, painter.canvas(), pictures)


def _count(painter: _Painter, kind: str, label: str, turn: int) -> Question:
    right, *others = painter.concepts(1 + painter.rng.randint(0, 3))
    number = 1 + turn % MAX_COUNT
    glyph = painter.glyph(right)
    icons = [(glyph, painter.colour()) for _ in range(number)]
    icons += [(painter.glyph(concept), painter.colour()) for concept in others]
    return Question(kind, label, painter.sentence(label, right), None, str(number), painter.scatter(icons))


def _count_all(painter: _Painter, kind: str, label: str, turn: int) -> Question:
    number = 1 + turn % MAX_COUNT
    icons = [(painter.glyph(concept), painter.colour()) for concept in painter.concepts(number)]
    return Question(kind, label, painter.sentence(label), None, str(number), painter.scatter(icons))


def _count_colour(painter: _Painter, kind: str, label: str, turn: int) -> Question:
    number = 1 + turn % MAX_COUNT
    right, *others = painter.rng.sample(tuple(COLOURS), 1 + painter.rng.randint(0, 3))
    shown = zip(painter.concepts(number + len(others)), [right] * number + others, strict=True)
    icons = [(painter.glyph(concept), colour) for concept, colour in shown]
    return Question(kind, label, painter.sentence(label, right), None, str(number), painter.scatter(icons))


_MAKERS: dict[str, Callable[[_Painter, str, str, int], Question]] = {
    "identity": _identity,
    "frequency": _frequency,
    "position": _position,
    "find": _find,
    "odd": _odd,
    "count": _count,
    "count all": _count_all,
    "count colour": _count_colour,
}
