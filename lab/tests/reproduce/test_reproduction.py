"""Tables and figures of the paper, from made-up runs in place of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from commit_lab.reproduce import tables
from commit_lab.reproduce.figures import kappa_table
from commit_lab.reproduce.plan import METHODS, ROWS, Grid, Row, rows_named
from commit_lab.reproduce.published import TABLE1, TABLE2
from commit_lab.reproduce.run import TARGETS, Reproduction, rows_of, runs_of, targets_of
from commit_lab.reproduce.tables import Cell, Line, blind_score, floors_of, seeds_for, summary, table1, tasks_table
from commit_tuning.data.sample import Sample
from commit_tuning.data.tasks import Task
from commit_tuning.errors import UserError
from commit_tuning.report.curves import Group
from commit_tuning.train import dataset
from commit_tuning.train.compare import comparison as compare
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.compare.pool import Job
from commit_tuning.train.compare.table import NOTHING
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import HISTORY, RunRecord

SCORE = {"constant": 0.5, "feature-cd": 0.4, "language-cd": 0.3, "commit-clr": 0.6, "commit": 0.2, "literal": 0.1}


def made_up(job: Job) -> RunRecord:
    """A record whose score tells the method, the rate and the seed."""
    recipe, seed = job.recipe, job.recipe.train.seed
    arm = job.folder.parent.name.partition("_lr-")[0]
    score = SCORE.get(arm, 0.15) + 0.01 * seed + (0.001 if recipe.train.learning_rate == 1e-3 else 0.0)
    record = RunRecord(recipe=recipe.for_record(), seed=seed, folder=job.folder, status="complete", data_checksum="1")
    record.metrics = {"val": {"accuracy": score}, "test": {"accuracy": score}, "train_loss": 1.0}
    job.folder.mkdir(parents=True, exist_ok=True)
    keys = ("loss", "kappa", "h/vision", "h/language_model", "grad_norm/vision", "grad_norm/language_model")
    norms = {"theta_norm/vision": 2.0, "theta_norm/language_model": 1.0, "lr/vision": 1.0, "lr/language_model": 1.0}
    rows = [{"step": step, **dict.fromkeys(keys, 0.5 + 0.1 * step), **norms} for step in range(1, 9)]
    (job.folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return record


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the pool, the data and the untuned model; lists the runs in order."""
    runs: list[str] = []

    def run_jobs(jobs: Sequence[Job], workers: int, on_done: Callable[[Job, RunRecord | None], None]) -> None:
        for job in jobs:
            runs.append("/".join(job.folder.parts[-4:]))
            on_done(job, made_up(job))

    def ask(recipe: Recipe, split: str) -> object:
        return type("Asked", (), {"scores": {"accuracy": 0.25}})

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    monkeypatch.setattr(Comparison, "_check_finished_runs", lambda self, arms: None)  # they are of no data
    monkeypatch.setattr(dataset, "ensure_data", lambda settings, workers: None)
    monkeypatch.setattr(tables, "ask", ask)
    monkeypatch.setattr(tables, "blind_score", lambda recipe: 0.125)
    return runs


def reproduction(folder: Path, rows: str = "blip2-iconqa") -> Reproduction:
    def start(recipe: Recipe, place: Path) -> Comparison:
        comparison = Comparison(recipe, place)
        comparison.run()
        return comparison

    return Reproduction(Grid("nano", folder, ("compare.seeds=2",)), start, rows_named(rows))


