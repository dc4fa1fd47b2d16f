"""Records for reports without any training: small, complete, and with texts that a test chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

ARMS = ("constant_lr-0.001", "commit-clr_lr-0.001")
MODULES = ("language_model", "vision")


def run_record(**changes: Any) -> dict[str, Any]:
    """A complete `run.json`."""
    scores = {"accuracy": 0.5, "by_kind": {"choose_txt": 1.0, "fill_in_blank": 0.0}, "questions": 2}
    record = {
        "recipe": {
            "model": {"name": "models/llava", "lora": {"r": 8}},
            "data": {"dataset": "iconqa", "root": "there"},
            "train": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "encoder_learning_rate": None, "seed": 0},
            "commit": {"method": "commit-clr", "probe": {"interval": 1}, "kappa_window": 3},
        },
        "status": "complete",
        "seed": 0,
        "metrics": {"val": scores, "test": scores, "train_loss": 0.5, "starving": {}},
        "error": None,
        "data_checksum": "0" * 64,
        "parameters": {"language_model": 10, "vision": 20},
        "seconds": {"training": 1.0, "evaluation": 1.0},
        "versions": {"python": "3"},
        "hardware": {"cpu": "a processor", "torch_threads": 1},
    }
    return record | changes


def history(steps: int = 4) -> list[dict[str, Any]]:
    """The lines of a `history.jsonl`."""
    columns = ("lr", "drift", "h", "grad_norm", "theta_norm")
    measured = {f"{column}/{module}": 0.5 for column in columns for module in MODULES}
    return [{"step": step, "loss": 1 / step, "kappa": 2.0, **measured} for step in range(1, steps + 1)]


def prediction(number: int, **changes: Any) -> dict[str, Any]:
    """A line of a `predictions.jsonl`, with a picture."""
    row = {
        "id": str(number),
        "kind": "choose_txt",
        "question": "What is it?",
        "choices": ["cat", "dog"],
        "truth": "cat",
        "answers": ["cat"],
        "answer": "dog",
        "picture": f"images/{number:04}.png",
    }
    return row | changes


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, record: dict[str, Any] | None = None, rows: list[dict[str, Any]] | None = None) -> Path:
    """A run's folder: record, history, predictions and pictures."""
    rows = [prediction(number) for number in range(2)] if rows is None else rows
    (folder / "images").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record or run_record()), encoding="utf-8")
    write_lines(folder / "history.jsonl", history())
    write_lines(folder / "predictions.jsonl", rows)
    for number in range(len(rows)):
        Image.new("RGB", (8, 8), "red").save(folder / "images" / f"{number:04}.png")
    return folder


def table_row(label: str, runs: list[str], **changes: Any) -> dict[str, Any]:
    """A row of `table.json`."""
    numbers = {"test": 0.5, "test_sd": None, "seeds": len(runs), "validation": 0.5, "train_loss": 0.5, "seconds": 2.0}
    row = {"label": label, "method": "constant", "rates": "0.001", "chosen": True, "difference": None, "runs": runs}
    return row | numbers | {"collapsed": 0, "failed": 0} | changes


def write_comparison(folder: Path, labels: tuple[str, str] = ("Constant LR", "CoMMIT-CLR"), **manifest: Any) -> Path:
    """A finished comparison of two arms with one run each."""
    runs = [f"runs/{arm}/seed-0" for arm in ARMS]
    rows = [table_row(label, [run]) for label, run in zip(labels, runs, strict=True)]
    for run in runs:
        write_run(folder / run)
    plan = {"status": "complete", "recipe": run_record()["recipe"], "compare": {}, "axes": {}, "failures": []}
    plan["versions"] = {"python": "3"}
    (folder / "compare.json").write_text(json.dumps(plan | manifest), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps({"rows": rows, "screening": rows}), encoding="utf-8")
    return folder
