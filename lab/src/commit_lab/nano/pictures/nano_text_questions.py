"""The questions of Nano-TextVQA: signs, labels and prices to read.

A question is a pure function of (seed, split, number). The six forms alternate with the number, and within a form the
answers are counted through, so that the words of a question say nothing about its answer. Many of the sixty words
differ from others in one letter, and every number has two digits of 1, 3, 6 and 8: a glance does not tell them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from commit_lab.nano.pictures.icons import concepts
from commit_lab.nano.pictures.lettering import split_fonts, text_mask
from commit_lab.nano.pictures.painter import COLOURS, Painter
from commit_lab.nano.sounds.annotators import misspelt, ten_answers

if TYPE_CHECKING:
    from PIL import Image

PICTURE_PX = 66
"""Side of a picture: that of the nano models' input, so that no letter is resampled."""

_WORDS = """
bag bank bar bath boat book boot bus cafe cake coal coat cook farm fish food foot form fort hat hot hotel ice mail main
mall men menu new news nuts open oven park past pasta pork port post price prize rent rest rice road room sale salt ship
shop soap soup step stone stop store town toys wet wine
"""
WORDS = tuple(_WORDS.split())
NUMBERS = tuple("".join(digits) for digits in product("1368", repeat=2))
FIRST_LETTERS = tuple(sorted({word[0] for word in WORDS if sum(other[0] == word[0] for other in WORDS) > 1}))
LAST_LETTERS = tuple(sorted({word[-1] for word in WORDS if sum(other[-1] == word[-1] for other in WORDS) > 1}))
FORMS = ("sign", "beside", "number", "price", "colour", "letter")
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "sign": ("What word is on the sign?", "What does the sign say?", "What is written on the sign?"),
    "beside": ("What is written next to the {}?", "Which word is next to the {}?"),
    "number": ("What number is on the {} sign?", "Which number does the {} sign show?"),
    "price": ("What is the price of the {}?", "How much is the {}?"),
    "colour": ("Which word is written in {}?", "What does the {} word say?"),
    "first": ("What is the first letter on the sign?", "With which letter does the word begin?"),
    "last": ("What is the last letter on the sign?", "With which letter does the word end?"),
}
_FINE = 4  # plates are drawn this many times as large, turned, then reduced
_TILT = 5.0  # degrees


@dataclass(frozen=True)
class TextQuestion:
    """One question before it is written.

    Attributes:
        label: One of :data:`FORMS`.
        question: The text.
        answer: The right answer: a word, a number or a letter.
        answers: Ten people's.
        shown: Concepts of the icons in the picture.
        picture: RGB, 66 x 66.
    """

    label: str
    question: str
    answer: str
    answers: tuple[str, ...]
    shown: tuple[str, ...]
    picture: Image.Image


