"""The regulariser against the same runs without it, from records made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from commit_lab.studies.regularizer_report import accuracy_table, draw, effect_table, into_page
from commit_lab.studies.regularizer_study import NONE, Regularizer, read_arms, step_gain
from commit_tuning.errors import UserError
from commit_tuning.train.compare.table import NOTHING
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord

CONSTANT = "commit.method=constant"
PENALTY = ("commit.regularizer=drift-penalty", "commit.regularizer.weight=0.3", "commit.regularizer.step=optimizer")


def row(kappa: float | None, **columns: float) -> dict[str, Any]:
    """A line of a history; columns without a module are given to both."""
    modules = {f"{key}/{m}": value for key, value in columns.items() for m in ("language_model", "vision")}
    return {"loss": 1.0, "grad_norm": 4.0, "kappa": kappa, **modules}


ROWS = [
    row(1.0, step_norm=0.1, grad_norm=0.5, drift=0.005, lr=1e-3),
    row(None),
    row(math.e, step_norm=0.3, grad_norm=0.7, drift=0.005, lr=1e-3),
    row(1.0, step_norm=0.2, grad_norm=0.6, drift=0.005, lr=1e-3),
]


def write_run(
    folder: Path, *changes: str, seed: int = 0, test: float = 0.5, rows: list[dict[str, Any]] = ROWS, gap: float = 0.25
) -> None:
    recipe = load_recipe("iconqa-nano-blip2", ["train.learning_rate=1e-3", "train.steps=4", *changes])
    folder.mkdir()
    metrics: dict[str, Any] = {"val": {"accuracy": test}, "test": {"accuracy": test}}
    if gap:
        metrics |= {"val_loss": 0.5 + gap, "seen_loss": 0.5}
    parameters, seconds = {"vision": 2, "language_model": 1}, {"training": 2.0}
    record = RunRecord(recipe=recipe.for_record(), seed=seed, folder=folder, parameters=parameters, seconds=seconds)
    record.status, record.metrics = "complete", metrics
    record.write()
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))


def test_a_run_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path / "a", CONSTANT, "commit.regularizer=lookahead", "commit.regularizer.weight=2.0")
    [arm] = read_arms([tmp_path])
    assert arm.regularizer == Regularizer("lookahead", "raw", "given", 2.0)
    assert (arm.test, arm.validation) == (None, None)  # nothing to compare with
    [run] = arm.runs
    assert list(run.step_norm) == ["language_model", "vision"]
    assert run.step_norm["vision"] == 0.2
    assert run.grad_norm["vision"] == pytest.approx(0.6 * 4.0)  # clipped from 4 to the recipe's 1
    assert run.predicted_gain["vision"] == pytest.approx(1e-3 * 2.0 * 2 * 0.005 / 0.2**2)
    assert run.kappa_noise == pytest.approx(math.sqrt(1 / 2))  # of log kappa 1 and 0, after a quarter of the run
    assert (run.gap, run.step_seconds) == (0.25, 0.5)
    assert math.isnan(step_gain(0.1, 0.0, 1e-3, 1.0))


def test_old_history_has_no_norms_and_no_gap(tmp_path: Path) -> None:
    old = [{"loss": 1.0, "kappa": 1.0, "grad_norm/vision": 0.5, "drift/vision": 0.1, "lr/vision": 1e-3}] * 4
    write_run(tmp_path / "a", CONSTANT, *PENALTY, rows=old, gap=0)
    [arm] = read_arms([tmp_path])
    [run] = arm.runs
    known = (*run.step_norm.values(), *run.grad_norm.values(), *run.predicted_gain.values(), run.gap)
    assert all(map(math.isnan, known))
    assert (
        effect_table([arm])
        .splitlines()[2]
        .endswith(f"| {NOTHING} / {NOTHING} | {NOTHING} | {NOTHING} / {NOTHING} | 0.00 | {NOTHING} | 500 |")
    )


def test_each_arm_is_paired_with_its_unregularized_twin(tmp_path: Path) -> None:
    for seed, test in ((0, 0.5), (1, 0.6)):
        write_run(tmp_path / f"c{seed}", CONSTANT, seed=seed, test=test)
        write_run(tmp_path / f"p{seed}", CONSTANT, *PENALTY, seed=seed, test=test + 0.1)
    write_run(tmp_path / "p2", CONSTANT, *PENALTY, seed=2, test=0.9)
    write_run(tmp_path / "clr", "commit.method=commit-clr", test=0.7)
    write_run(tmp_path / "commit", "commit.method=commit", test=0.65)
    write_run(tmp_path / "other-rate", CONSTANT, "train.learning_rate=1e-4", test=0.1)
    write_run(tmp_path / "fewer-questions", CONSTANT, "data.test_limit=10", test=0.2)
    arms = read_arms([tmp_path])
    assert [(arm.setting.method, arm.setting.rates, arm.regularizer) for arm in arms] == [
        ("CoMMIT-CLR, trust-region", "0.001", NONE),
        ("CoMMIT-CLR, trust-region", "0.001", Regularizer("lookahead", "raw", "given", 1.0)),
        ("Constant LR", "0.001", NONE),
        ("Constant LR", "0.001", Regularizer("previous-step", "optimizer", "given", -0.3)),
    ]
    assert arms[0].test is None
    assert arms[1].test is not None
    assert arms[1].test.mean == pytest.approx(-0.05)
    penalty = arms[3].test
    assert penalty is not None
    assert (penalty.mean, penalty.seeds) == (pytest.approx(0.1), 2)
    lines = accuracy_table(arms).splitlines()
    assert lines[-1] == (
        "| nano-blip2 | Constant LR | 0.001 | drift-penalty, -0.3, optimizer | 3 | 73.3 ± 15.3 | +10.0 [+10.0, +10.0] "
        "| 73.3 ± 15.3 | +10.0 [+10.0, +10.0] |"
    )


def test_norms_show_the_factor_to_unregularized_seed(tmp_path: Path) -> None:
    twice = [{key: 2 * v if v and key.startswith("step_norm") else v for key, v in line.items()} for line in ROWS]
    write_run(tmp_path / "c", CONSTANT)
    write_run(tmp_path / "p", CONSTANT, *PENALTY, rows=twice, gap=0.5)
    lines = effect_table(read_arms([tmp_path])).splitlines()
    assert lines[2].endswith(f"| none | 0.2 / 0.2 | {NOTHING} | 2.4 / 2.4 | 0.71 | 0.250 | 500 |")
    assert lines[3].endswith(f"| 0.4 (x2) / 0.4 (x2) | {NOTHING} | 2.4 (x1) / 2.4 (x1) | 0.71 | 0.500 | 500 |")


def with_step_norm(norm: float | None, columns: str = "step_norm") -> list[dict[str, Any]]:
    return [{key: norm if key.startswith(columns) else value for key, value in line.items()} for line in ROWS]


def test_median_factor_omits_seeds_without_one(tmp_path: Path) -> None:
    """Norms without: zero, unknown, 0.1, 0.1, 0.1; with: 0.4 each. The factors are 4 in the three that have one."""
    for seed, norm in enumerate((0.0, None, 0.1, 0.1, 0.1)):
        write_run(tmp_path / f"c{seed}", CONSTANT, seed=seed, rows=with_step_norm(norm))
        write_run(tmp_path / f"p{seed}", CONSTANT, *PENALTY, seed=seed, rows=with_step_norm(0.4))
    lines = effect_table(read_arms([tmp_path])).splitlines()
    assert f"| none | 0.1 / 0.1 | {NOTHING} |" in lines[2]
    assert f"| 0.4 (x4) / 0.4 (x4) | {NOTHING} |" in lines[3]


def test_module_at_rest_in_baseline_has_no_factor(tmp_path: Path) -> None:
    write_run(tmp_path / "c", CONSTANT, rows=with_step_norm(0.0, "step_norm/vision"))
    write_run(tmp_path / "p", CONSTANT, *PENALTY)
    assert f"| 0.2 (x1) / 0.2 | {NOTHING} |" in effect_table(read_arms([tmp_path])).splitlines()[3]


def test_the_figure_has_a_panel_for_each_reading(tmp_path: Path) -> None:
    write_run(tmp_path / "c", CONSTANT, test=0.5)
    write_run(tmp_path / "p", CONSTANT, *PENALTY, test=0.6)
    lookahead = (CONSTANT, "commit.regularizer=lookahead", "commit.regularizer.labels=sampled")
    write_run(tmp_path / "l", *lookahead, test=0.45)
    axes = draw(read_arms([tmp_path])).axes
    assert [panel.get_title(loc="left") for panel in axes] == ["nano-blip2, lookahead", "nano-blip2, previous-step"]
    points = [[tuple(line.get_xydata()[0]) for line in panel.containers[0].lines[:1]] for panel in axes]  # type: ignore[union-attr,index]
    assert points == [[pytest.approx((1.0, -5.0))], [pytest.approx((-0.3, 10.0))]]
    assert axes[0].containers[0].get_label() == "Constant LR at 0.001, raw, sampled answers"


def test_only_what_is_between_the_markers_is_replaced() -> None:
    begin, end = "<!-- figures: begin -->", "<!-- figures: end -->"
    page = into_page(f"before\n{begin}\nold\n{end}\nafter\n", "| new |\n")
    assert page == f"before\n{begin}\n\n| new |\n\n{end}\nafter\n"
    assert into_page(page, "| new |\n") == page
    for wrong in ("nothing", f"{end}\n{begin}", f"{begin}{end}{begin}{end}"):
        with pytest.raises(UserError, match="the page needs the line"):
            into_page(wrong, "new")


def test_runs_without_a_regulariser_are_no_study(tmp_path: Path) -> None:
    write_run(tmp_path / "c", CONSTANT)
    with pytest.raises(UserError, match="no complete run with a regularizer"):
        read_arms([tmp_path])
    write_run(tmp_path / "p", CONSTANT, *PENALTY, seed=1)
    with pytest.raises(UserError, match="same seed and setting"):
        draw(read_arms([tmp_path]))
