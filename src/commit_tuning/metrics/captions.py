"""ROUGE-L (Lin 2004) of a caption against several references, by the two conventions in use.

They differ in the words, in the weight of recall, and in how references are joined. Audio captioning reports COCO
caption's (tylin/coco-caption ``rouge.py``; aac-metrics carries it over), so that is the default; rouge-score's is what
summarisation and most general libraries report.

COCO caption takes its words from Stanford's PTB tokenizer, a Java program, without punctuation. :func:`words` follows
the tokenizer's rules for plain captions, without Java. The two can differ on abbreviations with periods (``U.S.``), on
contractions without an apostrophe (``cannot``, ``gonna``), and on symbols (``%``, ``&``), brackets and repeated marks
(``!!!``), which are dropped here. docs/reference/metrics.md has the details.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

from commit_tuning.errors import UserError

_BETA_SQUARED = 1.2**2  # COCO caption's weight of recall
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-'/]\w+|(?<=\d)[.,:]\d+)*")


def words(caption: str) -> list[str]:
    """Return a caption's words in lower case, without punctuation, clitics apart, hyphenated words and numbers whole.

    Accents are composed (NFC), and vowel signs and other marks belong to their letters.

    Example:
        >>> words("A dog's bark (far-off); it isn't loud: 1,000 Hz, 3.5 s.")
        ['a', 'dog', "'s", 'bark', 'far-off', 'it', 'is', "n't", 'loud', '1,000', 'hz', '3.5', 's']
    """
    text = unicodedata.normalize("NFC", caption).lower().replace("\u2019", "'")
    text = _CLITIC.sub(r" \1", text)
    letters = "".join("m" if unicodedata.category(letter)[0] == "M" else letter for letter in text)
    return [text[slice(*word.span())] for word in _WORD.finditer(letters)]


def rouge_l_coco(prediction: str, answers: Sequence[str]) -> float:
    """Compute COCO caption's ROUGE-L: F measure, beta 1.2, of best precision and best recall over the references.

    LCS is the longest common subsequence in words, precision LCS / words of the caption, recall LCS / words of the
    reference; P and R are their maxima, each over all references (so they may come from two of them). The score is
    (1 + beta^2) P R / (R + beta^2 P), or 0 where nothing is shared.

    Args:
        prediction: The caption.
        answers: References, at least one.

    Returns:
        In [0, 1].

    Raises:
        UserError: The package rouge-score is missing.
    """
    scores = [_scorer("coco").score(answer, prediction)["rougeL"] for answer in answers]
    precision, recall = max(score.precision for score in scores), max(score.recall for score in scores)
    if precision * recall == 0:
        return 0.0
    return float((1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision))


def rouge_l_f1(prediction: str, answers: Sequence[str]) -> float:
    """Compute rouge-score's ROUGE-L: the highest F1 over references (``score_multi``), words ``[a-z0-9]+`` unstemmed.

    Args:
        prediction: The caption.
        answers: References, at least one.

    Returns:
        In [0, 1].

    Raises:
        UserError: The package rouge-score is missing.
    """
    return float(_scorer("rouge-score").score_multi(list(answers), prediction)["rougeL"].fmeasure)


@cache
def _scorer(convention: Literal["coco", "rouge-score"]) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE-L needs the package rouge-score: pip install 'commit-tuning[metrics]'") from None
    return RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=words) if convention == "coco" else None)
