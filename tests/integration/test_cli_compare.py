"""`commit-tuning compare` with real processes: table, resumption, crashes, and its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_experiment import make_experiment, run

from commit_tuning.train.record import RunRecord, load_records

ARMS = ("constant_lr-0.001", "commit-clr_lr-0.001")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def compared(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "table"
    assert run(["compare", recipe, "-o", output, "--jobs", "2"]) == 0
    return output


def test_every_arm_has_every_seed_and_no_weights(compared: Path) -> None:
    for arm in ARMS:
        for seed in (0, 1):
            record = RunRecord.read(compared / "runs" / arm / f"seed-{seed}")
            assert (record.complete, record.seed) == (True, seed)
            assert record.hardware["torch_threads"] == 1
            assert not (record.folder / "tuned.safetensors").exists()
    assert json.loads((compared / "compare.json").read_text())["status"] == "complete"


def test_runs_of_a_seed_are_paired(compared: Path) -> None:
    first = [
        [RunRecord.read(compared / "runs" / arm / f"seed-{s}").history()[0]["loss"] for s in (0, 1)] for arm in ARMS
    ]
    assert first[0] == first[1]
    assert first[0][0] != first[0][1]


def test_the_table_holds_the_numbers_of_the_runs(compared: Path) -> None:
    rows = json.loads((compared / "table.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["Constant LR", "CoMMIT-CLR"]
    for row, arm in zip(rows, ARMS, strict=True):
        tests = [RunRecord.read(compared / "runs" / arm / f"seed-{seed}").accuracy("test") for seed in (0, 1)]
        assert row["test"] == pytest.approx(sum(tests) / 2)
        assert (row["seeds"], row["failed"]) == (2, 0)
    assert "| **CoMMIT-CLR** | 0.001 |" in (compared / "table.md").read_text()


def test_only_what_is_missing_is_run_again(compared: Path, recipe: Path) -> None:
    folders = [compared / "runs" / arm / f"seed-{seed}" for arm in ARMS for seed in (0, 1)]
    before = {folder: (folder / "history.jsonl").stat().st_mtime_ns for folder in folders}
    broken = RunRecord.read(folders[0])
    broken.status = "running"
    broken.write()
    shutil.rmtree(folders[3])
    assert run(["compare", recipe, "-o", compared]) == 0
    again = {folder for folder in folders if (folder / "history.jsonl").stat().st_mtime_ns != before[folder]}
    assert again == {folders[0], folders[3]}
    assert all(RunRecord.read(folder).complete for folder in folders)


def timeless(folder: Path) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """The table without its seconds, and the metrics of all runs without what measuring took."""
    lines = (folder / "table.md").read_text().splitlines()
    seconds = lines[2].split("|").index(" Seconds ")
    cells = [[cell for n, cell in enumerate(line.split("|")) if n != seconds] for line in lines]
    return cells, [record.metrics | {"overhead": None} for record in load_records(folder)]


def test_a_cluster_gives_the_same_table(compared: Path, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    shutil.copytree(compared, tmp_path / "spread")
    for arm in ARMS:
        shutil.rmtree(tmp_path / "spread" / "runs" / arm / "seed-0")
    assert run(["compare", recipe, "-o", tmp_path / "spread", "--jobs", "2", "--cluster", "local"]) == 0
    assert timeless(tmp_path / "spread") == timeless(compared)
    tickets = {path.parent.name for path in (tmp_path / "spread").rglob("cluster.json")}
    assert tickets == {"seed-0"}
    record = RunRecord.read(tmp_path / "spread" / "runs" / ARMS[0] / "seed-0")
    assert record.hardware["torch_threads"] == 1
    assert "Job completed successfully" in (record.folder / "log.txt").read_text()


def test_another_recipe_in_the_same_folder_is_refused(
    compared: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", recipe, "-o", compared, "train.weight_decay=0.1"]) == 2
    assert "it differs in train.weight_decay" in capsys.readouterr().err
    assert (compared / "table.json").is_file()


def test_comparison_reports_a_failed_run_and_continues(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--rates", "1e-3,1e30", "--seeds", "1", "train.max_grad_norm=null", "train.steps=2"]
    assert run(["compare", recipe, "-o", tmp_path, *settings, "--methods", "constant"]) == 1
    assert "Constant LR at 1e+30, seed 0: RunFailedError: the loss is" in capsys.readouterr().err
    good, bad = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert (good["chosen"], good["seeds"], bad["chosen"], bad["failed"]) == (True, 1, False, 1)
    assert json.loads((tmp_path / "compare.json").read_text())["status"] == "failed"
    assert "Traceback" in (tmp_path / "runs" / "constant_lr-1e+30" / "seed-0" / "log.txt").read_text()
    assert run(["report", tmp_path]) == 0
    assert "Runs that failed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_report_of_a_comparison(compared: Path) -> None:
    assert run(["report", compared]) == 0
    page = (compared / "report.html").read_text(encoding="utf-8")
    for words in ("Comparison of methods", "CoMMIT-CLR, 0.001", "Difference [95 % CI]", "geometric mean over 2 seeds"):
        assert words in page
    assert page.count("<svg role") == 7  # accuracy, loss, kappa, rates, drift, H, gradients
    assert page.count('class="card"') == 3


def test_an_unfinished_comparison_reports_its_runs_so_far(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(compared / "compare.json", tmp_path)
    assert run(["report", tmp_path]) == 2
    assert "no run below" in capsys.readouterr().err
    shutil.copytree(compared / "runs" / ARMS[1], tmp_path / "runs" / ARMS[1])
    assert run(["report", tmp_path]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "runs so far: 2 complete" in page
    assert "CoMMIT-CLR" in page
