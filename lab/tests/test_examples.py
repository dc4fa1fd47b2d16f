"""Every example runs as it stands, and no example is longer than a screen."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.filterwarnings("default")  # the frameworks' own
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_shows_kappa(path, tmp_path, monkeypatch, capfd):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--steps", "6"])
    runpy.run_path(str(path), run_name="__main__")
    assert "kappa" in capfd.readouterr().out


def test_there_is_one_for_every_way_to_train():
    assert {path.stem for path in EXAMPLES} == {
        "accelerate_loop", "lightning_module", "plain_loop", "trainer", "trl_sft",
    }  # fmt: skip
