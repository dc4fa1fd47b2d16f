"""From run folders to rank correlations whose answer is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commit_lab.studies.hypotheses import (
    CONTROLS,
    HYPOTHESES,
    PAIRS,
    Findings,
    draw,
    estimate_text,
    examine,
    markdown,
    sentence,
)
from commit_lab.studies.kappa_and_loss import RunSummary, read_runs
from commit_lab.studies.rank_correlation import (
    Estimate,
    correlation,
    partial_rank_correlations,
    ranks_within,
    residuals,
    with_intervals,
)
from commit_tuning.errors import UserError
from commit_tuning.train.record import RunRecord

NAN = float("nan")


def write_run(folder: Path, rows: list[dict[str, Any]] | None, seed: int = 0, **record: Any) -> Path:
    """A finished run with this history."""
    folder.mkdir(parents=True)
    recipe = {
        "model": {"name": "nano-blip2", "lora": None},
        "data": {"train_limit": None},
        "train": {"learning_rate": 1e-3, "encoder_learning_rate": None, "steps": 40, "batch_size": 4, "seed": seed},
        "commit": {"method": "constant"},
    }
    recipe["train"]["optimizer"] = "adamw"
    RunRecord(**{"recipe": recipe, "status": "complete", "seed": seed, "folder": folder, **record}).write()
    if rows is not None:
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def history(kappas: tuple[float | None, ...] = (math.e, math.e**3), loss: float | None = 2.0) -> list[dict[str, Any]]:
    """Forty steps: a kappa at every second step, the losses 1 and then `loss`."""
    return [
        {
            "step": i + 1,
            "loss": 1.0 if i < 20 else loss,
            "kappa": kappas[i // 2 % 2] if i % 2 else None,
            "lr/vision": 1.0,
        }
        for i in range(40)
    ]


def test_a_run_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path / "a", history())
    (run,), left_out = read_runs([tmp_path])
    assert left_out == []
    # the last 30 steps hold 15 measurements: log kappa 3, 1, 3, ..., 3
    assert run.distance == pytest.approx(3.0)
    assert run.jumps == pytest.approx(2 / math.sqrt(2))
    assert run.spread == pytest.approx(np.std([3.0] * 8 + [1.0] * 7, ddof=1))
    assert (run.mean_loss, run.half_loss, run.final_loss) == (1.5, 1.0, 2.0)
    assert (run.method, run.rates, run.log_rates) == ("constant", (1e-3, 1e-3), (0.0,))


def test_seeds_share_an_arm_nested_folders_count_once(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"seed-{seed}", history(), seed)
    runs, _ = read_runs([tmp_path, tmp_path / "runs"])
    assert [run.seed for run in runs] == [0, 1]
    assert len({run.arm for run in runs}) == len({run.task for run in runs}) == 1


def test_unusable_runs_are_named_by_reason(tmp_path: Path) -> None:
    write_run(tmp_path / "good", history())
    write_run(tmp_path / "bad-1", None)
    write_run(tmp_path / "bad-2", None)
    write_run(tmp_path / "failed", history(), status="failed")
    write_run(tmp_path / "still", history(kappas=(None, 0.0)))
    write_run(tmp_path / "nan", history(loss=None))
    runs, left_out = read_runs([tmp_path])
    assert len(runs) == 1
    text = "\n".join(left_out)
    assert text.count("\n") == 3
    assert f"2 of 6 runs left out, the first in {tmp_path / 'bad-1'}: no history.jsonl" in text
    for reason in ("not complete", "fewer than 8 measurements of kappa", "not a number"):
        assert reason in text


def test_folders_without_a_usable_run_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json in or below"):
        read_runs([tmp_path])
    write_run(tmp_path / "a", None)
    with pytest.raises(UserError, match=r"none of 1 runs .* no history\.jsonl"):
        read_runs([tmp_path])


def test_ranks_stay_within_their_stratum_and_share_ties() -> None:
    values = np.array([[10.0], [30.0], [20.0], [5.0], [5.0], [7.0]])
    assert ranks_within(values, "aaabbc")[:, 0].tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_correlation_due_to_rates_reverses_within_them() -> None:
    groups = np.repeat(np.arange(5), 4)
    inside = np.tile(np.arange(4.0), 5)
    values = np.stack([10 * groups + inside, 10 * groups - inside], axis=1)
    raw = partial_rank_correlations(values, [(0, 1)], strata="t" * 20)
    given = partial_rank_correlations(values, [(0, 1)], strata="t" * 20, factors=[groups.tolist()])
    assert raw[0] > 0.8
    assert given[0] == pytest.approx(-1.0)


def test_partial_correlation_equals_the_textbook_formula() -> None:
    noise = np.random.default_rng(1).normal(size=(30, 3))
    x, y, z = noise[:, 0] + noise[:, 2], noise[:, 1] + noise[:, 2], noise[:, 2]
    values = np.stack([x, y], axis=1)
    (given,) = partial_rank_correlations(values, [(0, 1)], strata="t" * 30, covariates=z[:, None])
    xy, xz, yz = np.corrcoef(ranks_within(np.stack([x, y, z], axis=1), "t" * 30).T)[[0, 0, 1], [1, 2, 2]]
    assert given == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))


def test_what_the_factors_explain_altogether_is_no_correlation() -> None:
    values = np.array([[1.0, 2.0], [1.0, 5.0], [3.0, 4.0], [3.0, 1.0]])
    left = residuals(values, ["aabb"])
    assert np.isnan(left[:, 0]).all()
    assert left[:, 1] == pytest.approx([-1.5, 1.5, 1.5, -1.5])
    assert math.isnan(correlation(left[:, 0], left[:, 1]))


def test_the_interval_is_over_arms() -> None:
    generator = np.random.default_rng(0)
    arms = np.repeat(np.arange(6), 20)
    effect = generator.normal(size=(6, 2))[arms]
    values = effect + 0.01 * generator.normal(size=effect.shape)
    common = {"pairs": [(0, 1)], "strata": "t" * 120, "draws": 200}
    (by_arm,) = with_intervals(values, clusters=arms.tolist(), **common)
    (by_run,) = with_intervals(values, clusters=list(range(120)), **common)
    assert by_arm.value == by_run.value
    assert by_arm.high - by_arm.low > 2 * (by_run.high - by_run.low)


def made_run(rate: float, seed: int, method: str, kappa: float, loss: float) -> RunSummary:
    """A run whose kappa and loss are as given."""
    task = json.dumps(
        {"model": {"name": "m", "lora": None}, "train": {"steps": 10, "batch_size": 2, "optimizer": "adam"}}
    )
    arm = f"{method} {rate}"
    used = (math.log(rate), math.log(rate) + seed)
    return RunSummary(task, arm, method, (rate, rate), seed, kappa, kappa, kappa, loss, loss, loss, used)


@pytest.fixture(scope="module")
def findings() -> Findings:
    """Loss falls with kappa over rates, and rises with it within a rate."""
    runs = [
        made_run(rate, seed, method, kappa=10 * i + j + 0.1 * seed, loss=-10.0 * i + j + 0.01 * seed)
        for i, rate in enumerate((1e-4, 3e-4, 1e-3, 3e-3))
        for j, method in enumerate(("constant", "commit-clr", "commit"))
        for seed in range(3)
    ]
    return examine(runs, draws=50)


def test_the_findings_say_what_the_runs_say(findings: Findings) -> None:
    for pair in PAIRS:
        raw, rates, seeds, _ = findings.estimates[pair]
        assert raw.high < 0
        assert min(rates.value, seeds.low) > 0.9
    for hypothesis in HYPOTHESES:
        text = sentence(hypothesis, findings)
        assert f"Hypothesis {hypothesis.name}" in text
        assert "supported; over 36 runs of 12 arms on 1 task, at equal base rates and seed" in text


def test_the_table_has_a_line_for_every_pair(findings: Findings) -> None:
    lines = markdown(findings).splitlines()
    assert len(lines) == 2 + len(PAIRS)
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4 + len(CONTROLS)}


@pytest.mark.parametrize(
    ("estimate", "word"),
    [
        (Estimate(0.5, 0.1, 0.9), "supported"),
        (Estimate(0.5, -0.1, 0.9), "not shown"),
        (Estimate(-0.5, -0.9, -0.1), "contradicted"),
        (Estimate(0.5, NAN, NAN), "not decided"),
    ],
)
def test_the_verdict_follows_the_interval(findings: Findings, estimate: Estimate, word: str) -> None:
    everywhere = Findings(findings.runs, dict.fromkeys(PAIRS, (estimate,) * len(CONTROLS)))
    assert word in sentence(HYPOTHESES[0], everywhere)


def test_a_correlation_as_text() -> None:
    assert estimate_text(Estimate(0.123, -0.5, 0.456)) == "+0.12 [-0.50, +0.46]"
    assert estimate_text(Estimate(0.1, NAN, NAN)) == "+0.10"
    assert estimate_text(Estimate(NAN, NAN, NAN)) == "\N{EN DASH}"


def test_one_run_decides_nothing() -> None:
    alone = examine([made_run(1e-3, 0, "constant", 1.0, 1.0)], draws=3)
    assert "not decided; 1 run of 1 arm on 1 task" in sentence(HYPOTHESES[1], alone)


def test_figure_shows_every_run_in_every_panel(findings: Findings) -> None:
    panels = draw(findings).axes
    assert len(panels) == len(HYPOTHESES)
    for axes in panels:
        assert sum(len(line.get_xdata()) for line in axes.lines) == len(findings.runs)
