from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from commit_tuning.metrics.clothoaqa import agreement, majority, unanimous
from commit_tuning.metrics.iconqa import any_match


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        # agreement, majority, unanimous, any
        ("yes", ["yes", "yes", "yes"], (1, 1, 1, 1)),
        ("Yes.", ["YES", "yes", "no"], (2 / 3, 1, None, 1)),
        ("no", ["yes", "yes", "no"], (1 / 3, 0, None, 1)),
        ("no", ["yes", "yes", "yes"], (0, 0, 0, 0)),
        ("rain", ["rain", "water", "wind"], (1 / 3, None, None, 1)),
        ("yes it is", ["yes", "yes", "yes"], (0, 0, 0, 0)),
        ("", ["yes", "no", "yes"], (0, 0, None, 0)),
        ("a dog", ["dog"], (1, 1, 1, 1)),
        ("dog", ["dog", "cat"], (1 / 2, None, None, 1)),  # half is no majority
    ],
)
def test_by_hand(prediction: str, answers: list[str], expected: tuple[float | None, ...]) -> None:
    metrics: list[Callable[[str, Sequence[str]], float | None]] = [agreement, majority, unanimous, any_match]
    for metric, value in zip(metrics, expected, strict=True):
        assert metric(prediction, answers) == (value if value is None else pytest.approx(value))


def test_agreement_is_the_share_of_rows() -> None:
    """The authors score a table with one row for each annotator's answer."""
    questions = [("yes", answers) for answers in itertools.product(["yes", "no"], repeat=3)]
    rows = [(prediction, answer) for prediction, answers in questions for answer in answers]
    share = sum(prediction.upper() == answer.upper() for prediction, answer in rows) / len(rows)
    assert sum(agreement(*question) for question in questions) / len(questions) == pytest.approx(share)
