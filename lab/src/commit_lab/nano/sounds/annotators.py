"""Simulated answers of ten people to one question: most agree, some slip or use other words."""

from __future__ import annotations

import random
from collections.abc import Sequence

PEOPLE = 10
_MOST_SLIPS = 3


def ten_answers(rng: random.Random, right: str, others: Sequence[str]) -> tuple[str, ...]:
    """Make ten answers, at least seven of them right; so the right answer alone scores 1 in the metrics of VQA.

    Args:
        rng: Source of all chance.
        right: The answer.
        others: What people also say; the right answer among them does not count.

    Returns:
        The answers in a random order.
    """
    pool = [other for other in others if other != right]
    slips = rng.choices(range(_MOST_SLIPS + 1), weights=(4, 3, 2, 1))[0] if pool else 0
    answers = [rng.choice(pool) for _ in range(slips)] + [right] * (PEOPLE - slips)
    rng.shuffle(answers)
    return tuple(answers)


def misspelt(rng: random.Random, word: str) -> str:
    """Swap two neighbouring letters of a word of at least two, or drop or double one; the word may stay the same."""
    at = rng.randrange(len(word) - 1)
    middle = (word[at + 1] + word[at], word[at], word[at] + word[at : at + 2])
    return word[:at] + rng.choice(middle) + word[at + 2 :]
