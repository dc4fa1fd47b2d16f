from __future__ import annotations

import pytest

from commit_tuning.errors import UserError
from commit_tuning.metrics.iconqa import accuracy_by_kind, exact_match


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


def test_accuracy_by_kind_weighs_questions_equally() -> None:
    records = [
        {"kind": "choose_txt", "prediction": "Heart", "answer": "heart"},
        {"kind": "choose_txt", "prediction": "star", "answer": "heart"},
        {"kind": "choose_txt", "prediction": "star", "answer": "cup"},
        {"kind": "choose_img", "prediction": "a", "answer": "A"},
    ]
    assert accuracy_by_kind(records) == {"choose_img": 1.0, "choose_txt": pytest.approx(1 / 3), "all": 0.5}
    assert list(accuracy_by_kind(iter(records))) == ["choose_img", "choose_txt", "all"]
    with pytest.raises(UserError, match="no predictions"):
        accuracy_by_kind([])
