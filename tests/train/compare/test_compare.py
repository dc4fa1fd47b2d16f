"""The protocol of a comparison, with made-up runs in place of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from small_experiment import EXAMPLE

from commit_tuning.errors import UserError
from commit_tuning.train import dataset
from commit_tuning.train.compare import comparison as compare
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.compare.pool import Job
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord

PLAN = (
    "compare.methods=[commit-clr]",
    "compare.rates=[1e-3, 1e-2]",
    "compare.static_grid={}",
    "compare.seeds=3",
    "compare.screen_seeds=1",
)
VALIDATION = {
    "constant_lr-0.001": 0.5,
    "constant_lr-0.01": 0.4,
    "commit-clr_lr-0.001": 0.3,
    "commit-clr_lr-0.01": 0.6,
    "static_lr-0.001-0.01": 0.2,
    "static_lr-0.01-0.001": 0.7,
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the pool by one that makes records up; lists the runs in order."""
    runs: list[str] = []

    def run_jobs(jobs: Sequence[Job], workers: int, on_done: Callable[[Job, RunRecord | None], None]) -> None:
        for job in jobs:
            arm, seed = job.folder.parent.name, job.recipe.train.seed
            runs.append(f"{arm}/{seed}")
            record = RunRecord(recipe=job.recipe.for_record(), seed=seed, folder=job.folder, data_checksum="same")
            if (arm, seed) != ("commit-clr_lr-0.01", 2):  # one run dies
                record.status = "complete"
                record.metrics = {
                    "val": {"accuracy": VALIDATION.get(f"{arm}/{seed}", VALIDATION[arm])},
                    "test": {"accuracy": 0.1 * seed},
                    "train_loss": 1.0,
                }
            on_done(job, record)

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    monkeypatch.setattr(dataset, "ensure_data", lambda settings, workers: None)
    return runs


def test_screening_then_confirmation(ran: list[str], tmp_path: Path) -> None:
    comparison = Comparison(load_recipe(EXAMPLE, PLAN), tmp_path)
    comparison.run()
    assert ran[:6] == [f"{arm}/0" for arm in VALIDATION]
    confirmed = ["constant_lr-0.001", "constant_lr-0.01", "commit-clr_lr-0.01", "static_lr-0.01-0.001"]
    assert ran[6:] == [f"{arm}/{seed}" for seed in (1, 2) for arm in confirmed]
    chosen = {(row.label, row.rates): row.chosen for row in comparison.rows}
    assert chosen == {
        ("Constant LR", "0.001"): True,
        ("Constant LR", "0.01"): False,
        ("CoMMIT-CLR", "0.01"): True,
        ("Static pair", "0.01 / 0.001"): True,
    }
    assert [row.seeds for row in comparison.rows] == [3, 3, 2, 3]
    assert [row.seeds for row in comparison.screening] == [1] * 6
    assert [row.failed for row in comparison.rows] == [0, 0, 1, 0]
    assert len(comparison.failures) == 1
    assert json.loads((tmp_path / "compare.json").read_text())["status"] == "failed"


def test_two_processes_do_not_work_in_one_folder(ran: list[str], tmp_path: Path) -> None:
    recipe = load_recipe(EXAMPLE, PLAN)

    def second(task: str, done: int, total: int, note: str = "") -> None:
        with pytest.raises(UserError, match=r"another process is at work in .*; wait for it, or choose another"):
            Comparison(recipe, tmp_path).run()

    Comparison(recipe, tmp_path, progress=second).run()
    before = len(ran)
    Comparison(recipe, tmp_path).run()
    assert len(ran) == 2 * before


def test_comparison_without_alternatives_runs_every_seed(ran: list[str], tmp_path: Path) -> None:
    plan = ("compare.rates=[1e-3]", "compare.static_grid=null", "compare.first_seed=7", "compare.seeds=2")
    comparison = Comparison(load_recipe(EXAMPLE, ("compare.methods=[commit-clr]", *plan)), tmp_path)
    comparison.run()
    assert ran == [f"{arm}_lr-0.001/{seed}" for seed in (7, 8) for arm in ("constant", "commit-clr")]
    assert [row.seeds for row in comparison.rows] == [2, 2]


