from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from commit_lab.nano.building import dataset_checksum
from commit_lab.nano.pictures.icons import concepts
from commit_lab.nano.pictures.nano_text_questions import (
    FIRST_LETTERS,
    FORMS,
    LAST_LETTERS,
    NUMBERS,
    PICTURE_PX,
    WORDS,
    TextQuestion,
    _Writer,
    make_text_question,
)
from commit_lab.nano.pictures.nano_textvqa import build_nano_textvqa, nano_textvqa_vocabulary
from commit_lab.nano.sounds.annotators import misspelt
from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.errors import UserError
from commit_tuning.metrics.vqa import soft_accuracy

COUNTS = {"train": 18, "val": 6, "test": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nano_textvqa(tmp_path_factory.mktemp("textvqa") / "data", **COUNTS)


@pytest.fixture(scope="module")
def undrawn() -> list[TextQuestion]:
    """Questions whose pictures are left empty: quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Writer, "stamp", lambda *_: None)
        patch.setattr(_Writer, "plate", lambda *_, **__: None)
        return [make_text_question(0, "train", n) for n in range(len(FORMS) * len(WORDS) * 4)]


def test_the_reader_reads_every_split(root: Path) -> None:
    for split, count in COUNTS.items():
        samples = list(TextVQA(root, split, strict=True))
        assert len(samples) == count
        for number, sample in enumerate(samples):
            question = make_text_question(0, split, number)
            assert (sample.question, sample.answer, sample.answers) == (
                question.question,
                question.answer,
                question.answers,
            )
            assert sample.image is not None
            assert sample.image.size == (PICTURE_PX, PICTURE_PX)
            assert soft_accuracy(sample.answer, sample.answers) == pytest.approx(1.0)


def test_the_layout_is_the_official_one(root: Path) -> None:
    ids = set()
    for split, count in COUNTS.items():
        data = json.loads((root / f"TextVQA_0.5.1_{split}.json").read_text())
        assert {key: data[key] for key in ("dataset_type", "dataset_version")} == {
            "dataset_type": split,
            "dataset_version": "0.5.1",
        }
        entry = data["data"][0]
        official = (
            "question question_tokens answers image_width image_height image_classes question_id image_id set_name"
        )
        assert set(official.split()) < set(entry)
        assert len(entry["answers"]) == 10
        assert entry["set_name"] == split
        ids |= {entry["question_id"] for entry in data["data"]}
        assert len(data["data"]) == count
    assert ids == set(range(1, 1 + sum(COUNTS.values())))
    assert len(list((root / "train_images").iterdir())) == COUNTS["train"] + COUNTS["val"]
    assert len(list((root / "test_images").iterdir())) == COUNTS["test"]


def test_question_depends_only_on_seed_split_and_number(root: Path, tmp_path: Path) -> None:
    few = {"train": 7, "val": 1, "test": 1}
    made = {seed: build_nano_textvqa(tmp_path / str(seed), **few, seed=seed) for seed in (0, 1)}
    assert dataset_checksum(made[0]) != dataset_checksum(made[1])
    for name in ("TextVQA_0.5.1_train.json", "TextVQA_0.5.1_test.json"):
        ours, theirs = (json.loads((folder / name).read_text())["data"] for folder in (made[0], root))
        assert [e["image_id"] for e in ours] == [e["image_id"] for e in theirs][: len(ours)]
        for entry in ours:
            picture = Path("test_images" if "test" in name else "train_images", f"{entry['image_id']}.jpg")
            assert (made[0] / picture).read_bytes() == (root / picture).read_bytes()


def test_words_of_question_do_not_reveal_its_answer(undrawn: list[TextQuestion]) -> None:
    pools = {"sign": WORDS, "beside": WORDS, "colour": WORDS, "number": NUMBERS, "price": NUMBERS}
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for question in undrawn:
        key = question.label
        if key == "letter":
            key = "first" if any(word in question.question for word in ("first", "begin")) else "last"
        told[key][question.answer] += 1
    for form, pool in (pools | {"first": FIRST_LETTERS, "last": LAST_LETTERS}).items():
        assert set(told[form]) == set(pool), form
        assert max(told[form].values()) <= 1.5 * told[form].total() / len(pool), form
        assert max(told[form].values()) <= 0.1 * told[form].total(), form


def test_the_icon_and_the_colour_asked_for_decide() -> None:
    for number in range(24):
        question = make_text_question(0, "test", number)
        if question.label in ("beside", "price"):
            assert question.shown[0] in question.question
            assert question.shown[1] not in question.question
            assert len(set(question.shown)) == 2


def test_the_vocabulary_covers_questions_and_answers(undrawn: list[TextQuestion]) -> None:
    words = set(nano_textvqa_vocabulary())
    for question in undrawn:
        assert set(question.question.lower().replace("?", " ?").split()) | {question.answer} <= words
    assert not set(WORDS) & {word for concept in concepts() for word in concept.split()}


def test_most_people_agree_and_some_slip(undrawn: list[TextQuestion]) -> None:
    agreeing = Counter(question.answers.count(question.answer) for question in undrawn)
    assert set(agreeing) == {7, 8, 9, 10}
    assert {len(question.answers) for question in undrawn} == {10}


def test_misspelt_words_are_near() -> None:
    class First:
        def randrange(self, _: int) -> int:
            return 1

        def choice(self, options: tuple[str, ...]) -> str:
            return "|".join(options)

    assert misspelt(First(), "soap") == "sao|o|ooap"  # type: ignore[arg-type]


def test_counts_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1 question per split"):
        build_nano_textvqa(tmp_path / "none", val=0)


def test_a_picture_holds_light_paper_and_dark_ink() -> None:
    for number in range(12):
        low, high = make_text_question(0, "val", number).picture.convert("L").getextrema()
        assert low < 170
        assert high > 225
