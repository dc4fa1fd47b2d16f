"""Accuracy on Clotho-AQA (Lipping et al. 2022, arXiv 2204.09634), whose questions have three answers each.

The authors' baseline (partha2409/AquaNet: ``split_dataset.py``, ``run_inference.py``) compares the prediction with each
annotator's answer as a row of its own and takes the share of rows: :func:`agreement`, the default here. No prediction
can reach 1 where annotators differ. It splits the *rows* into yes/no and single words by the row's answer; we keep the
question's kind. Later work filters questions instead (Audio Flamingo 3, arXiv 2507.08128, reports ``unanimous``), so a
number without the name of its rule says little. Any of the three: :func:`~commit_tuning.metrics.iconqa.any_match`.

Answers are compared by :func:`~commit_tuning.metrics.iconqa.exact_match`; the baseline upper-cases them. A sentence
that contains yes or no is not taken for that word (lmms-eval does so).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from commit_tuning.metrics.iconqa import exact_match, normalise


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """Return the share of annotators who said the same, in [0, 1]."""
    return sum(exact_match(prediction, answer) for answer in answers) / len(answers)


def majority(prediction: str, answers: Sequence[str]) -> float | None:
    """Return 1 if more than half of the annotators said the same, else 0; None if no answer has a majority."""
    return _against(prediction, answers, len(answers) // 2 + 1)


def unanimous(prediction: str, answers: Sequence[str]) -> float | None:
    """Return 1 if all annotators said the same, else 0; None if they differ among themselves."""
    return _against(prediction, answers, len(answers))


def _against(prediction: str, answers: Sequence[str], votes: int) -> float | None:
    answer, count = Counter(map(normalise, answers)).most_common(1)[0]
    said = normalise(prediction)
    return float(bool(said) and said == answer) if count >= votes else None
