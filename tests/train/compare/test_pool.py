"""Which processes the runs of a comparison come from."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from small_experiment import EXAMPLE

from commit_tuning.train.compare import pool
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import alone_in


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no server to fork from here")
def test_another_comparisons_questions_take_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import forkserver

    stopped: list[str] = []
    monkeypatch.setattr(forkserver._forkserver, "_stop", lambda: stopped.append(os.environ[pool.PRELOAD_RECIPE]))
    monkeypatch.delenv(pool.PRELOAD_RECIPE, raising=False)
    first, second = load_recipe(EXAMPLE), load_recipe(EXAMPLE, ["data.dataset=textvqa"])
    for recipe in (first, first.model_copy(update={"train": first.train.model_copy(update={"seed": 5})})):
        pool._context(recipe)
    assert not stopped
    pool._context(second)
    assert stopped == [second.model_dump_json()]


def test_one_run_at_a_time_shares_a_gpu() -> None:
    assert pool.default_workers("cuda") == 1
    assert pool.default_workers() >= 1


def test_log_of_the_process_at_work_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").write_text("of the other")
    with alone_in(tmp_path), pytest.raises(SystemExit, match="1"):
        pool._opened_log(tmp_path)
    assert "another process is at work" in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text() == "of the other"
    pool._opened_log(tmp_path).close()
    assert not (tmp_path / "log.txt").read_text()
