"""A run on sounds from end to end: SALMONN, Clotho-AQA's layout, training, generation, its metric."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_experiment import make_audio_experiment, run

from commit_tuning.train.record import RunRecord, read_lines


def test_salmonn_is_tuned_on_sounds_and_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_audio_experiment(tmp_path)
    assert run(["inspect", recipe]) == 0
    assert run(["train", recipe, "-o", tmp_path / "run"]) == 0
    record = RunRecord.read(tmp_path / "run")
    assert set(record.parameters) == {"language_model", "audio"}
    assert record.metrics["test"]["metric"] == "accuracy"
    assert record.metrics["test"]["questions"] == 8
    history = record.history()
    assert all(row["kappa"] > 0 for row in history)
    assert history[0]["step_norm/audio"] > 0 < history[0]["step_norm/language_model"]
    assert run(["evaluate", tmp_path / "run", "--predictions", tmp_path / "answers.jsonl"]) == 0
    answers = [{**row, "picture": None} for row in read_lines(tmp_path / "answers.jsonl")]
    assert answers == read_lines(tmp_path / "run" / "predictions.jsonl")
    assert "clothoaqa, test: accuracy" in capsys.readouterr().out
