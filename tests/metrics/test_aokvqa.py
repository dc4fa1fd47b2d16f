from __future__ import annotations

import pytest

from commit_tuning.errors import UserError
from commit_tuning.metrics.aokvqa import direct_answer, multiple_choice, named_choice

CHOICES = ("skateboarder", "train", "delivery", "cab")


@pytest.mark.parametrize(
    ("prediction", "index"),
    [
        ("cab", 3),
        ("The cab.", 3),
        ("CAB", 3),
        ("D", 3),
        ("d", 3),
        ("(d)", 3),
        ("D.", 3),
        ("d) cab", 3),
        ("D: the cab", 3),
        ("A. cab", None),  # the letter says one thing and the text another
        ("E", None),
        ("D cab", None),  # no mark after the letter: it may be a word
        ("", None),
        ("taxi", None),
        ("a cab or a train", None),
        ("cabs", None),
    ],
)
def test_what_a_text_names(prediction: str, index: int | None) -> None:
    assert named_choice(prediction, CHOICES) == index


def test_text_counts_before_the_letter() -> None:
    assert named_choice("a", ["b", "a"]) == 1
    assert named_choice("B", ["b", "a"]) == 0
    assert named_choice("+", ["-", "+"]) == 1  # nothing is left of it after normalisation
    assert named_choice("B", ["bus", "Bus"]) == 0  # equal choices are one
    assert named_choice("a. lincoln", ["T. Jefferson", "A. Lincoln"]) == 1
    assert named_choice("B. A. Lincoln", ["T. Jefferson", "A. Lincoln"]) == 1


def test_symbols_and_vowel_signs_tell_choices_apart() -> None:
    languages = ["C#", "C++", "C"]
    assert [named_choice(text, languages) for text in ("C", "c#", "C++.", "the C", "A. C#", "A. C")] == [
        2,
        0,
        1,
        2,
        0,
        None,
    ]
    hindi = ["\u0915\u093f", "\u0915\u093e"]
    assert [named_choice(text, hindi) for text in (*hindi, "\u0915")] == [0, 1, None]
    assert named_choice("cafe\u0301", ["bar", "caf\u00e9"]) == 1


def test_direct_answers_stay_literal() -> None:
    assert direct_answer("cafe\u0301", ["caf\u00e9"] * 10) == 0  # as in the script


def test_multiple_choice() -> None:
    assert multiple_choice("Cab", CHOICES, "cab") == 1
    assert multiple_choice("train", CHOICES, "cab") == 0
    assert multiple_choice("taxi", CHOICES, "cab") == 0  # the official mapping by word vectors would say cab
    assert multiple_choice("cab", CHOICES, "D") == 1
    with pytest.raises(UserError, match="'bus' is none of the choices"):
        multiple_choice("cab", CHOICES, "bus")


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("ride", 2 / 3),  # two of ten, and none is left out
        ("taxi", 2 / 3),
        ("cab", 2 / 3),
        ("bus", 1 / 3),
        ("Bus", 0),  # as it stands
        (" bus\n", 1 / 3),
        ("train", 0),
        ("", 0),
    ],
)
def test_direct_answers_of_the_readme(prediction: str, expected: float) -> None:
    # the example question of the official README and its ten answers
    answers = ["ride", "ride", "bus", "taxi", "travelling", "traffic", "taxi", "cab", "cab", "his ride"]
    assert direct_answer(prediction, answers) == pytest.approx(expected)


def test_three_matches_suffice_and_all_of_fewer() -> None:
    assert direct_answer("cab", ["cab"] * 3 + ["bus"] * 7) == 1
    assert direct_answer("cab", ["cab"] * 9 + ["bus"]) == 1
    assert direct_answer("cab", ["cab", "cab"]) == 1
    assert direct_answer("cab", ["cab", "bus"]) == 0.5
