"""An experiment that takes seconds: an untrained nano model, a few questions, a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from commit_lab.nano import building
from commit_tuning.cli.app import main


def make_experiment(folder: Path) -> Path:
    """Write a recipe, its data and its model; returns the recipe's path."""
    from commit_lab.nano.models.build import build_model, build_processor, build_tokenizer
    from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa, nano_vocabulary

    tokenizer = build_tokenizer(nano_vocabulary())
    build_model("nano-llava", len(tokenizer)).save_pretrained(folder / "model")
    build_processor("nano-llava", tokenizer).save_pretrained(folder / "model")
    build_nano_iconqa(folder / "data", train=24, val=6, test=9)
    return _write_recipe(folder, {"root": str(folder / "data")})


def make_audio_experiment(folder: Path) -> Path:
    """The same with sounds: an untrained nano SALMONN and questions about clips."""
    from commit_lab.nano.models.build import build_model, build_processor
    from commit_lab.nano.models.salmonn import build_salmonn_tokenizer
    from commit_lab.nano.sounds.nano_clothoaqa import build_nano_clothoaqa, nano_clothoaqa_vocabulary

    tokenizer = build_salmonn_tokenizer(nano_clothoaqa_vocabulary())
    build_model("nano-salmonn", len(tokenizer)).save_pretrained(folder / "model")
    build_processor("nano-salmonn", tokenizer).save_pretrained(folder / "model")
    build_nano_clothoaqa(folder / "data", train=12, val=4, test=8)
    return _write_recipe(folder, {"dataset": "nano-clothoaqa", "root": str(folder / "data"), "in_memory": True})


def _write_recipe(folder: Path, data: dict[str, object]) -> Path:
    recipe = {
        "model": {"name": str(folder / "model"), "lora": {"r": 2}},
        "data": data,
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3},
        "commit": {"probe_interval": 1, "probe_samples": 2, "kappa_window": 3, "lr_update_interval": 1},
        "eval": {"batch_size": 16, "max_new_tokens": 2, "images": 3},
        "compare": {"methods": ["commit-clr"], "rates": [1e-3], "seeds": 2, "screen_seeds": 1},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def run(arguments: Sequence[str | Path]) -> int:
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(exited.value.code or 0)


def as_if_built(data: Path) -> Path:
    """Let a dataset that a test has changed pass for one that was built so."""
    manifest = building._read_manifest(data)
    building._write_manifest(data, manifest)
    return data
