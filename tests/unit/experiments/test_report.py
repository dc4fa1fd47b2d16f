"""The words of the report's table."""

from __future__ import annotations

from commit_tuning.experiments.record import RunRecord
from commit_tuning.experiments.report import starvation
from commit_tuning.experiments.table import NOTHING


def test_who_starves_in_how_many_runs_and_since_when() -> None:
    ends: list[dict[str, object]] = [{"starving": {"vision": 120}}, {"starving": {}}, {"starving": {"vision": 95}}]
    records = [RunRecord(recipe={}, metrics=metrics) for metrics in ends]
    assert starvation(records) == "vision in 2 of 3, since step 95, 120"
    assert starvation([*records[1:2], RunRecord(recipe={})]) == NOTHING  # also a record from before this was noted
