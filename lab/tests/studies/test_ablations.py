"""The studies, what is kept of them and their page, with made-up runs in place of real ones."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commit_lab.cli.app import main as lab
from commit_lab.studies import catalogue
from commit_lab.studies.ablation_page import read_findings, read_records, write_page
from commit_lab.studies.ablations import Plan, Study, adopt_finished_runs, condense, write_records
from commit_lab.studies.catalogue import STUDIES
from commit_tuning.cli import compare as cli
from commit_tuning.cli.app import main
from commit_tuning.errors import UserError
from commit_tuning.train import dataset
from commit_tuning.train.compare import comparison as compare
from commit_tuning.train.compare.arms import screening_arms
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.compare.pool import Job
from commit_tuning.train.record import RunRecord

PLANS = [plan for study in STUDIES.values() for plan in study.plans]
OTHER_DEFAULTS = (
    "commit.controller=compensated",
    "commit.controller.normalization=product",
    "commit.controller.bound=100",
)
WINDOW = Plan(
    name="window-nano-blip2", recipe="iconqa-nano-blip2", rates=(1e-3,), axes=(("commit.kappa_window", (20, 50)),)
)
INTERVAL = replace(WINDOW, name="interval-nano-blip2", axes=(("commit.lr_update_interval", (10, 50)),))
TESTS = {"constant": 0.5, "kappa_window-20": 0.6, "kappa_window-50": 0.7, "interval": 0.4}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the pool by one that writes records; lists the runs that it had to make."""
    runs: list[str] = []

    def run_jobs(jobs: Sequence[Job], workers: int, on_done: Callable[[Job, RunRecord | None], None]) -> None:
        for job in jobs:
            if (record := job.outcome()) is None:
                runs.append(f"{job.folder.parent.name}/{job.recipe.train.seed}")
                record = write_run(job)
            on_done(job, record)

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    monkeypatch.setattr(Comparison, "_check_finished_runs", lambda self, arms: None)  # they are of no data
    monkeypatch.setattr(dataset, "ensure_data", lambda settings, workers: None)
    return runs


