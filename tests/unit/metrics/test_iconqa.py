from __future__ import annotations

import pytest

from commit_tuning.metrics.iconqa import exact_match


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("Heart", "heart"),
        ("the heart.", "heart"),
        (" shopping   cart\n", "Shopping cart"),
        ("A", "a."),
        ("(B)", "B"),
        ("6:30", "6:30."),
        ("3.5", "3.5"),
        ("An apple", "apple"),
        ("Answer-less", "answer-less"),
        (" < ", "<"),
        (">=", "> ="),
    ],
)
def test_equal_after_normalisation(prediction: str, answer: str) -> None:
    assert exact_match(prediction, answer)
    assert exact_match(answer, prediction)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("", ""),
        ("?", "!"),
        ("<", "="),
        (" ", ""),
        ("heart star", "heart"),
        ("3", "3.5"),
        ("35", "3.5"),
        ("4", "-4"),
        ("12", "1/2"),
        ("630", "6:30"),
        ("hearts", "heart"),
        ("B", "A"),
    ],
)
def test_different(prediction: str, answer: str) -> None:
    assert not exact_match(prediction, answer)