def test_the_rows_are_the_papers() -> None:
    assert [row.name for row in ROWS] == list(TABLE1)
    assert {len(cells) for cells in TABLE1.values()} == {5}
    assert TABLE2["commit"] == {row: TABLE1[row]["commit"] for row in TABLE2["commit"]}
    assert TABLE2["0.0001"] == {row: TABLE1[row]["constant"] for row in TABLE2["0.0001"]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_has_a_recipe(row: Row) -> None:
    recipe = Grid("nano", Path()).row(row)
    assert recipe.data.dataset == f"nano-{row.task}"
    assert recipe.compare.methods == METHODS
    assert recipe.generation().max_new_tokens == (20 if row.task in {"macs", "song-describer"} else 4)


def test_rows_by_name_and_by_model() -> None:
    assert [row.name for row in rows_named("salmonn-macs,blip2")] == [
        *("blip2-aokvqa", "blip2-iconqa", "blip2-textvqa", "salmonn-macs")
    ]
    assert rows_named(None) == ROWS
    with pytest.raises(UserError, match="'blip3' is no row; choose of blip2, salmonn"):
        rows_named("blip3")


def test_table1_shows_chosen_rates_and_the_papers_numbers(ran: list[str], tmp_path: Path) -> None:
    page = reproduction(tmp_path).make("table1")
    assert (tmp_path / "table1.md").read_text("utf-8") == page
    head, _, line = page.splitlines()[:3]
    assert head.count("|") == line.count("|") == len(METHODS) + 4
    # 0.501 and 0.511 over two seeds: mean 50.6, half an interval t(0.975, 1) * 0.00707 / sqrt(2) = 12.706 * 0.5 points
    assert line.startswith("| BLIP-2 IconQA | 2 | 50.6 ± 6.4 (37.2) | 40.6 ± 6.4 (35.5) | 30.6 ± 6.4 (34.5) |")
    assert "| **60.6 ± 6.4** (39.1) |" in line
    assert line.endswith("| +10.0 [+10.0, +10.0] |")
    assert "above Constant LR at its best rate in 1 of 1 rows (the whole interval above in 1, below in 0)" in page
    stored = json.loads((tmp_path / "table1.json").read_text("utf-8"))[0]
    assert stored["cells"]["constant"]["by_seed"] == {"0": 0.501, "1": 0.511}
    assert stored["cells"]["constant"]["rates"] == "0.001"
    assert (stored["untuned"], stored["blind"]) == (0.25, 0.125)
    assert set(stored["constant"]) == {"0.0003", "0.001", "0.003"}


def test_the_published_table_is_that_of_its_records() -> None:
    lab = Path(__file__).parents[3] / "lab"
    lines = [Line.from_dict(plain) for plain in json.loads((lab / "results" / "table1" / "table1.json").read_text())]
    page = (lab / "reports" / "reproduce.md").read_text("utf-8")
    assert table1(lines) in page
    assert table1(lines) in (lab / "reports" / "summary.md").read_text("utf-8")
    assert tasks_table(lines) in page
    assert [line.to_dict() for line in lines] == [Line.from_dict(line.to_dict()).to_dict() for line in lines]


def test_figures_and_tables_share_their_runs(ran: list[str], tmp_path: Path) -> None:
    making = reproduction(tmp_path, "blip2")
    making.make("table1")
    before = list(ran)
    assert "Constant LR, 0.0003 | 50.5" in making.make("table2")
    making.make("figure4")
    assert ran == before
    for figure in ("figure2", "figure3", "figure6", "figure7"):
        page = making.make(figure)
        assert (tmp_path / f"{figure}.png").stat().st_size > 10_000
        assert page.startswith("![")
        assert "\nIn the paper: " in page
    assert len(set(ran)) == len(ran)
    assert {run.split("/")[0] for run in ran[len(before) :]} == {"blip2-textvqa-dynamics"}
    assert "| Synced LR | " in page or "| Synced LR | " in (tmp_path / "figure6.md").read_text("utf-8")


def test_summary_counts_best_cells_and_intervals_below_zero() -> None:
    def cell(score: float, low: float, collapsed: int = 0, failed: int = 0) -> Cell:
        difference = tables.Difference(score - 0.5, low, score, 3)
        return Cell("0.1", {0: score, 1: score + 0.02}, failed, collapsed, difference)

    def line(ours: float, low: float) -> Line:
        literal, tie = cell(0.6, 0.0, collapsed=2), cell(ours + 1e-5, low, failed=1)
        cells = {"constant": cell(0.5, 0.0), "commit-clr": cell(ours, low), "commit": tie, "literal": literal}
        return Line("blip2-iconqa", "a", "iconqa", 0.1, 0.2, cells, {})

    lines = [line(0.7, 0.1), line(0.55, -0.1), line(0.4, -0.2)]
    text = summary(lines)
    assert "in 2 of 3 rows (the whole interval above in 1, below in 0)" in text
    assert "the best of all methods in 0, with or without the regulariser in 1; " in text
    assert "literal CoMMIT is above Constant LR in 3" in text
    assert f"| {NOTHING} |" in table1(lines)
    tied, below = table1(lines).splitlines()[2:4]
    assert tied.count("**71.0 ± 12.7**") == 2
    assert tied.count("†2") == tied.count("‡1") == 1
    assert "**61.0 ± 12.7** †2" in below
    assert "| a | iconqa | 10.0 | 20.0 | 51.0 | 0.0 | 2 | 2 |" in tasks_table(lines)


def test_untuned_model_is_evaluated_once_on_its_device(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reproduction(tmp_path).make("table1").count("| 25.0 | 12.5 |") == 1
    monkeypatch.setattr(tables, "ask", lambda recipe, split: pytest.fail("asked again"))
    assert reproduction(tmp_path).make("table1").count("| 25.0 | 12.5 |") == 1
    away = reproduction(tmp_path / "away")
    away.grid = Grid("nano", tmp_path / "away", ("compare.seeds=2", "train.device=cuda:99"))
    assert f"| {NOTHING} | 12.5 |" in away.make("table1")
    assert not list((tmp_path / "away").rglob(tables.FLOORS))


def test_rows_keep_every_table_and_figure_to_them(tmp_path: Path) -> None:
    rows = rows_named("blip2-iconqa,salmonn-macs")
    assert targets_of("all", rows) == ["table1", "table2", "figure1", "figure4", "figure5"]
    assert [row.name for row in rows_of("table2", rows)] == ["blip2-iconqa"]
    assert targets_of("all", ROWS) == list(TARGETS)
    with pytest.raises(UserError, match=r"--rows: figure6 shows none of blip2-iconqa, salmonn-macs; leave --rows out"):
        targets_of("figure6", rows)


def test_the_methods_of_a_table_are_not_chosen() -> None:
    with pytest.raises(UserError, match=r"compare.methods: the paper's tables have all methods"):
        Grid("nano", Path(), ("compare.methods=[literal]",)).row(ROWS[0])


def test_kappas_above_and_below_one_do_not_cancel() -> None:
    def group(label: str, *kappas: float) -> Group:
        return Group(label, "constant", (), tuple(tuple([{"kappa": kappa}] * 3) for kappa in kappas))

    both, none = kappa_table([group("both", 10.0, 0.1), group("none")]).splitlines()[2:]
    assert both == "| both | 1 | 0.00 | 2.30 | 2 |"
    assert none == f"| none | {NOTHING} | {NOTHING} | {NOTHING} | 0 |"


def test_seeds_that_a_spread_asks_for() -> None:
    # t(0.975, 3) = 3.182: 3.182 * 0.0125 / 2 = 0.0199; with three seeds 4.303 * 0.0125 / 1.732 = 0.0311
    assert seeds_for(0.0125) == 4
    assert seeds_for(None) == NOTHING


def test_blind_score_uses_the_commonest_answer_per_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(kind: str, answer: str, choices: tuple[str, ...] | None = None) -> Sample:
        return Sample("0", kind, "?", choices, (answer,), None)

    split = {
        "train": [sample("a", "cat"), sample("a", "cat"), sample("a", "dog"), sample("b", "two"), sample("b", "dog")],
        "test": [sample("a", "cat"), sample("a", "dog"), sample("b", "dog", ("dog", "cow")), sample("b", "one")],
    }
    task = Task(lambda root, name, limit, strict: split[name], "iconqa", 4)
    monkeypatch.setattr(tables, "TASKS", {"iconqa": task})
    monkeypatch.setattr(tables, "ensure_data", lambda data: Path())
    recipe = load_recipe("iconqa-nano-blip2", ["data.dataset=iconqa", "data.root=x"])
    assert blind_score(recipe) == 0.5  # cat is right once in two, dog where there is no two to choose, two is wrong


def test_the_number_of_runs_is_what_is_run(ran: list[str], tmp_path: Path) -> None:
    making = reproduction(tmp_path)
    making.make("table1")
    assert len(ran) == runs_of(making.grid.row(rows_named("blip2-iconqa")[0]))


@pytest.mark.parametrize("target", TARGETS)
def test_paper_scale_states_needs_without_running(
    target: str, ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commit_lab.reproduce.run.figure1", lambda folder: "drawn")
    monkeypatch.setattr("commit_lab.reproduce.paper_scale.needs", lambda name, settings: name)
    monkeypatch.setattr("commit_lab.reproduce.paper_scale.markdown", lambda names: "needs " + ",".join(names))
    grid = Grid("paper", tmp_path, ("train.seed=3",), Path("there"))
    text = Reproduction(grid, lambda recipe, place: pytest.fail("runs")).needs(target)
    assert (f"reproduce {target} train.seed=3 --scale paper" in text) == (target != "figure1")
    assert "--rows" not in text
    expected = {
        "table1": "needs paper-blip2,paper-salmonn,paper-internvl2,paper-llava",
        "figure1": "drawn",
        "figure5": "needs paper-salmonn",
    }
    assert text.endswith(expected.get(target, "needs paper-blip2"))
    assert ("there/textvqa" in text) == (target not in {"figure1", "figure5"})
    assert not ran


@pytest.mark.parametrize("name", ["figure1.md", "figure1.json", "figure1.png"])
def test_file_of_the_user_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    made = Reproduction(Grid("nano", tmp_path), lambda recipe, place: pytest.fail("runs"))
    with pytest.raises(UserError, match=f"{name} is there and no record"):
        made.make("figure1")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_file_of_a_reproduction_is_made_again(ran: list[str], tmp_path: Path) -> None:
    made = Reproduction(Grid("nano", tmp_path), lambda recipe, place: pytest.fail("runs"))
    made.make("figure1")
    (tmp_path / "figure1.md").write_text("half")
    made.make("figure1")
    assert (tmp_path / "figure1.md").read_text().startswith("![Figure 1]")


@pytest.mark.parametrize("text", ["{", "{}", '{"untuned": "high", "blind": 0}', "[" * 100_000])
def test_damaged_floors_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "floors.json").write_text(text)
    comparison = Comparison(load_recipe("nano-blip2"), tmp_path)
    with pytest.raises(UserError, match=r"floors\.json is damaged"):
        floors_of(comparison)
