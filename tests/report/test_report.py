"""A report says what there is: of runs finished or not, of sound records alone, in a page that does nothing."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_records import ARMS, prediction, run_record, table_row, write_comparison, write_lines, write_run

from commit_tuning.errors import UserError
from commit_tuning.report import plots
from commit_tuning.report.page import Contents, picture_address, read_contents, starvation, write_report
from commit_tuning.train.compare.table import NOTHING
from commit_tuning.train.record import RunRecord


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without figures, which take nearly all of its time."""
    monkeypatch.setattr(plots, "draw_curves", lambda groups: [])
    monkeypatch.setattr(plots, "draw_accuracy", lambda arms: None)


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def labels(contents: Contents) -> list[str]:
    return [arm.label for arm in contents.arms]


def test_starvation_names_module_number_of_runs_and_steps() -> None:
    ends: list[dict[str, object]] = [{"starving": {"vision": 120}}, {"starving": {}}, {"starving": {"vision": 95}}]
    records = [RunRecord(recipe={}, metrics=metrics) for metrics in ends]
    assert starvation(records) == "vision in 2 of 3, since step 95, 120"
    assert starvation([*records[1:2], RunRecord(recipe={})]) == NOTHING  # also a record from before this was noted


def test_page_forbids_foreign_styles_and_pictures(tmp_path: Path, undrawn: None) -> None:
    page = page_of(write_run(tmp_path / "run"))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert page.index(policy) < page.index("<title>") < page.index("<style>")


def test_text_of_a_record_is_escaped(tmp_path: Path, undrawn: None) -> None:
    page = page_of(write_run(tmp_path / "run", rows=[prediction(0, question="<script>\u202e\ud800", answer="<b>")]))
    assert "<script" not in page
    assert r"&lt;script&gt;\u202e\ud800" in page
    assert "<bdi>&lt;b&gt;</bdi>" in page


def test_long_text_is_cut_and_counted(tmp_path: Path, undrawn: None) -> None:
    page = page_of(write_run(tmp_path / "run", rows=[prediction(0, question="q" * 400_000)]))
    assert "q … (400,000 characters)" in page
    assert len(page) < 100_000


@pytest.mark.parametrize(
    ("status", "heading", "line"),
    [
        ("running", "Not finished", "running or interrupted: step 4 of 9"),
        ("failed", "Runs that failed", "failed after step 4 of 9: out of memory"),
    ],
)
def test_run_that_is_not_complete_says_so(tmp_path: Path, status: str, heading: str, line: str) -> None:
    record = run_record(status=status, error="out of memory", metrics={})
    record["recipe"]["train"]["steps"] = 9
    page = page_of(write_run(tmp_path / "run", record, rows=[]))
    assert page.index(heading) < page.index(f"<bdi>{line}</bdi>") < page.index("Results")
    assert "Training loss" in page  # the curves so far


def test_run_before_its_first_step_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", run_record(status="running", metrics={}, hardware={}), rows=[])
    (folder / "history.jsonl").unlink()
    assert "running or interrupted: step 0 of 4" in page_of(folder)


def test_unfinished_comparison_shows_runs_so_far(tmp_path: Path, undrawn: None) -> None:
    folder = write_comparison(tmp_path / "compared")
    (folder / "table.json").unlink()
    (folder / f"runs/{ARMS[1]}/seed-0/run.json").write_text(json.dumps(run_record(status="running", metrics={})))
    contents = read_contents(folder)
    assert labels(contents) == ["Constant LR", "CoMMIT-CLR"]
    assert contents.arms[1].cells["Test accuracy"] == NOTHING
    assert contents.unfinished == [
        "The comparison is not finished; runs so far: 1 complete, 1 not complete. "
        "The same 'commit-tuning compare' goes on with it.",
        f"runs/{ARMS[1]}/seed-0: running or interrupted: step 4 of 4",
    ]
    assert "runs so far: 1 complete" in page_of(folder)


def test_comparison_without_runs_has_no_report(tmp_path: Path) -> None:
    (write_comparison(tmp_path / "compared") / "compare.json").rename(tmp_path / "compare.json")
    with pytest.raises(UserError, match="no run below"):
        write_report(tmp_path)


def test_runs_of_different_recipes_are_not_averaged(tmp_path: Path) -> None:
    for number, rank in enumerate((8, 8, 16)):
        record = run_record(seed=number)
        record["recipe"]["train"]["seed"] = number
        record["recipe"]["model"]["lora"] = {"r": rank}
        write_run(tmp_path / str(number), record)
    contents = read_contents(tmp_path)
    assert labels(contents) == ['CoMMIT-CLR (model.lora {"r": 8})', 'CoMMIT-CLR (model.lora {"r": 16})']
    assert [len(arm.records) for arm in contents.arms] == [2, 1]


def test_kind_called_like_a_column_has_its_own(tmp_path: Path, undrawn: None) -> None:
    record = run_record()
    record["metrics"]["test"] = {"accuracy": 0.5, "questions": 2, "by_kind": {"Seeds": 0.125, "a_b": 0.25, "a b": 0.75}}
    (arm,) = read_contents(write_run(tmp_path / "run", record)).arms
    assert (arm.cells["Seeds"], arm.cells["kind/Seeds"]) == ("1", "12.5")
    page = page_of(tmp_path / "run")
    assert page.count("<bdi>Seeds</bdi>") == 2
    assert page.count("<bdi>a b</bdi>") == 2


