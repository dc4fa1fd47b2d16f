"""What every metric in METRICS promises, and how a record reaches it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from commit_tuning.errors import UserError
from commit_tuning.metrics.score import METRICS

TEXTS = ("cab", "yes", "people talk near 2 dogs", "A", "3.5", "the t-shirt", "don't know", "?", "b) bus")
every_metric = pytest.mark.parametrize("name", METRICS)


def record(prediction: str, answers: Any, **more: Any) -> dict[str, Any]:
    choices = ("cab", "people talk near 2 dogs", "bus", "the the cab")
    return {"prediction": prediction, "answers": answers, "kind": "k", "choices": choices, "answer": "cab"} | more


def score(name: str, *records: dict[str, Any]) -> float:
    return float(METRICS[name](records)["score"])


@every_metric
@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("text", ["cab", "people talk near 2 dogs", "bus", " the the cab"])
def test_what_all_said_is_right(name: str, count: int, text: str) -> None:
    assert score(name, record(text, (text,) * count, answer=text)) == 1


@every_metric
@pytest.mark.parametrize("prediction", ["", " \n", "violin"])
def test_blank_and_foreign_text_is_wrong(name: str, prediction: str) -> None:
    assert score(name, record(prediction, ("cab",) * 10)) == 0
    assert name == "aokvqa" or score(name, record("", ("a",) * 10)) == 0


@every_metric
def test_scores_lie_in_unit_interval_in_any_order(name: str) -> None:
    draw, seen = random.Random(0), set()
    for _ in range(100):
        answers = draw.choices(TEXTS, k=draw.randint(1, 10))
        shuffled = draw.sample(answers, len(answers))
        prediction = draw.choice(TEXTS)
        one, other = (METRICS[name].of(record(prediction, some)) for some in (answers, shuffled))
        assert one == other
        assert one is None or 0 <= one <= 1
        seen.add(one)
    assert {0, 1} <= seen


@every_metric
def test_a_reference_more_that_agrees_never_harms(name: str) -> None:
    draw = random.Random(1)
    for _ in range(50):
        answers = draw.choices(["cab", "bus", "people talk"], k=9)
        fewer, more = (METRICS[name].of(record("cab", some)) for some in (answers, [*answers, "cab"]))
        assert fewer is None or more is None or more >= fewer - 1e-12


@every_metric
def test_mean_over_questions_and_kinds(name: str) -> None:
    right, wrong = record("cab", ("cab",) * 10, kind="b"), record("violin", ("cab",) * 10, kind="b")
    result = METRICS[name](iter([right, wrong, right | {"kind": "a"}, right]))
    expected = {"score": 0.75, "by_kind": {"a": 1.0, "b": pytest.approx(2 / 3)}, "questions": 4, "left_out": 0}
    assert result == expected
    assert list(result["by_kind"]) == ["a", "b"]


@every_metric
def test_faults_of_records(name: str) -> None:
    good = record("cab", ("cab",))
    for key in ("prediction", "answers", "kind"):
        with pytest.raises(UserError, match=f"has no {key}"):
            METRICS[name]([{other: value for other, value in good.items() if other != key}])
    for answers in ((), "cab"):
        with pytest.raises(UserError, match="at least one reference"):
            METRICS[name]([record("cab", answers)])
    with pytest.raises(UserError, match="no predictions"):
        METRICS[name]([])


def test_kinds_have_own_means_questions_weigh_equally() -> None:
    asked = [("txt", "Heart"), ("txt", "star"), ("txt", "cup"), ("img", "the heart")]
    records = [record(text, ("heart",), kind=kind) for kind, text in asked]
    expected = {"score": 0.5, "by_kind": {"img": 1, "txt": pytest.approx(1 / 3)}, "questions": 4, "left_out": 0}
    assert METRICS["iconqa"](records) | {"left_out": 0} == expected


def test_questions_left_out() -> None:
    easy, difficult = record("cab", ("cab",) * 10), record("x", ("cab",) * 10, difficult_direct_answer=True)
    result = METRICS["aokvqa/direct-answer"]([easy, difficult])
    assert (result["score"], result["questions"], result["left_out"]) == (1, 1, 1)
    assert METRICS["aokvqa"]([easy, difficult])["questions"] == 2  # multiple choice is over all of them
    with pytest.raises(UserError, match="leaves out all 1 questions"):
        METRICS["clothoaqa/unanimous"]([record("yes", ("yes", "no", "yes"))])


def test_multiple_choice_ignores_direct_answers() -> None:
    assert score("aokvqa", record("cab", ("taxi",) * 10)) == 1
    with pytest.raises(UserError, match="needs choices and answer"):
        score("aokvqa", record("cab", ("cab",), choices=None))


def test_datasets_and_their_defaults() -> None:
    datasets = {name for name in METRICS if "/" not in name}
    assert datasets == {"iconqa", "textvqa", "aokvqa", "clothoaqa", "macs", "song-describer"}
    assert {name.split("/")[0] for name in METRICS} == datasets
    split = record("yes", ("yes", "yes", "no"))
    assert [round(score(name, split), 3) for name in ("clothoaqa", "clothoaqa/majority", "clothoaqa/any")] == [
        0.667,
        1,
        1,
    ]
    caption = record("people talk while a dog barks", ("people talk", "a dog barks at people"))
    assert [round(score(name, caption), 3) for name in ("macs", "macs/f1", "song-describer")] == [0.709, 0.545, 0.709]
