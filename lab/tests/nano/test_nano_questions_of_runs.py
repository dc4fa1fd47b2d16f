"""The questions of a run with the nano models."""

from __future__ import annotations

from pathlib import Path

import pytest
from questions import (
    KEPT,
    Kept,
    check_answer_ends_with_positions,
    check_cutting_encodes_twice,
    check_long_question_is_skipped,
    check_special_tokens_are_text,
    check_stored_as_streamed,
)

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.models.load import load_processor

SEEING = ("nano-llava-v2", "nano-blip2-v2", "nano-internvl2")


@pytest.mark.parametrize("name", ["nano-llava-v2", "nano-blip2-v2"])
def test_stored_and_streamed_questions_are_the_same(name: str, tmp_path: Path) -> None:
    samples = IconQA(build_nano_iconqa(tmp_path / "data", train=9, val=3, test=3), "train")
    check_stored_as_streamed(VisionCollator(load_processor(name)), samples)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", SEEING)
def test_one_long_question_is_skipped_and_listed(name: str, kept: Kept, tmp_path: Path) -> None:
    check_long_question_is_skipped(load_processor(name), kept, tmp_path / "data")


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", SEEING)
def test_special_tokens_in_questions_are_trained_as_text(name: str, kept: Kept, tmp_path: Path) -> None:
    check_special_tokens_are_text(*load_nano(name), kept, tmp_path / "data")


@pytest.mark.parametrize("name", SEEING)
def test_an_answer_ends_where_the_positions_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_answer_ends_with_positions(*load_nano(name), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", SEEING)
def test_cutting_encodes_each_picture_twice_at_most(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_cutting_encodes_twice(load_processor(name), tmp_path / "data", monkeypatch)
