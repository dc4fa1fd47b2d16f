from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import pytest

from commit_tuning.metrics.vqa import normalise, soft_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # each worked through MMF's EvalAIAnswerProcessor by hand
        ("", ""),
        ("  Coca Cola\n", "coca cola"),
        ("1,000", "1000"),  # commas vanish before anything else
        ("a, b", "b"),  # "a b", then the article goes
        ("is it red?", "is it red"),
        ("Dan's", "dan 's"),  # possessive 's is parted, with its apostrophe
        ("t-shirt", "t shirt"),  # no space beside the hyphen: it becomes one
        ("t-shirt - blue", "tshirt blue"),  # a space beside a hyphen: every hyphen vanishes
        ("and/or", "and or"),
        ("(left)", "left"),
        ("10:30", "10:30"),  # colons are no punctuation here
        ("$5.00", "$5.00"),
        ("3.", "3"),  # a period goes unless a digit follows
        (".5", ".5"),
        ("u.s.a.", "usa"),
        ("No. 7", "no 7"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("twenty-one", "twenty 1"),
        ("the end of the road", "end of road"),
        ("an A the", ""),
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldntve", "couldntve"),  # one apostrophe can be restored, not two
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("somebody'd", "somebodyd"),  # a slip in the official list
        ("thats", "that's"),
        ("that's", "that 's"),  # so these two differ: 's was parted before
        ("wed", "wed"),
        ("shes", "shes"),
        ("Im", "im"),  # the list has Im, which lower-cased text never is
        ("a\tdog\nand two", "dog and 2"),
        ("stop!", "stop"),
        ("@home", "home"),
        ("snake_case", "snake case"),
        ("C#", "c#"),  # no punctuation of the list
        ("C++", "c"),  # but a plus is: the script takes C++ for C
        ("cafe\u0301", "cafe\u0301"),  # accents stay as they are written
        ("\u0915\u093f", "\u0915\u093f"),
    ],
)
def test_normalisation_by_hand(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_answers_by_hand(matches: int, expected: float) -> None:
    # m = 3: leaving out one of the 3 leaves 2/3, leaving out one of the other 7 leaves 3/3: (3 * 2/3 + 7) / 10 = 0.9
    answers = ["nike"] * matches + [f"brand {place}" for place in range(10 - matches)]
    assert soft_accuracy("Nike.", answers) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["yes"], 1),
        (["no"], 0),
        (["yes", "no"], 0.5),  # one other answer suffices: leaving out yes gives 0, leaving out no gives 1
        (["yes", "yes", "no"], 2 / 3),  # two others suffice: (1/2 + 1/2 + 1) / 3
        (["yes", "yes", "yes"], 1),
        (["yes", "no", "no", "no"], 0.25),  # three suffice again: (0 + 3 * 1/3) / 4
    ],
)
def test_fewer_answers_than_ten(answers: list[str], expected: float) -> None:
    assert soft_accuracy("yes", answers) == pytest.approx(expected, abs=1e-15)


def test_blank_is_never_right() -> None:
    assert soft_accuracy(" ", ["a"] * 10) == 0
    assert soft_accuracy("A", ["a"] * 10) == 1


def averaged_over_leaving_one_out(prediction: str, answers: Sequence[str]) -> Fraction:
    """Antol et al.: every nine of the ten people are asked in turn."""
    total = Fraction(0)
    for left_out in range(len(answers)):
        others = [answer for place, answer in enumerate(answers) if place != left_out]
        total += min(Fraction(1), Fraction(sum(other == prediction for other in others), 3))
    return total / len(answers)


def test_against_the_definition() -> None:
    draw = random.Random(0)
    for _ in range(300):
        answers = draw.choices(["red", "blue", "green", "dark red"], weights=[5, 3, 1, 1], k=10)
        prediction = draw.choice(["red", "blue", "green", "pink"])
        expected = float(averaged_over_leaving_one_out(prediction, answers))
        assert soft_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-15)


def test_a_blank_vote_counts_as_in_the_script() -> None:
    assert soft_accuracy("the", [""] * 10) == 1  # nothing is left of either
    assert soft_accuracy("nike", [""] * 7 + ["nike"] * 3) == pytest.approx(0.9)
    assert soft_accuracy("", [""] * 10) == 0  # ours: a blank prediction is never right
