"""The arithmetic of what coordination costs, by hand-worked records; no time is taken."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from commit_lab.studies.overhead import (
    Costs,
    Record,
    Spread,
    by_block,
    counted,
    courses_to_result,
    extrapolated,
    share_of,
    time_to_result,
    trainer_pairs,
    whole_run,
)
from commit_lab.studies.overhead_page import REFERENCE, page_of, read_records
from commit_tuning.errors import UserError
from commit_tuning.train.record import json_line

ROOT = Path(__file__).parents[3]
COUNTED = {
    "plain": {"flop": 1000, "vocabulary": 100},
    "measured": {"flop": 1500, "vocabulary": 700},
    "unmeasured": {"flop": 1000, "vocabulary": 100},
}
FACTS = {"answers": 16, "batch": 16, "vocabulary": 10, "trained": {"vision": 5, "language_model": 7}}


def run(steps: int = 400, every: int = 5, extra: float = 0.5) -> list[dict[str, Any]]:
    """A run whose measured steps take `extra` plain steps more, and its others a hundredth."""
    rounds = []
    for step in range(steps):
        plain, measured = 0.1 * (1 + step % 3), step % every == 0
        own = [plain * (1 + (extra if measured else 0.01)), measured]
        rounds.append({"plain": [plain, False], "default": own, "monitor": own})
    return rounds


def numbers(spread: Spread | None) -> tuple[float, ...]:
    assert spread is not None
    return astuple(spread)


def sampled_record(name: str, **more: Any) -> Record:
    """A shape whose first rounds are slow, and do not count."""
    slow = {"plain": [9.0, False], "every": [99.0, True], "seldom": [99.0, True]}
    one = {"plain": [1.0, False], "every": [3.0, True], "seldom": [1.02, False]}
    return record(name, rounds=[slow] * 2 + [one] * 12, warm_up=2, **more)


def record(name: str, **more: Any) -> Record:
    about = {"device": "cpu", "quick": False, "source": "abc"}
    shown = {"title": name.title(), "facts": FACTS, "counted": COUNTED, "profile": {"moved vision": 1.0, "loss": 3.0}}
    return {"name": name, "about": about, "versions": {"torch": "2"}, "hardware": {"cpu": "one"}, **shown, **more}


def test_pairs_are_sorted_by_kind_and_the_extra_is_in_plain_steps() -> None:
    rounds = [
        {"plain": [1.0, False], "default": [1.5, True]},
        {"plain": [1.0, False], "default": [1.1, False]},
        {"plain": [1.0, False], "default": [1.7, True]},
    ]
    costs = Costs.of(rounds, "default")
    assert costs.measured == [(1.5, 1.0), (1.7, 1.0)]
    assert costs.unmeasured == [(1.1, 1.0)]
    assert numbers(costs.extra()) == pytest.approx((0.6, 0.5, 0.7, 2))
    assert numbers(costs.over(0.5)) == pytest.approx((1.35, 1.35, 1.35, 1))  # half of 3.2 / 2, half of 1.1


def test_a_run_of_a_kind_of_step_that_was_not_seen_has_no_cost() -> None:
    costs = Costs.of([{"plain": [1.0, False], "default": [1.5, True]}], "default")
    assert costs.over(0.5) is None
    assert costs.over(1.0) == Spread(1.5, 1.5, 1.5, 1)
    assert Costs([], []).extra() is None


def test_a_whole_run_is_weighted_by_the_steps_that_it_measured() -> None:
    trained = record(REFERENCE, rounds=run())
    found = whole_run(trained, "default")
    assert found is not None
    assert found.median == pytest.approx(0.2 * 1.5 + 0.8 * 1.01)
    assert found.low <= found.median <= found.high
    assert found.count == 10
    assert share_of(trained["rounds"], "default", 200) == pytest.approx(0.2)


def test_late_steps_take_the_last_ten_that_were_measured_where_there_are_fewer() -> None:
    rounds = run(every=400, extra=0.0)
    for step in range(0, 200, 10):
        rounds[step]["default"] = [rounds[step]["plain"][0] * (3 if step >= 100 else 9), True]
    assert share_of(rounds, "default", 200) == 0
    late = whole_run(record(REFERENCE, rounds=rounds), "default", 200)
    assert late is not None
    assert late.median == pytest.approx(1.01)
    rounds[399]["default"] = [rounds[399]["plain"][0] * 3, True]
    late = whole_run(record(REFERENCE, rounds=rounds), "default", 200)
    assert late is not None
    assert late.median == pytest.approx(0.005 * 3 + 0.995 * 1.01)  # and not 9, which early ones take


def test_a_shape_that_was_not_trained_through_leaves_its_warm_up_out() -> None:
    found = extrapolated(sampled_record("llava-49k"), 0.1)
    assert found is not None
    assert found.median == pytest.approx(0.1 * 3 + 0.9 * 1.02)


def test_blocks_of_rounds_are_compared() -> None:
    rounds = [{"plain": [1.0, False], "paper": [own, True]} for own in (2.0, 4.0, 5.0, 5.0, 9.0)]
    assert numbers(by_block(rounds, "paper", 2)) == pytest.approx((4.0, 3.0, 5.0, 2))


def test_counted_work_has_no_noise() -> None:
    assert counted(record(REFERENCE), "flop", 0.2) == pytest.approx(1.1)
    assert counted(record(REFERENCE), "vocabulary", 0.2) == pytest.approx(2.2)


def test_trainers_are_compared_pair_by_pair() -> None:
    pair = {"plain": [[1.0, False], [3.0, False]], "ours": [[4.0, True], [2.2, False]]}
    found = trainer_pairs({"pairs": [pair, pair]}, 0.1)
    assert numbers(found) == pytest.approx((0.1 * 2 + 0.9 * 1.1, 1.19, 1.19, 2))
    assert trainer_pairs({"pairs": [{**pair, "ours": [[2.2, False]]}]}, 0.1) is None


def comparison(folder: Path, losses: dict[str, list[float]], history: bool) -> list[Record]:
    """A comparison with an arm for each method, whose runs have such losses."""
    rows = []
    for method, values in losses.items():
        run_folder = folder / method
        run_folder.mkdir(parents=True)
        told = {
            "recipe": {"train": {"steps": len(values)}}, "status": "complete", "seed": 0, "versions": {},
            "metrics": {"train_loss": sum(values[-20:]) / 20}, "seconds": {"training": 8.0},
        }  # fmt: skip
        (run_folder / "run.json").write_text(json.dumps(told), "utf-8")
        if history:
            lines = [json_line({"step": step, "loss": loss}) for step, loss in enumerate(values, 1)]
            (run_folder / "history.jsonl").write_text("".join(lines), "utf-8")
        rows.append({"method": method, "label": method, "rates": "1e-3", "chosen": True, "runs": [method]})
    return rows


KEPT = {
    "comparison": "mine", "method": "CoMMIT-CLR", "rates": "1e-3", "seeds": 3, "arrived": 3, "steps": 250.4,
    "seconds": 30.0, "exact": True,
}  # fmt: skip
LOSSES = {
    "constant": [2.0] * 20 + [1.0] * 20,
    "commit-clr": [2.0] * 10 + [1.0] * 30,
    "feature-cd": [2.0] * 40,
}


def test_time_to_result_is_of_the_step_where_histories_are_kept(tmp_path: Path) -> None:
    found = {line.method: line for line in time_to_result(tmp_path, comparison(tmp_path, LOSSES, history=True))}
    assert (found["constant"].steps, found["constant"].seconds) == (40, 8.0)
    assert (found["commit-clr"].steps, found["commit-clr"].seconds) == (30, 6.0)
    assert found["commit-clr"].exact
    assert (found["feature-cd"].arrived, found["feature-cd"].seeds, found["feature-cd"].steps) == (0, 1, None)


def test_time_to_result_is_at_most_the_run_where_they_are_not(tmp_path: Path) -> None:
    found = {line.method: line for line in time_to_result(tmp_path, comparison(tmp_path, LOSSES, history=False))}
    assert (found["commit-clr"].steps, found["commit-clr"].exact) == (40, False)
    assert found["feature-cd"].arrived == 0


def test_courses_arrive_at_a_stop(tmp_path: Path) -> None:
    stops = {
        "constant:1e-3": [(100, 3.0), (400, 2.0)],
        "constant:3e-3": [(100, 4.0), (400, 4.0)],
        "default:1e-3": [(100, 2.5), (400, 1.0)],
        "literal:1e-3": [(100, 2.5), (400, 2.5)],
    }
    for arm, seen in stops.items():
        folder = tmp_path / "long" / arm.replace(":", "_")
        folder.mkdir(parents=True)
        told = [{"step": step, "train_loss": loss, "seconds": step / 10} for step, loss in seen]
        (folder / "course.json").write_text(json.dumps({"arm": arm, "stops": told}), "utf-8")
    found = {line.method: line for line in courses_to_result(tmp_path)}
    assert (found["constant"].rates, found["constant"].steps) == ("1e-3", 400)
    assert (found["default"].comparison, found["default"].steps, found["default"].seconds) == ("long", 400, 40)
    assert found["literal"].arrived == 0


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    growth = {"axis": "batch", "value": "8", "facts": FACTS, "rounds": sampled_record("growth")["rounds"]}
    pair = {"plain": [[1.0, False]], "ours": [[2.0, True], [1.0, False]]}
    other = {"device": "cpu", "quick": False, "source": "old"}
    records = {
        REFERENCE: record(REFERENCE, rounds=run()),
        "llava-49k": sampled_record("llava-49k", about=other),
        "small-llava": record("small-llava", skipped="models/small-llava is not there"),
        "methods": record("methods", rounds=[{"plain": [1.0, False], "paper": [4.0, True]}] * 10),
        "memory": record("memory", peaks={"llava-49k": {"plain": 1000.0, "measured": 1010.0}}),
        "growth": record("growth", points=[growth], warm_up=2),
        "time-to-result": {"name": "time-to-result", "arrivals": [KEPT]},
        "trainers": record("trainers", trainers={"Trainer": {"pairs": [pair]}}),
    }
    (tmp_path / "iconqa-nano-llava").mkdir()
    rows = comparison(tmp_path / "iconqa-nano-llava", LOSSES, history=True)
    (tmp_path / "iconqa-nano-llava" / "table.json").write_text(json.dumps({"rows": rows}), "utf-8")
    page = page_of(records, tmp_path)
    assert "takes 1.11 times the time of plain training over 400 steps" in page
    assert "| Llava-49K † | 1000 | 2.00 (2.00 to 2.00) | 20 / 20 ‡ | 1.416 (1.416 to 1.416) |" in page
    assert "`small-llava` was not measured: models/small-llava is not there" in page
    assert "| 1.5" in page
    assert "+1.0" in page
    assert "| batch | 8 | 0.00 | 1000.0 | 2000.0 | 2.00" in page
    assert "`CoMMITTrainer` over `Trainer` | 1 | 1.200" in page
    assert "| iconqa-nano-llava | commit-clr | 1e-3 | 1 of 1 | 30 | 6 |" in page
    assert "| paper | 4.00 (4.00 to 4.00) |" in page
    assert "| mine | CoMMIT-CLR | 1e-3 | 3 of 3 | 250 | 30 |" in page
    assert "Not run: there was no GPU" in page
    assert "no result" not in page


def test_the_page_says_of_a_quick_check_that_it_is_no_result(tmp_path: Path) -> None:
    quick = record(REFERENCE, rounds=run(40), about={"device": "cpu", "quick": True, "source": "abc"})
    assert "They are no result" in page_of({REFERENCE: quick}, tmp_path)


def test_records_without_the_shape_that_the_page_rests_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="measure first"):
        read_records(tmp_path)
    (tmp_path / "broken.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="remove the broken one"):
        read_records(tmp_path)


@pytest.mark.skipif(not (ROOT / "lab/results/overhead").is_dir(), reason="no records are kept yet")
def test_the_page_that_is_kept_is_the_one_of_the_records() -> None:
    kept = (ROOT / "docs/explanation/cost.md").read_text("utf-8")
    assert kept == page_of(read_records(ROOT / "lab/results/overhead"), ROOT / "lab/results")
