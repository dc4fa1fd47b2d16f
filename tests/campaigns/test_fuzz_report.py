"""Damaged records: a report is written of what is left, or one line says what is damaged; never a traceback."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from campaign import inputs
from hypothesis import given
from hypothesis import strategies as st
from report_records import ARMS, run_record, write_comparison, write_run

from commit_tuning.errors import UserError
from commit_tuning.experiments import plots
from commit_tuning.experiments.report import write_report

RUN = f"runs/{ARMS[0]}/seed-0"
FILES = ("table.json", "compare.json", f"{RUN}/run.json", f"{RUN}/history.jsonl", f"{RUN}/predictions.jsonl")
DELETED = object()
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
JUNK = st.one_of(
    st.just(DELETED),
    st.sampled_from([None, True, -1, 0, 1e308, 1e-320, 2**70, 10**400, float("nan"), float("inf"), [], {}, "", "x"]),
    st.sampled_from(
        ["\ud800", "\0", "<b>", "$x", "../../..", "/etc", "a/" * 300, "n" * 30_000, [[]], [None], {"": {}}, DEEP]
    ),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5), max_size=3),
)
BYTES = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"null", b"[]", b"{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b"1" * 5000])
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("sound") / "compared")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without figures, which take nearly all of its time."""
    monkeypatch.setattr(plots, "draw_curves", lambda groups: [])
    monkeypatch.setattr(plots, "draw_accuracy", lambda arms: None)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, from the outside to the inside."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """The value with something else at a place, or without what is there."""
    if not path:
        return None if junk is DELETED else junk
    copy = value.copy()
    if len(path) == 1 and junk is DELETED:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(value[path[0]], path[1:], junk)
    return copy


def damage(path: Path, data: st.DataObject) -> None:
    """Put something else at one place of a file, or in the middle of its bytes."""
    raw = path.read_bytes()
    if data.draw(st.integers(0, 4)) == 0:
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
        path.write_bytes(raw[:start] + data.draw(BYTES) + raw[end:])
        return
    lines = path.suffix == ".jsonl"
    value = [json.loads(line) for line in raw.splitlines()] if lines else json.loads(raw)
    changed = replaced(value, data.draw(st.sampled_from(list(places(value))[1:])), data.draw(JUNK))
    path.write_text("".join(json.dumps(row) + "\n" for row in changed) if lines else json.dumps(changed))


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
