"""Damaged records: a report is written of what is left, or one line says what is damaged; never a traceback."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from campaign import inputs
from damage import BYTES, damage
from hypothesis import given
from hypothesis import strategies as st
from report_records import ARMS, run_record, write_comparison, write_run

from commit_tuning.errors import UserError
from commit_tuning.report import plots
from commit_tuning.report.page import write_report

RUN = f"runs/{ARMS[0]}/seed-0"
FILES = ("table.json", "compare.json", f"{RUN}/run.json", f"{RUN}/history.jsonl", f"{RUN}/predictions.jsonl")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("sound") / "compared")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without figures, which take nearly all of its time."""
    monkeypatch.setattr(plots, "draw_curves", lambda groups: [])
    monkeypatch.setattr(plots, "draw_accuracy", lambda arms: None)


def reports_or_says(folder: Path) -> None:
    with suppress(UserError):
        assert write_report(folder).read_text(encoding="utf-8").endswith("</html>")


def damaged_report(sound: Path, name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = shutil.copytree(sound, Path(made) / "compared")
        damage(folder / name, data)
        reports_or_says(folder)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@inputs(40, 600)
def test_damaged_record_is_reported_or_refused(sound: Path, name: str, undrawn: None, data: st.DataObject) -> None:
    damaged_report(sound, name, data)


@given(data=st.data())
@inputs(4, 150)
def test_figures_of_damaged_records(sound: Path, data: st.DataObject) -> None:
    damaged_report(sound, data.draw(st.sampled_from(["table.json", f"{RUN}/history.jsonl"])), data)


@pytest.mark.parametrize("name", FILES[1:])
@given(data=st.data())
@inputs(20, 300)
def test_damaged_unfinished_comparison(sound: Path, name: str, undrawn: None, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = shutil.copytree(sound, Path(made) / "compared")
        (folder / "table.json").unlink()
        damage(folder / name, data)
        reports_or_says(folder)


@pytest.mark.parametrize("name", ["run.json", "history.jsonl", "predictions.jsonl"])
@given(data=st.data())
@inputs(20, 300)
def test_damaged_run_is_reported_or_refused(name: str, undrawn: None, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = write_run(Path(made) / "run", run_record(status=data.draw(st.sampled_from(["running", "failed"]))))
        damage(folder / name, data)
        reports_or_says(folder)


@given(picture=BYTES | st.binary(max_size=300))
@inputs(20, 300)
def test_damaged_picture_is_shown_as_a_fault(undrawn: None, picture: bytes) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = write_run(Path(made) / "run")
        (folder / "images" / "0000.png").write_bytes(picture)
        reports_or_says(folder)
        assert "The picture cannot be shown" in (folder / "report.html").read_text(encoding="utf-8")
