"""Accuracy on IconQA: a prediction counts when it equals the answer after normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_PERIOD = re.compile(r"\.(?!\d)")
_IN_NUMBERS = frozenset("_.%/:+-")
_ARTICLES = frozenset({"a", "an", "the"})
_SYMBOLS = frozenset({"Sc", "Sm", "So"})  # Unicode's categories: money, mathematics, others


def normalise(text: str) -> str:
    """Return a text in the form in which it is compared.

    Accents are composed (NFC); lower case; punctuation becomes a space, except inside numbers, times and fractions
    (``3.5``, ``6:30``, ``1/2``, ``-4``, ``50%``); vowel signs and other marks belong to their letters; each symbol
    (``#``, ``^``, ``<``, ``=``, ``$``, Unicode's others) is a word of its own, so ``C#`` is no ``C``; one leading
    article is dropped if words or a price follow it (``the heart`` is ``heart``, but the choice ``A`` stays ``a``);
    white space is single. Where nothing else is left, punctuation stays: ``?`` is no ``!``.
    """
    text = unicodedata.normalize("NFC", text)
    words = "".join(map(_kept, _PERIOD.sub(" ", text.lower())))
    first, _, others = " ".join(words.split()).strip(":/ ").partition(" ")
    bare = others if first in _ARTICLES and _may_follow_an_article(others[:1]) else f"{first} {others}".rstrip()
    return bare or "".join(text.split())


def _kept(letter: str) -> str:
    if letter.isalnum() or letter in _IN_NUMBERS or unicodedata.category(letter)[0] == "M":
        return letter
    return f" {letter} " if _stands_alone(letter) else " "


def _may_follow_an_article(letter: str) -> bool:
    """Tell whether a letter can begin a word or a price."""
    return bool(letter) and (not _stands_alone(letter) or unicodedata.category(letter) == "Sc")


def _stands_alone(letter: str) -> bool:
    """Tell whether a letter is a symbol that tells answers apart."""
    return letter in "#^" or (unicodedata.category(letter) in _SYMBOLS and letter not in _IN_NUMBERS)


def exact_match(prediction: str, answer: str) -> bool:
    """Tell whether prediction and answer agree after :func:`normalise`; an empty prediction is never right."""
    predicted = normalise(prediction)
    return bool(predicted) and predicted == normalise(answer)


def any_match(prediction: str, answers: Iterable[str]) -> float:
    """Return 1 if the prediction is one of the answers by :func:`exact_match`, else 0."""
    return float(any(exact_match(prediction, answer) for answer in answers))
