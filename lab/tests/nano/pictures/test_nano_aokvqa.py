from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from commit_lab.nano.building import MANIFEST, dataset_checksum
from commit_lab.nano.pictures.facts import (
    ALSO_SAID,
    FACTS,
    HELD_OUT,
    PHRASES,
    VALUES,
    known_concepts,
    sentence,
    value_of,
)
from commit_lab.nano.pictures.icons import concepts
from commit_lab.nano.pictures.nano_aokvqa import build_nano_aokvqa, nano_aokvqa_vocabulary
from commit_lab.nano.pictures.nano_fact_questions import CHOICES, FORMS, OUTCOMES, FactQuestion, make_fact_question
from commit_lab.nano.pictures.painter import Painter
from commit_tuning.data.readers.aokvqa import AOKVQA
from commit_tuning.errors import UserError
from commit_tuning.metrics.aokvqa import direct_answer

COUNTS = {"train": 18, "val": 6, "test": 12}


@dataclass(frozen=True)
class Asked:
    """A question with what its picture shows, in the order of drawing."""

    question: FactQuestion
    shown: tuple[str, ...]
    relation: str
    value: str

    @property
    def answer(self) -> str:
        return self.question.choices[self.question.right]


@pytest.fixture(scope="module")
def asked() -> dict[str, list[Asked]]:
    """Many questions, their pictures left empty: quick."""
    shown: list[str] = []
    made: dict[str, list[Asked]] = {"train": [], "test": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Painter, "glyph", lambda _, concept: shown.append(concept))
        patch.setattr(Painter, "stamp", lambda *_: None)
        for split, questions in made.items():
            for number in range(len(FORMS) * len(VALUES) * CHOICES * 4):
                shown.clear()
                question = make_fact_question(0, split, number)
                questions.append(Asked(question, tuple(shown), *VALUES[number // len(FORMS) % len(VALUES)]))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nano_aokvqa(tmp_path_factory.mktemp("aokvqa") / "data", **COUNTS)


def test_facts_are_clean() -> None:
    assert set(known_concepts()) <= set(concepts())
    assert len(known_concepts()) >= 38
    assert set(FACTS) == set(PHRASES)
    for relation, table in FACTS.items():
        things = [thing for things in table.values() for thing in things]
        assert len(things) == len(set(things)), relation  # one value each
        assert set(things) <= set(known_concepts())
        assert len(table) >= CHOICES
        for things in table.values():
            assert len(things) > 1  # no thing is the only one with its answer
            assert list(things) == sorted(things)
    assert set(ALSO_SAID) <= {value for _, value in VALUES} | set(known_concepts())
    assert value_of("made", "key") == "metal"
    assert value_of("made", "ghost") is None
    assert sentence("made", "key") == "The key is made of metal."


def test_the_reader_reads_every_split(root: Path) -> None:
    for split, count in COUNTS.items():
        samples = list(AOKVQA(root, split, strict=True))
        assert len(samples) == count
        questions = [make_fact_question(0, split, number) for number in range(count)]
        for sample, question in zip(samples, questions, strict=True):
            assert (sample.question, sample.choices) == (question.question, question.choices)
            assert sample.answer == question.choices[question.right]
            assert sample.image is not None
        direct = list(AOKVQA(root, split, "direct_answer", strict=True))
        kept = [question for question in questions if split == "train" or not question.hard]
        assert [sample.answers for sample in direct] == [question.answers for question in kept]
        for sample, question in zip(direct, kept, strict=True):
            assert sample.answer == question.choices[question.right]
            assert direct_answer(sample.answer, sample.answers) == 1.0


def test_the_layout_is_the_official_one(root: Path) -> None:
    official = "split image_id question_id question choices correct_choice_idx direct_answers difficult_direct_answer"
    for split in COUNTS:
        entries = json.loads((root / f"aokvqa_v1p0_{split}.json").read_text())
        assert {*official.split(), "rationales"} < set(entries[0])
        assert [len(entries[0][key]) for key in ("choices", "direct_answers", "rationales")] == [4, 10, 3]
        names = {f"{entry['image_id']:012d}.jpg" for entry in entries}
        assert {path.name for path in (root / f"{split}2017").iterdir()} == names
    manifest = json.loads((root / MANIFEST).read_text())
    assert {(relation, thing) for relation, thing in manifest["held_out"]} == HELD_OUT


def test_question_depends_only_on_seed_split_and_number(root: Path, tmp_path: Path) -> None:
    few = {"train": 7, "val": 1, "test": 1}
    made = {seed: build_nano_aokvqa(tmp_path / str(seed), **few, seed=seed) for seed in (0, 1)}
    assert dataset_checksum(made[0]) != dataset_checksum(made[1])
    ours, theirs = (json.loads((folder / "aokvqa_v1p0_train.json").read_text()) for folder in (made[0], root))
    assert ours == theirs[: len(ours)]
    for entry in ours:
        picture = f"train2017/{entry['image_id']:012d}.jpg"
        assert (made[0] / picture).read_bytes() == (root / picture).read_bytes()


def test_exactly_one_choice_is_true(asked: dict[str, list[Asked]]) -> None:
    for one in asked["train"] + asked["test"]:
        holders = [thing for thing in one.shown if value_of(one.relation, thing) == one.value]
        assert all(value_of(one.relation, thing) for thing in one.shown)
        assert len(set(one.question.choices)) == CHOICES
        if one.question.label == "compare":
            left, right = (thing in holders for thing in one.shown)
            assert one.answer == {(1, 0): "left", (0, 1): "right", (1, 1): "both", (0, 0): "none"}[left, right]
        elif one.question.label == "which":
            assert holders == [one.answer]
            assert len(set(one.question.choices) & set(one.shown)) > 1  # the picture alone does not tell
            others = set(one.question.choices) - set(one.shown)
            assert others  # nor does the text
            assert {value_of(one.relation, other) for other in others} == {one.value}
        else:
            assert (holders, one.answer) == ([one.shown[0]], one.value)
        if one.question.label.startswith("value"):
            assert value_of(one.relation, one.shown[1]) in one.question.choices  # the place decides
        assert one.value in f"{one.question.question} {one.answer}"


def test_a_question_alone_says_little(asked: dict[str, list[Asked]]) -> None:
    slots = Counter(one.question.right for one in asked["train"])
    assert max(slots.values()) < 0.27 * slots.total()
    outcomes = Counter(one.answer for one in asked["train"] if one.question.label == "compare")
    assert set(outcomes.values()) == {outcomes.total() // len(OUTCOMES)}
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked["train"]:
        if one.question.label.startswith(("single", "value")):
            told[one.relation][one.answer] += 1
    for relation, counter in told.items():
        assert set(counter.values()) == {counter.total() // len(FACTS[relation])}
    which = [one for one in asked["train"] if one.question.label == "which"]
    guesses = [min(c for c in one.question.choices if value_of(one.relation, c) == one.value) for one in which]
    right = sum(guess == one.answer for guess, one in zip(guesses, which, strict=True))
    assert right < 0.5 * len(which)  # who knows all facts and sees nothing


def test_held_out_facts_appear_only_reversed_in_train(asked: dict[str, list[Asked]]) -> None:
    def facts(split: str, *forms: str) -> set[tuple[str, str]]:
        return {(one.relation, one.shown[0]) for one in asked[split] if one.question.label in forms}

    assert len(HELD_OUT) == 10
    assert not HELD_OUT & facts("train", "single", "value", "single held out", "value held out")
    assert facts("test", "value held out") == facts("test", "single held out") == HELD_OUT
    assert facts("train", "which") >= HELD_OUT
    assert facts("train", "single", "value") | HELD_OUT == {(r, t) for r, v in VALUES for t in FACTS[r][v]}


def test_the_vocabulary_covers_questions_choices_and_answers(asked: dict[str, list[Asked]]) -> None:
    words = set(nano_aokvqa_vocabulary())
    for one in asked["train"] + asked["test"]:
        texts = " ".join([one.question.question.lower().replace("?", " ?"), *one.question.choices])
        assert set(texts.split()) <= words
        assert len(one.question.question.split()) <= 12
    told = [sentence(relation, thing) for relation, value in VALUES for thing in FACTS[relation][value]]
    assert {word for text in told for word in text.lower().rstrip(".").split()} <= words


def test_counts_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1 question per split"):
        build_nano_aokvqa(tmp_path / "none", workers=0)
