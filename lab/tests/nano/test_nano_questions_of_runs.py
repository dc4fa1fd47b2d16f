"""The questions of a run with the nano models."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from questions import (
    KEPT,
    Kept,
    check_answer_ends_with_positions,
    check_long_question_is_skipped,
    check_special_tokens_are_text,
    check_stored_as_streamed,
    odd,
)

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa
from commit_tuning import storage
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.models.load import load_processor
from commit_tuning.train import dataset
from commit_tuning.train.compare.pool import PRELOAD_RECIPE
from commit_tuning.train.dataset import open_splits
from commit_tuning.train.origin import Origin
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Data

SEEING = ("nano-llava", "nano-blip2", "nano-internvl2")


@pytest.mark.parametrize("name", ["nano-llava", "nano-blip2"])
def test_stored_and_streamed_questions_are_the_same(name: str, tmp_path: Path) -> None:
    samples = IconQA(build_nano_iconqa(tmp_path / "data", train=9, val=3, test=3), "train")
    check_stored_as_streamed(VisionCollator(load_processor(name)), samples)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", SEEING)
def test_one_long_question_is_skipped_and_listed(name: str, kept: Kept, tmp_path: Path) -> None:
    check_long_question_is_skipped(load_processor(name), kept, tmp_path / "data")


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", SEEING)
def test_special_tokens_in_a_question_are_trained_as_text(name: str, kept: Kept, tmp_path: Path) -> None:
    check_special_tokens_are_text(*load_nano(name), kept, tmp_path / "data")


@pytest.mark.parametrize("name", SEEING)
def test_an_answer_ends_where_the_positions_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_answer_ends_with_positions(*load_nano(name), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", SEEING)
def test_cutting_encodes_each_picture_twice_at_most(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = IconQA(odd(tmp_path / "data", "heart star " * 200), "train")
    batch = [samples[index] for index in range(5)]
    processor = load_processor(name)
    collator = VisionCollator(processor, max_tokens=100, cut=True)
    seen: list[int] = []
    pictures = type(processor.image_processor).__call__
    monkeypatch.setattr(
        type(processor.image_processor),
        "__call__",
        lambda self, images, **given: seen.append(len(images)) or pictures(self, images, **given),
    )
    prompts, answers, _ = collator.encode(batch)
    assert sum(seen) == 10
    longest = VisionCollator(processor, max_tokens=10**6)
    fitting = []
    for letters in range(len(batch[2].question)):
        (prompt,), (answer,), _ = longest.encode([replace(batch[2], question=batch[2].question[:letters])])
        if len(prompt) + len(answer) > 100:
            break
        fitting.append((prompt, answer))
    assert fitting[-1] == (prompts[2], answers[2])


def test_nothing_is_hashed_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build_nano_iconqa(tmp_path / "data", train=4, val=3, test=3)
    hashed: list[Path] = []
    monkeypatch.setattr(dataset, "sha256", lambda path: hashed.append(path) or "0")
    questions = open_splits(root, Data(dataset="nano-iconqa", root=str(root)), "nano-llava", "cpu")
    questions["train"].training([0, 1])
    assert not hashed
    assert questions["val"].checksum == questions["val"].checksum
    assert len(hashed) == len(set(hashed)) > 0


def test_a_worker_reads_no_file_for_its_hash_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build_nano_iconqa(tmp_path / "data", train=4, val=3, test=3)
    recipe = load_recipe("nano-llava", [f"data.root={root}", "data.in_memory=false"])
    monkeypatch.setattr(storage, "_TICK", -(10**19))  # as if everything had been written long ago
    monkeypatch.setenv(PRELOAD_RECIPE, recipe.model_dump_json())
    monkeypatch.delitem(sys.modules, "commit_tuning.train.compare.preload", raising=False)
    importlib.import_module("commit_tuning.train.compare.preload")  # as the server does that workers are forked from
    read = storage._known_sha256.cache_info().misses
    assert len(Origin.of(recipe).data) == 3
    assert storage._known_sha256.cache_info().misses == read
