"""Means over questions, which every metric ends with."""

from __future__ import annotations

from collections.abc import Iterable

from commit_tuning.errors import UserError


def mean_by_kind(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean score, for each kind of question and for all.

    Args:
        scores: (kind, score of one question in [0, 1]).

    Returns:
        kind -> mean in [0, 1], kinds sorted, then ``all``: the mean over all questions (not the mean of kinds).

    Raises:
        UserError: There are no scores.
    """
    kinds: dict[str, list[float]] = {}
    for kind, score in scores:
        kinds.setdefault(kind, []).append(score)
    if not kinds:
        raise UserError("there are no predictions to score")
    everything = [score for kind in kinds.values() for score in kind]
    means = {kind: sum(kinds[kind]) / len(kinds[kind]) for kind in sorted(kinds)}
    return means | {"all": sum(everything) / len(everything)}
