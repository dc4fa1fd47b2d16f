"""Accuracy on IconQA: a prediction counts when it equals the answer after normalisation."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PUNCTUATION = re.compile(r"[^\w\s.%/:+-]|\.(?!\d)")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")


def normalise(text: str) -> str:
    """Text as it is compared.

    Lower case; punctuation becomes a space, except inside numbers, times and fractions (``3.5``, ``6:30``, ``1/2``,
    ``-4``, ``50%``); one leading article is dropped if words follow it (``the heart`` is ``heart``, but the choice
    ``A`` stays ``a``); white space is single. Where nothing else is left, symbols stay: ``<`` is no ``=``.
    """
    words = " ".join(_PUNCTUATION.sub(" ", text.lower()).split()).strip(":/ ")
    return _ARTICLE.sub("", words) or "".join(text.split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether prediction and answer are the same after :func:`normalise`; an empty prediction is never right."""
    predicted = normalise(prediction)
    return bool(predicted) and predicted == normalise(answer)


def any_match(prediction: str, answers: Iterable[str]) -> float:
    """1 if the prediction is one of the answers by :func:`exact_match`, else 0."""
    return float(any(exact_match(prediction, answer) for answer in answers))