def make_text_question(seed: int, split: str, number: int) -> TextQuestion:
    """Draw question ``number`` of a split.

    Args:
        seed: Seed of the dataset.
        split: train, val, test or pretrain; it decides fonts and icon families.
        number: 0-based number within the split.
    """
    rng = random.Random(f"{seed}:text:{split}:{number}")
    label = FORMS[number % len(FORMS)]
    writer = _Writer(rng, split)
    form, word, answer, shown = _MAKERS[label](writer, number // len(FORMS))
    question = rng.choice(_TEMPLATES[form]).format(word)
    return TextQuestion(label, question, answer, _people(rng, answer), shown, writer.picture)


def nano_textvqa_vocabulary() -> tuple[str, ...]:
    """Return all words of questions and right answers, in lower case, sorted; misspellings are not in it."""
    texts = [text.replace("{}", " ").replace("?", " ? ") for family in _TEMPLATES.values() for text in family]
    words = " ".join([*texts, *concepts(), *COLOURS, *WORDS, *NUMBERS, *FIRST_LETTERS, *LAST_LETTERS]).lower()
    return tuple(sorted(set(words.split())))


def _people(rng: random.Random, answer: str) -> tuple[str, ...]:
    others = [answer.upper(), "unanswerable"]
    if answer.isdigit():
        others += [f"${answer}", answer[::-1]]
    elif len(answer) > 1:
        near = [word for word in WORDS if len(word) == len(answer) and _distance(word, answer) == 1]
        others += [misspelt(rng, answer), misspelt(rng, answer), f"the {answer}", *near[:1]]
    return ten_answers(rng, answer, others)


def _distance(one: str, other: str) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


class _Writer(Painter):
    """Paints plates with text beside icons."""

    def __init__(self, rng: random.Random, split: str) -> None:
        super().__init__(rng, split)
        self._split = split
        self.picture = self.canvas(PICTURE_PX)

    def rows(self) -> list[int]:
        """Return the upper edges of the picture's two halves, in random order."""
        return self.rng.sample((0, PICTURE_PX // 2), 2)

    def two(self, pool: tuple[str, ...], turn: int) -> tuple[str, str]:
        """Return the answer whose turn it is, and another of its kind."""
        right = pool[turn % len(pool)]
        return right, self.rng.choice([other for other in pool if other != right])

    def row(self, top: int, concept: str, text: str) -> None:
        """Paint half of the picture: an icon and, on one side of it, text."""
        self.stamp(self.picture, self.glyph(concept), (0, top, 22, 33), (18, 22), self.colour())
        self.plate((22, top, 44, 33), text, self.colour())

    def plate(self, cell: tuple[int, int, int, int], text: str, colour: str, filled: bool = False) -> None:
        """Paint a plate in a cell (x, y, width, height), with text in a colour, or in white on that colour."""
        from PIL import Image

        plate = self._plate(cell[2] - 3, min(cell[3] - 8, 26), text, colour, filled)
        plate = plate.rotate(self.rng.uniform(-_TILT, _TILT), Image.Resampling.BILINEAR, expand=True).reduce(_FINE)
        x, y, width, height = cell
        at = (x + self.rng.randint(0, max(0, width - plate.width)), y + self.rng.randint(0, height - plate.height))
        self.picture.paste(plate, at, plate)

    def _plate(self, width: int, height: int, text: str, colour: str, filled: bool) -> Image.Image:
        """Draw a plate as RGBA, in fine pixels."""
        from PIL import Image, ImageDraw

        mask = text_mask(text, self.rng.choice(split_fonts(self._split, text)))
        room = self.rng.uniform(0.85, 1.0) * _FINE
        scale = min((width - 4) * room / mask.width, (height - 5) * room / mask.height)
        mask = mask.resize((round(mask.width * scale), round(mask.height * scale)), Image.Resampling.BILINEAR)
        size = (min(width * _FINE, mask.width + 5 * _FINE), min(height * _FINE, mask.height + 6 * _FINE))
        tone, paper = self.tone(colour), self.tint((236, 255))
        plate = Image.new("RGBA", size, (*tone, 0))
        frame = (0, 0, size[0] - 1, size[1] - 1)
        ImageDraw.Draw(plate).rounded_rectangle(frame, 2 * _FINE, tone if filled else paper, tone, _FINE // 2)
        ink = Image.new("RGBA", mask.size, (*(paper if filled else tone), 255))
        plate.paste(ink, ((size[0] - mask.width) // 2, (size[1] - mask.height) // 2), mask)
        return plate

    def cased(self, word: str) -> str:
        """Write a word in lower case or capitals."""
        return self.rng.choice((word, word.upper()))

    def sign(self, word: str) -> tuple[str, ...]:
        """Paint a large sign and an icon above or below it, and return the icon's concept."""
        (concept,) = self.concepts(1)
        top, icon_top = self.rng.choice(((0, 40), (26, 0)))
        self.stamp(self.picture, self.glyph(concept), (0, icon_top, PICTURE_PX, 26), (20, 25), self.colour())
        self.plate((0, top, PICTURE_PX, 40), self.cased(word), self.colour(), self.rng.random() < 0.5)
        return (concept,)


_Made = tuple[str, str, str, tuple[str, ...]]  # key of the templates, its word, right answer, concepts shown


def _sign(writer: _Writer, turn: int) -> _Made:
    word = WORDS[turn % len(WORDS)]
    return "sign", "", word, writer.sign(word)


def _letter(writer: _Writer, turn: int) -> _Made:
    end, letters = ((0, FIRST_LETTERS), (-1, LAST_LETTERS))[turn % 2]
    letter = letters[turn // 2 % len(letters)]
    word = writer.rng.choice([word for word in WORDS if word[end] == letter])
    return ("last" if end else "first"), "", letter, writer.sign(word)


def _beside(writer: _Writer, turn: int) -> _Made:
    texts, shown = writer.two(WORDS, turn), tuple(writer.concepts(2))
    for top, concept, text in zip(writer.rows(), shown, texts, strict=True):
        writer.row(top, concept, text)
    return "beside", shown[0], texts[0], shown


def _price(writer: _Writer, turn: int) -> _Made:
    texts, shown = writer.two(NUMBERS, turn), tuple(writer.concepts(2))
    for top, concept, text in zip(writer.rows(), shown, texts, strict=True):
        writer.row(top, concept, f"${text}")
    return "price", shown[0], texts[0], shown


def _number(writer: _Writer, turn: int) -> _Made:
    texts, colours = writer.two(NUMBERS, turn), writer.rng.sample(tuple(COLOURS), 2)
    for top, colour, text in zip(writer.rows(), colours, texts, strict=True):
        writer.plate((0, top, PICTURE_PX, 33), text, colour, filled=True)
    return "number", colours[0], texts[0], ()


def _colour(writer: _Writer, turn: int) -> _Made:
    texts, colours = writer.two(WORDS, turn), writer.rng.sample(tuple(COLOURS), 2)
    for top, colour, text in zip(writer.rows(), colours, texts, strict=True):
        writer.plate((0, top, PICTURE_PX, 33), writer.cased(text), colour)
    return "colour", colours[0], texts[0], ()


_MAKERS: dict[str, Callable[[_Writer, int], _Made]] = {
    "sign": _sign,
    "beside": _beside,
    "number": _number,
    "price": _price,
    "colour": _colour,
    "letter": _letter,
}
