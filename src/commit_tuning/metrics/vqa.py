"""VQA soft accuracy (Antol et al. 2015, arXiv 1505.00468), by the rules of TextVQA's evaluator.

The rules and word lists are those of ``EvalAIAnswerProcessor`` and ``TextVQAAccuracyEvaluator`` in MMF
(facebookresearch/mmf, ``mmf/utils/m4c_evaluators.py``), which published TextVQA numbers come from, LLaVA's too. The VQA
evaluation (GT-Vision-Lab/VQA, ``vqaEval.py``) has the same lists and the same formula, but

- does not drop every comma and question mark first, nor part a possessive ``'s`` from its word; so only there does a
  comma between digits (``1,000``) make all other punctuation vanish instead of becoming a space;
- normalises the references less than the prediction: their punctuation alone, and only if the ten are not all equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(value) for value, word in enumerate(_DIGITS.split())} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'  # commas and question marks are gone by then
_PERIOD = re.compile(r"\.(?!\d)")

# What the list can restore: its keys are these with one apostrophe left out.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    places = ((word, index) for word in _CONTRACTED.split() for index, letter in enumerate(word) if letter == "'")
    return {word[:index] + word[index + 1 :]: word for word, index in places} | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


def normalise(text: str) -> str:
    """Return a text in the form that TextVQA's evaluator compares.

    In order: lower case, without commas and question marks, ``'s`` a word of its own; every other punctuation mark goes
    if it stands beside a space anywhere in the text and is a space otherwise (hyphens too; apostrophes and colons
    stay); periods go unless a digit follows; none to ten become digits; articles go wherever they stand; contractions
    get their apostrophe back; white space is single.

    Not kept: the script strips the first 32 periods only (a flag passed as a count).

    Example:
        >>> normalise("The dog's T-shirt, No. 2"), normalise("two dont"), normalise("( 3.5 )")
        ("dog 's t shirt no 2", "2 don't", '3.5')
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ")
    spaced = text
    for mark in _PUNCTUATION:
        text = text.replace(mark, "" if f"{mark} " in spaced or f" {mark}" in spaced else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", text).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return min(1, matches / 3) among the other answers, averaged over leaving out each answer in turn.

    With ten answers and m that match: 0, 0.3, 0.6, 0.9 for m = 0 to 3, then 1. A blank prediction is never right (in
    the script it matches references such as ``a``, of which nothing is left).

    Fewer than ten answers, which the script refuses: the same formula, where three is never more than the answers that
    remain when one is left out; so to say what all say is right, and one answer is plain equality.

    Args:
        prediction: The model's text.
        answers: What people said, at least one.

    Returns:
        In [0, 1].
    """
    predicted, count = normalise(prediction), len(answers)
    if not prediction.strip():
        return 0.0
    matches = sum(normalise(answer) == predicted for answer in answers)
    if count == 1:
        return float(matches)
    enough = min(3, count - 1)
    agreed = matches * min(matches - 1, enough) + (count - matches) * min(matches, enough)
    return agreed / (count * enough)