def write_run(job: Job) -> RunRecord:
    seed, rate = job.recipe.train.seed, job.recipe.train.learning_rate
    accuracy = next(share for words, share in TESTS.items() if words in job.folder.parent.name) + 0.1 * seed
    record = RunRecord(recipe=job.recipe.for_record(), seed=seed, folder=job.folder, status="complete")
    record.metrics = {
        "val": {"accuracy": accuracy - 0.1}, "test": {"accuracy": accuracy}, "train_loss": 1.0, "overhead": 0.25 + seed
    }  # fmt: skip
    record.data_checksum, record.seconds = "same", {"training": 30.0, "evaluation": 10.0}
    record.hardware, record.versions = {"cpu": "an abacus"}, {"torch": "2"}
    job.folder.mkdir(parents=True)
    record.write()
    rows = [{"smoothed_kappa": math.e ** (2 + seed), "lr/language_model": rate, "lr/vision": rate}] * 4
    (job.folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return record


def finish(plan: Plan, output: Path) -> None:
    Comparison(plan.load(), output / plan.name, plan.axes).run()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("defaults", [(), OTHER_DEFAULTS], ids=["defaults", "other-defaults"])
def test_every_study_is_valid_under_any_default_controller(plan: Plan, defaults: tuple[str, ...]) -> None:
    plan = replace(plan, settings=(*defaults, *plan.settings))
    recipe = plan.load()
    arms = screening_arms(recipe, plan.axes)
    assert len({json.dumps(arm.recipe(recipe, 0).for_record(), sort_keys=True) for arm in arms}) == len(arms) > 1


def test_no_two_comparisons_share_a_folder() -> None:
    assert len({plan.name for plan in PLANS}) == len(PLANS)
    assert all(plan.seeds >= 2 for plan in PLANS)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_the_printed_command_makes_the_same_comparison(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run_comparison(*arguments: Any, **options: Any) -> Any:
        seen.extend(arguments)
        raise UserError("enough")

    monkeypatch.setattr(cli, "run_comparison", run_comparison)
    program, *arguments = shlex.split(plan.command("runs/x"))
    with pytest.raises(SystemExit):
        main(arguments)
    recipe, output, _, axes, _ = seen
    assert program == "commit-tuning"
    assert (recipe, output, axes) == (plan.load(), Path("runs/x") / plan.name, plan.axes)


def test_what_is_kept_of_a_comparison_by_hand(ran: list[str], tmp_path: Path) -> None:
    assert condense("window", "How long?", WINDOW, tmp_path) is None
    finish(WINDOW, tmp_path)
    kept = condense("window", "How long?", WINDOW, tmp_path)
    assert kept is not None
    assert (kept["study"], kept["model"], kept["machine"]) == ("window", "nano-blip2", "an abacus, torch 2")
    assert kept["command"] == WINDOW.command("runs/ablations")
    constant, short, long = kept["rows"]
    assert [row["label"] for row in kept["rows"][1:]] == [
        "CoMMIT-CLR (kappa window 20)", "CoMMIT-CLR (kappa window 50)"
    ]  # fmt: skip
    assert constant["difference"] is None
    assert short["difference"]["mean"] == pytest.approx(0.1)
    assert long["tests"] == pytest.approx([0.7, 0.8])
    assert (long["test"], long["validation"]) == pytest.approx((0.75, 0.65))
    assert long["validation_sd"] == pytest.approx(0.1 / math.sqrt(2))
    assert (long["distance"], long["movement"], long["held"]) == pytest.approx((2.5, 0.0, 0.0))  # log kappa 2 and 3
    assert (long["overhead"], long["seconds"], long["seeds"], long["failed"]) == (0.75, 40.0, 2, 0)
    json.dumps(kept, allow_nan=False)


def test_a_folder_of_another_plan_is_refused(ran: list[str], tmp_path: Path) -> None:
    finish(WINDOW, tmp_path)
    with pytest.raises(UserError, match="another plan of window-nano-blip2"):
        condense("window", "", replace(WINDOW, axes=(("commit.kappa_window", (20,)),)), tmp_path)
    with pytest.raises(UserError, match=r"another plan .*differs in commit"):  # as after a change of a default
        condense("window", "", replace(WINDOW, settings=("commit.controller.drift_target=1e-3",)), tmp_path)


@pytest.mark.parametrize("broken", [True, False], ids=["one-failed", "all-well"])
def test_exit_code_reports_a_failed_comparison(
    broken: bool, ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = {"first": Study(question="?", plans=(WINDOW,)), "second": Study(question="?", plans=(INTERVAL,))}
    monkeypatch.setattr(catalogue, "STUDIES", plans)
    whole = Comparison.run

    def run(self: Comparison) -> None:
        whole(self)
        self.failures += ["seed 0: broken"] if broken and self.folder.name == WINDOW.name else []

    monkeypatch.setattr(Comparison, "run", run)
    with pytest.raises(SystemExit) as end:
        lab(["study", "run", "--output", str(tmp_path)])
    assert end.value.code == int(broken)
    assert {path.name for path in tmp_path.iterdir()} >= {WINDOW.name, INTERVAL.name}
    assert ("run failed" in capsys.readouterr().err) == broken


def test_the_studies_are_listed_with_their_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        lab(["study", "list", "window"])
    assert end.value.code == 0
    plan = STUDIES["window"].plans[0]
    assert plan.command("runs/ablations") in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as end:
        lab(["study", "run", "windows"])
    assert end.value.code == 2
    assert "no study 'windows'" in capsys.readouterr().err


def test_run_shared_by_two_studies_is_made_once(ran: list[str], tmp_path: Path) -> None:
    finish(WINDOW, tmp_path)
    assert len(ran) == 6
    ran.clear()
    assert adopt_finished_runs(INTERVAL, tmp_path) == 4  # Constant LR and, as window 20 and interval 10, the default
    assert adopt_finished_runs(INTERVAL, tmp_path) == 0
    finish(INTERVAL, tmp_path)
    assert sorted(ran) == [f"commit-clr_lr-0.001_commit.lr_update_interval-50/{seed}" for seed in (0, 1)]
    kept = condense("interval", "", INTERVAL, tmp_path)
    assert kept is not None
    assert [row["tests"] for row in kept["rows"]] == [
        pytest.approx([a, a + 0.1]) for a in (TESTS["constant"], TESTS["kappa_window-20"], TESTS["interval"])
    ]


def publish(output: Path, folder: Path, *plans: tuple[str, Plan]) -> str:
    """Records and page of some plans; returns the page."""
    write_records([(name, Study(question=f"Which {name}?", plans=(plan,))) for name, plan in plans], output, folder)
    write_page(folder, folder / "docs" / "page.md", ["interval", "window"])
    return (folder / "docs" / "page.md").read_text(encoding="utf-8")


def test_the_page_comes_from_records_and_findings_alone(ran: list[str], tmp_path: Path) -> None:
    finish(WINDOW, tmp_path)
    finish(INTERVAL, tmp_path)
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "findings.md").write_text("What we saw.\n\n## window\n\nLonger is better.\n\nBy far.\n", encoding="utf-8")
    page = publish(tmp_path, folder, ("window", WINDOW), ("interval", INTERVAL))
    assert page.index("## Interval\n\nWhich interval?") < page.index("## Window\n\nWhich window?")
    assert page.endswith("Longer is better.\n\nBy far.\n")
    assert WINDOW.command("runs/ablations") in page
    row = next(line for line in page.splitlines() if line.startswith("| CoMMIT-CLR (kappa window 50)"))
    assert row.startswith(
        "| CoMMIT-CLR (kappa window 50) | 0.001 | 2 | 65.0 ± 7.1 | 75.0 ± 7.1 | +20.0 [+20.0, +20.0] |"
    )
    assert row.endswith("| 2.50 | 0.00 | 0.0 % | 75.0 % | 40 |")
    for study in ("window", "interval"):
        assert (folder / "docs" / "images" / f"ablation-{study}.png").read_bytes().startswith(b"\x89PNG")
    write_page(folder, folder / "docs" / "again.md", ["interval", "window"])
    assert (folder / "docs" / "again.md").read_text(encoding="utf-8") == page


def test_figure_has_one_panel_per_model(ran: list[str], tmp_path: Path) -> None:
    from commit_lab.studies.ablation_page import draw

    sweep = replace(WINDOW, name="sweep", rates=(1e-4, 1e-3))
    finish(sweep, tmp_path)
    one = condense("window", "", sweep, tmp_path)
    assert one is not None
    figure = draw([one, {**one, "model": "nano-llava"}])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Nano BLIP-2", "Nano LLaVA-1.5"]
    assert all(axes.get_xscale() == "log" for axes in figure.axes)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 3


def test_findings_and_records_that_do_not_fit(ran: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    with pytest.raises(UserError, match="no record in"):
        read_records(folder)
    assert read_findings(folder / "findings.md") == {}
    finish(WINDOW, tmp_path)
    (folder / "findings.md").write_text("## windows\n\nLonger is better.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no record of study 'windows'; found window"):
        publish(tmp_path, folder, ("window", WINDOW))
    (folder / "broken.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the records"):
        read_records(folder)