def test_a_failed_run_is_never_chosen(ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = (*PLAN[:2], "compare.static_grid=null", "compare.seeds=3", "compare.screen_seeds=3")
    monkeypatch.setitem(VALIDATION, "commit-clr_lr-0.01", 0.31)  # the best of two seeds of three: 0.21 in the mean
    comparison = Comparison(load_recipe(EXAMPLE, plan), tmp_path)
    comparison.run()
    assert [row.rates for row in comparison.rows if row.method == "commit-clr"] == ["0.001"]


def test_constant_lr_is_chosen_on_all_seeds(ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rate of Constant LR runs with every seed: none of that is held back from the baseline."""
    for name in ("constant_lr-0.01", "commit-clr_lr-0.001"):
        for seed in (1, 2):
            monkeypatch.setitem(VALIDATION, f"{name}/{seed}", 0.9)
    comparison = Comparison(load_recipe(EXAMPLE, PLAN), tmp_path)
    comparison.run()
    chosen = {row.method: row.rates for row in comparison.rows if row.chosen}
    assert (chosen["constant"], chosen["commit-clr"]) == ("0.01", "0.01")
    assert [arm.rates for arm in comparison.chosen if arm.method == "constant"] == ["0.01"]
    assert {row.rates for row in comparison.rows if row.difference is None and row.chosen} == {"0.01"}


def test_runs_on_different_data_are_no_comparison(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = compare.run_jobs

    def run_jobs(jobs: Sequence[Job], workers: int, on_done: Callable[[Job, RunRecord | None], None]) -> None:
        def changed(job: Job, record: RunRecord | None) -> None:
            assert record is not None
            record.data_checksum = str(record.seed)
            on_done(job, record)

        made_up(jobs, workers, changed)

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    with pytest.raises(UserError, match="different data"):
        Comparison(load_recipe(EXAMPLE, PLAN), tmp_path).run()
    assert not (tmp_path / "table.json").exists()
    assert json.loads((tmp_path / "compare.json").read_text())["status"] == "running"


def test_more_seeds_and_methods_may_be_added_later(ran: list[str], tmp_path: Path) -> None:
    Comparison(load_recipe(EXAMPLE, PLAN), tmp_path).run()
    Comparison(load_recipe(EXAMPLE, [*PLAN, "compare.seeds=4", "compare.methods=[constant]"]), tmp_path).run()
    with pytest.raises(UserError, match=r"it differs in train\.steps"):
        Comparison(load_recipe(EXAMPLE, [*PLAN, "train.steps=9", "commit.switch.latest=200"]), tmp_path).run()


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{")
    with pytest.raises(UserError, match=r"compare\.json is damaged"):
        Comparison(load_recipe(EXAMPLE, PLAN), tmp_path).run()


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"recipe": 1}', '{"recipe": {}, "compare": []}', "[" * 100_000])
def test_damaged_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(UserError, match=r"compare\.json is damaged") as refused:
        Comparison(load_recipe(EXAMPLE, PLAN), tmp_path).run()
    assert "\n" not in str(refused.value)


def test_manifest_without_newer_keys_is_the_same(ran: list[str], tmp_path: Path) -> None:
    Comparison(load_recipe(EXAMPLE, PLAN), tmp_path).run()
    manifest = json.loads((tmp_path / "compare.json").read_text())
    del manifest["recipe"]["model"]["trust_remote_code"]
    (tmp_path / "compare.json").write_text(json.dumps(manifest))
    Comparison(load_recipe(EXAMPLE, PLAN), tmp_path).run()


def test_dangling_manifest_is_not_replaced(ran: list[str], tmp_path: Path) -> None:
    (tmp_path / "compare.json").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"compare\.json is damaged \(No such file"):
        Comparison(load_recipe(EXAMPLE, PLAN), tmp_path).run()
    assert (tmp_path / "compare.json").is_symlink()
