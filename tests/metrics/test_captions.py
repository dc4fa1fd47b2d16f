from __future__ import annotations

import random
import sys
from itertools import combinations

import pytest

from commit_tuning.errors import UserError
from commit_tuning.metrics import captions
from commit_tuning.metrics.captions import rouge_l_coco, rouge_l_f1, words


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog barks, loudly.", "a dog barks loudly"),
        ("It's the man's dog; he can't stop!", "it 's the man 's dog he ca n't stop"),
        ("They\u2019re far-off (very)", "they 're far-off very"),
        ("First one. Then another", "first one then another"),
        ("about 3.5 s, at 10:30, 1,000 times", "about 3.5 s at 10:30 1,000 times"),
        ("\"hum\" - and -- 'noise' ...", "hum and noise"),
        ("drum'n'bass in 4/4", "drum'n'bass in 4/4"),
        ("caf\u00e9", "caf\u00e9"),
        ("Cafe\u0301's", "caf\u00e9 's"),
        ("\u0915\u0941\u0924\u094d\u0924\u093e, \u0939\u0948", "\u0915\u0941\u0924\u094d\u0924\u093e \u0939\u0948"),
        ("\u0e44\u0e21\u0e48", "\u0e44\u0e21\u0e48"),
        ("", ""),
        ("...", ""),
    ],
)
def test_words(caption: str, expected: str) -> None:
    assert words(caption) == expected.split()


def test_coco_by_hand() -> None:
    # LCS("a dog barks", "a big dog barks loudly") = 3: P = 3/3, R = 3/5; F = 2.44 * 1 * 0.6 / (0.6 + 1.44 * 1)
    assert rouge_l_coco("A dog barks.", ["a big dog barks loudly"]) == pytest.approx(1.464 / 2.04)
    # "people talk while a dog barks" against "people talk" (P 2/6, R 2/2) and "a dog barks at people" (P 3/6, R 3/5):
    # the best P is 1/2, the best R is 1, of two references: F = 2.44 * 0.5 * 1 / (1 + 1.44 * 0.5)
    references = ["people talk", "a dog barks at people"]
    assert rouge_l_coco("people talk while a dog barks", references) == pytest.approx(1.22 / 1.72)
    assert rouge_l_coco("rain", references) == 0


@pytest.mark.parametrize(
    ("caption", "coco_words", "ours", "cocos"),
    [
        # COCO's tokenizer writes brackets as -lrb- and -rrb-, and its list of punctuation has -LRB- and -RRB-:
        # LCS 2 of 4 words, P 2/4, R 2/2: 2.44 * 0.5 / (1 + 1.44 * 0.5)
        ("rain (loud)", "rain lrb loud rrb", 1, 1.22 / 1.72),
        # a run of marks is one word that the list has not: P 2/3, R 1: 2.44 * 2/3 / (1 + 1.44 * 2/3)
        ("rain loud!!!", "rain loud marks", 1, 4.88 / 5.88),
        # the sign is a word there
        ("rain & loud", "rain and_sign loud", 1, 4.88 / 5.88),
    ],
)
def test_where_coco_counts_more_words(caption: str, coco_words: str, ours: float, cocos: float) -> None:
    assert rouge_l_coco(caption, ["rain loud"]) == pytest.approx(ours)
    assert rouge_l_coco(coco_words, ["rain loud"]) == pytest.approx(cocos)


def test_where_coco_parts_more_words() -> None:
    # "cannot" is "can not" there: the reference has it whole, so here nothing is shared but "stop", there all is
    assert rouge_l_coco("it can not stop", ["it cannot stop"]) == pytest.approx(2.44 * 1 / 3 / (2 / 3 + 1.44 / 2))
    assert rouge_l_coco("it can not stop", ["it can not stop"]) == 1
    assert words("gonna cannot") == ["gonna", "cannot"]


def test_f1_by_hand() -> None:
    # P = 1, R = 3/5: 2 * 0.6 / 1.6
    assert rouge_l_f1("A dog barks.", ["a big dog barks loudly"]) == pytest.approx(0.75)
    # F1 2 * 1/3 * 1 / (4/3) = 1/2 and 2 * 1/2 * 3/5 / (11/10) = 6/11: the higher
    references = ["people talk", "a dog barks at people"]
    assert rouge_l_f1("people talk while a dog barks", references) == pytest.approx(6 / 11)


def longest_common_subsequence(one: list[str], other: list[str]) -> int:
    """The longest of all subsequences of one that is a subsequence of the other."""
    for length in range(len(one), 0, -1):
        for part in combinations(one, length):
            rest = iter(other)
            if all(word in rest for word in part):
                return length
    return 0


def some_captions(count: int) -> list[tuple[str, list[str]]]:
    draw = random.Random(0)
    vocabulary = ["a", "dog", "barks", "while", "rain", "falls", "on", "the", "roof"]

    def caption() -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(1, 7)))

    return [(caption(), [caption() for _ in range(draw.randint(1, 5))]) for _ in range(count)]


def weighted_harmonic_mean(precision: float, recall: float, alpha: float) -> float:
    return 1 / (alpha / precision + (1 - alpha) / recall) if precision else 0


def test_both_against_brute_force() -> None:
    for prediction, references in some_captions(60):
        shared = [longest_common_subsequence(prediction.split(), reference.split()) for reference in references]
        precisions = [length / len(prediction.split()) for length in shared]
        recalls = [length / len(reference.split()) for length, reference in zip(shared, references, strict=True)]
        # F with weight beta is the weighted harmonic mean with alpha = 1 / (1 + beta^2)
        coco = weighted_harmonic_mean(max(precisions), max(recalls), 1 / (1 + 1.2**2))
        f1 = max(weighted_harmonic_mean(*pair, 0.5) for pair in zip(precisions, recalls, strict=True))
        assert rouge_l_coco(prediction, references) == pytest.approx(coco)
        assert rouge_l_f1(prediction, references) == pytest.approx(f1)


def test_coco_and_f1_differ_where_they_should() -> None:
    prediction, references = "people talk while a dog barks", ["people talk", "a dog barks at people"]
    assert rouge_l_coco(prediction, references) > rouge_l_f1(prediction, references)


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    captions._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install 'commit-tuning\[metrics\]'"):
        rouge_l_coco("rain", ["rain"])