def test_kind_missing_in_a_run_averages_the_others(tmp_path: Path) -> None:
    for seed, by_kind in enumerate(({"a": 0.5}, {"a": 1.0, "b": 0.25})):
        metrics = run_record()["metrics"] | {"test": {"accuracy": 0.5, "questions": 2, "by_kind": by_kind}}
        write_run(tmp_path / str(seed), run_record(metrics=metrics, seed=seed))
    (arm,) = read_contents(tmp_path).arms
    assert (arm.cells["kind/a"], arm.cells["kind/b"]) == ("75.0", "25.0")


def damaged(**changes: Any) -> str:
    return json.dumps(run_record(**changes))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("run.json", "{", "run.json"),
        ("run.json", "[]", "run.json"),
        ("run.json", damaged(metrics={}), "complete without scores"),
        ("run.json", damaged(metrics={"val": None, "test": None}), "complete without scores"),
        ("run.json", damaged(recipe={}), "recipe.model: Field required"),
        ("run.json", damaged(seconds={"training": 1e300}), "seconds.training"),
        ("history.jsonl", '{"step": "x"}\n', "history.jsonl is damaged (0.step"),
        ("history.jsonl", '{"step": 1, "loss": 1e300}\n', "history.jsonl is damaged (0.loss"),
        ("history.jsonl", '5\n{"step": 1}\n', "history.jsonl"),
        ("predictions.jsonl", '{"id": "a"}\n', "predictions.jsonl is damaged (0.kind"),
        ("predictions.jsonl", '{"id": ["a"]}\n', "predictions.jsonl is damaged (0.id"),
        ("predictions.jsonl", b"\xff\xfe\n{}\n", "predictions.jsonl"),
    ],
)
def test_damaged_run_is_left_out_with_the_reason(
    tmp_path: Path, undrawn: None, file: str, content: str | bytes, reason: str
) -> None:
    write_run(tmp_path / "sound", run_record(seed=1))
    folder = write_run(tmp_path / "damaged")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    contents = read_contents(tmp_path)
    assert [len(arm.records) for arm in contents.arms] == [1]
    (line,) = contents.left_out
    assert reason in line
    assert "Left out" in page_of(tmp_path)
    with pytest.raises(UserError) as refused:
        write_report(folder)
    assert len(str(refused.value).splitlines()) == 1


def test_incomplete_run_of_a_table_is_left_out(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "compared")
    (folder / f"runs/{ARMS[1]}/seed-0/run.json").write_text(damaged(status="running", metrics={}))
    contents = read_contents(folder)
    assert [len(arm.records) for arm in contents.arms] == [1, 0]
    assert contents.left_out == [f"{folder / 'runs' / ARMS[1] / 'seed-0'}: running or interrupted: step 4 of 4"]


@pytest.mark.parametrize("run", ["../other", "/", "runs/../../other", "a\0b", "n" * 300])
def test_table_with_a_run_elsewhere_is_refused(tmp_path: Path, run: str) -> None:
    write_run(tmp_path / "other")
    folder = write_comparison(tmp_path / "compared")
    (folder / "table.json").write_text(json.dumps({"rows": [table_row("a", [run])], "screening": []}))
    with pytest.raises(UserError):
        write_report(folder)


def test_picture_elsewhere_is_not_shown(tmp_path: Path, undrawn: None) -> None:
    write_run(tmp_path / "other")
    names = [
        "../other/images/0000.png",
        str(tmp_path / "other/images/0000.png"),
        "run.json",
        "images/" + "n" * 300,
        "\0",
    ]
    page = page_of(write_run(tmp_path / "run", rows=[prediction(n, picture=name) for n, name in enumerate(names)]))
    assert "data:image" not in page


def test_large_picture_is_reduced(tmp_path: Path) -> None:
    Image.effect_noise((3000, 2000), 90).save(tmp_path / "large.png")
    Image.new("RGBA", (20, 10), "red").save(tmp_path / "small.png")
    large, small = picture_address(tmp_path / "large.png"), picture_address(tmp_path / "small.png")
    assert large.startswith("data:image/jpeg;base64,")
    assert len(large) < 300_000
    assert small.startswith("data:image/png;base64,")
    shown = [Image.open(io.BytesIO(b64decode(address.partition(",")[2]))) for address in (large, small)]
    assert [picture.size for picture in shown] == [(480, 320), (20, 10)]


def test_file_that_is_no_picture_is_said(tmp_path: Path, undrawn: None) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "images/0000.png").write_text("<svg onload='alert(1)'></svg>")
    page = page_of(folder)
    assert "The picture cannot be shown: <bdi>0000.png is not a whole picture" in page
    assert page.count("data:image/png") == 1


def test_constant_curve_has_a_scale_around_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_lines(folder / "history.jsonl", [{"step": step, "loss": 0.1, "lr/vision": 0.3} for step in range(1, 90)])
    assert page_of(folder).count("<svg role") == 2  # no warning about limits that are the same


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_report_of_the_user_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    page = write_run(tmp_path / "run") / "report.html"
    if kind == "file":
        page.write_text("<html>mine</html>")
    elif kind == "folder":
        page.mkdir()
    else:
        page.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"report\.html is there and is no report"):
        write_report(tmp_path / "run")
    assert kind != "file" or page.read_text() == "<html>mine</html>"


def test_report_of_ours_is_written_again(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    page.write_bytes(page.read_bytes().replace(b"</html>", b""))
    assert write_report(tmp_path / "run").read_text().endswith("</html>")
