"""Ten people's answers to one question, made up: most agree, some slip or say it otherwise."""

from __future__ import annotations

import random
from collections.abc import Sequence

PEOPLE = 10
_MOST_SLIPS = 3


def ten_answers(rng: random.Random, right: str, others: Sequence[str]) -> tuple[str, ...]:
    """Ten answers, of which at least seven are the right one; so it alone is worth 1 to the metrics of VQA.

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
    """A word of at least two letters with two neighbours swapped, or a letter dropped or doubled; maybe itself."""
    at = rng.randrange(len(word) - 1)
    middle = (word[at + 1] + word[at], word[at], word[at] + word[at : at + 2])
    return word[:at] + rng.choice(middle) + word[at + 2 :]
