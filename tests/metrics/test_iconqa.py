from __future__ import annotations

import re
import string
import unicodedata

import pytest
from campaign import inputs
from hypothesis import given
from hypothesis import strategies as st

from commit_tuning.metrics.iconqa import exact_match, normalise

SYMBOLS = "#$<=>^|~"
"""What tells answers apart in ASCII, besides what stands inside numbers."""


def before(text: str) -> str:
    """The rule as it was when it knew ASCII alone."""
    words = " ".join(re.sub(r"[^\w\s.%/:+-]|\.(?!\d)", " ", text.lower()).split()).strip(":/ ")
    return re.sub(r"^(?:a|an|the)\s+(?=\S)", "", words) or "".join(text.split())


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
        ("5>3.", "5 > 3"),
        ("c #", "C#"),
        ("The $5", "$5"),
        ("caf\u00e9", "cafe\u0301"),  # NFC and NFD
        ("(\u0939\u093f\u0928\u094d\u0926\u0940)", "\u0939\u093f\u0928\u094d\u0926\u0940."),
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
        ("C", "C#"),
        ("C", "C++"),
        ("C++", "C#"),
        ("A", "A#"),
        ("#", "A#"),
        ("5 < 3", "5 > 3"),
        ("$5", "\u20ac5"),
        ("x2", "x^2"),
        ("3 \u00d7 4", "3 \u00f7 4"),
        ("\u0915\u093f", "\u0915\u093e"),  # Hindi ki and ka: one letter, two vowel signs
        ("\u0915", "\u0915\u093e"),
        ("\u0e40\u0e2a\u0e37\u0e2d", "\u0e40\u0e2a\u0e37\u0e49\u0e2d"),  # Thai: a mat with a tone mark is a shirt
    ],
)
def test_different(prediction: str, answer: str) -> None:
    assert not exact_match(prediction, answer)


@inputs(500, 5000)
@given(text=st.text(sorted(set(map(chr, range(128))) - set(SYMBOLS))) | st.text("aAnTthe .,:/-+%_(3b\n"))
def test_ascii_is_compared_as_before(text: str) -> None:
    assert normalise(text) == before(text)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_symbols_are_told_apart(symbol: str) -> None:
    assert before(f"x{symbol}") == before("x")
    assert normalise(f"x{symbol}") == f"x {symbol}"
    assert set(SYMBOLS) < set(string.punctuation)


@inputs(300, 3000)
@given(text=st.text())
def test_composed_and_apart_are_the_same(text: str) -> None:
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert normalise(composed) == normalise(apart)
