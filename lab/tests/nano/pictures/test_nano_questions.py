from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest
from PIL import Image

from commit_lab.nano.pictures import nano_questions
from commit_lab.nano.pictures.icons import Glyph, concepts
from commit_lab.nano.pictures.nano_questions import (
    CHOICE_PX,
    COLOURS,
    KINDS,
    MAX_COUNT,
    OPTIONS,
    Question,
    make_question,
    nano_vocabulary,
)
from commit_lab.nano.pictures.painter import PICTURE_PX


@pytest.fixture(scope="module")
def questions() -> dict[str, list[Question]]:
    return {"train": [make_question(0, "train", n) for n in range(2400)]} | {
        "test": [make_question(0, "test", n) for n in range(900)]
    }


def answer_text(question: Question) -> str:
    return question.choices[int(question.answer)] if question.choices else str(question.answer)


def test_a_question_depends_on_its_number_alone() -> None:
    forward = [make_question(3, "val", n) for n in range(12)]
    backward = [make_question(3, "val", n) for n in reversed(range(12))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert (one.question, one.answer, one.choices) == (other.question, other.answer, other.choices)
        assert one.picture.tobytes() == other.picture.tobytes()
        assert [p.tobytes() for p in one.choice_pictures] == [p.tobytes() for p in other.choice_pictures]
    assert make_question(4, "val", 0).picture.tobytes() != forward[0].picture.tobytes()


def test_kinds_and_shapes(questions: dict[str, list[Question]]) -> None:
    for number, question in enumerate(questions["train"]):
        assert question.kind == KINDS[number % 3]
        assert question.picture.size == (PICTURE_PX, PICTURE_PX)
        assert question.picture.mode == "RGB"
        if question.kind == "choose_img":
            assert [picture.size for picture in question.choice_pictures] == [(CHOICE_PX, CHOICE_PX)] * OPTIONS
            assert question.picture.getcolors(maxcolors=1) is not None
        else:
            assert question.choice_pictures == ()
            assert question.picture.getcolors(maxcolors=1) is None
        if question.kind == "choose_txt":
            assert question.choices is not None
            assert len(set(question.choices)) == OPTIONS
            assert set(question.choices) <= set(concepts())


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_spread_evenly(questions: dict[str, list[Question]], split: str) -> None:
    for kind in KINDS:
        counts = Counter(str(question.answer) for question in questions[split] if question.kind == kind)
        assert len(counts) == (MAX_COUNT if kind == "fill_in_blank" else OPTIONS)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_words_of_question_do_not_reveal_the_answer(questions: dict[str, list[Question]]) -> None:
    """The most frequent answer to the same words, learnt on train, is near chance on test."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    favourite: Counter[str] = Counter()
    for question in questions["train"]:
        seen[question.question][str(question.answer)] += 1
        favourite[answer_text(question)] += question.kind == "choose_txt"
    hits: dict[str, list[bool]] = defaultdict(list)
    for question in questions["test"]:
        guess = seen[question.question].most_common(1)
        hits[question.kind].append(bool(guess) and guess[0][0] == str(question.answer))
        if question.choices:
            best = max(question.choices, key=lambda option: favourite[option])
            hits["choose_txt by option"].append(best == answer_text(question))
    shares = {kind: sum(hit) / len(hit) for kind, hit in hits.items()}
    assert set(shares) == {*KINDS, "choose_txt by option"}
    assert all(share < 0.34 for share in shares.values()), shares


@pytest.mark.parametrize("label", ["count", "count colour"])
def test_number_of_other_icons_does_not_reveal_count(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Icons beside the counted ones are as many on average whatever the count."""
    painted: list[int] = []
    scatter = nano_questions._Painter.scatter

    def spy(self: nano_questions._Painter, icons: list[tuple[Glyph, str]]) -> Image.Image:
        painted.append(len(icons))
        return scatter(self, icons)

    monkeypatch.setattr(nano_questions._Painter, "scatter", spy)
    others: dict[int, list[int]] = defaultdict(list)
    for number in range(2, 3000, 3):
        painted.clear()
        question = make_question(1, "train", number)
        if question.label == label:
            others[int(question.answer)].append(painted[0] - int(question.answer))
    means = [sum(counts) / len(counts) for counts in others.values()]
    assert len(means) == MAX_COUNT
    assert max(means) - min(means) < 0.8
    assert {count for counts in others.values() for count in counts} == {0, 1, 2, 3}


def test_vocabulary_covers_every_word(questions: dict[str, list[Question]]) -> None:
    words = set(nano_vocabulary())
    assert len(words) < 400
    for question in questions["train"] + questions["test"]:
        for text in (question.question, *(question.choices or ()), str(question.answer)):
            assert set(re.findall(r"\w+|[^\w\s]", text.lower())) <= words
    assert set(COLOURS) | {"a", "b", "c", "d", "options", "answer", ":"} <= words
    assert "zebra" in nano_vocabulary(["A zebra."])
    assert nano_vocabulary() == sorted(words)
