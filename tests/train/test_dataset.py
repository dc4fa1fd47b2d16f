"""Questions kept in memory give the very batches of questions read each time, and neither stops at a damaged one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from questions import (
    KEPT,
    Kept,
    check_answer_ends_with_positions,
    check_cutting_encodes_twice,
    check_long_question_is_skipped,
    check_special_tokens_are_text,
    check_stored_as_streamed,
    odd,
    train_split,
)
from small_experiment import EXAMPLE, llava_processor, write_iconqa, write_llava

from commit_tuning import storage
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.base import SkipList, Skipped
from commit_tuning.errors import UserError
from commit_tuning.models.load import load_model
from commit_tuning.train import dataset
from commit_tuning.train.compare.pool import PRELOAD_RECIPE
from commit_tuning.train.dataset import StoredQuestions, open_splits
from commit_tuning.train.origin import Origin
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_llava(folder)
    return folder


@pytest.fixture
def loaded(model: Path) -> tuple[Any, Any]:
    return load_model(model)


def test_stored_and_streamed_questions_are_the_same(tmp_path: Path) -> None:
    check_stored_as_streamed(VisionCollator(llava_processor()), train_split(tmp_path / "data", 9))


def test_what_cannot_be_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = train_split(tmp_path / "data", 4)
    collator = VisionCollator(llava_processor())
    prompts, answers, _ = collator.encode([samples[index] for index in range(4)])
    tiles = {"pixel_values": torch.zeros(5, 3, 8, 8)}
    monkeypatch.setattr(collator, "encode", lambda read: (prompts, answers, tiles))
    with pytest.raises(UserError, match=r"pixel_values has not one row .* set data\.in_memory=false"):
        StoredQuestions(samples, collator)


@pytest.mark.parametrize("kept", KEPT)
def test_picture_damaged_inside_is_skipped_and_listed(kept: Kept, tmp_path: Path) -> None:
    samples = train_split(tmp_path / "data", 5)
    collator = VisionCollator(llava_processor())
    whole = [samples[index] for index in (0, 1, 3, 4)]
    damaged = samples.record(2).pictures[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged inside"):
        kept(samples, collator, strict=True).prompts([0, 1, 2, 3, 4])
    assert samples.skipped == []
    questions = kept(samples, collator)
    found = [questions.prompts([index])[0] for index in range(len(questions))]
    assert [sample.id for part in found for sample in part] == [sample.id for sample in whole]
    assert [skip.path for skip in questions.skipped] == [samples.record(2).place.path]
    asked, batch = questions.prompts(list(range(len(questions))))
    assert len(asked) == len(batch["input_ids"]) == 4
    last = len(questions) - 1
    for index, sample in ((2, whole[2]), (last, whole[3])):  # streamed, the next one stands in
        assert torch.equal(questions.training([index])["labels"], collator([sample])["labels"])
    assert len(questions.skipped) == 1


@pytest.mark.parametrize("kept", KEPT)
def test_nothing_that_can_be_decoded(kept: Kept, tmp_path: Path) -> None:
    samples = train_split(tmp_path / "data", 2)
    for index in range(2):
        samples.record(index).pictures[0].write_bytes(b"")
    with pytest.raises(UserError, match="no question can be used; the first: "):
        kept(samples, VisionCollator(llava_processor())).training([0])


@pytest.mark.parametrize("kept", KEPT)
def test_one_long_question_is_skipped_and_listed(kept: Kept, tmp_path: Path) -> None:
    check_long_question_is_skipped(llava_processor(), kept, tmp_path / "data")


@pytest.mark.parametrize("kept", KEPT)
def test_special_tokens_in_questions_are_trained_as_text(kept: Kept, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    check_special_tokens_are_text(*loaded, kept, tmp_path / "data")


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_recipe_cuts_or_skips_long_questions(in_memory: bool, model: Path, tmp_path: Path) -> None:
    root = odd(tmp_path / "data", "heart " * 500)
    sizes = {}
    for too_long in ("skip", "cut"):
        data = Data(dataset="iconqa", root=str(root), in_memory=in_memory, max_tokens=90, too_long=too_long)
        questions = open_splits(root, data, str(model), "cpu")["train"]
        asked, batch = questions.prompts(list(range(len(questions))))
        sizes[too_long] = (len(asked), len(questions.skipped), batch["input_ids"].shape[1] <= 90 - 12)
    assert sizes == {"skip": (4, 1, True), "cut": (5, 0, True)}


def test_positions_of_a_model_bound_a_recipe(model: Path, tmp_path: Path) -> None:
    root = odd(tmp_path / "data", "heart " * 500)
    data = Data(dataset="iconqa", root=str(root), max_tokens=10_000)
    questions = open_splits(root, data, str(model), "cpu")["train"]
    assert len(questions.prompts([0, 1, 2, 3, 4])[0]) == 4
    assert "the model reads 128" in questions.skipped[0].reason


def test_an_answer_ends_where_the_positions_do(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_answer_ends_with_positions(*loaded, tmp_path, monkeypatch)


def test_cutting_encodes_each_picture_twice_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_cutting_encodes_twice(llava_processor(), tmp_path / "data", monkeypatch)


def test_each_skipped_entry_is_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    monkeypatch.setattr(
        Skipped, "__eq__", lambda one, other: compared.append(one) or (one.path, one.line) == (other.path, other.line)
    )
    skipped = SkipList()
    for line in [*range(300), *range(300)]:
        skipped.note(Skipped(Path("all.jsonl"), "broken", line))
    assert [entry.line for entry in skipped] == list(range(300))
    assert len(compared) < 1000


def test_nothing_is_hashed_before_it_is_asked_for(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_iconqa(tmp_path / "data", train=4, val=3, test=3)
    hashed: list[Path] = []
    monkeypatch.setattr(dataset, "sha256", lambda path: hashed.append(path) or "0")
    questions = open_splits(root, Data(dataset="iconqa", root=str(root)), str(model), "cpu")
    questions["train"].training([0, 1])
    assert not hashed
    assert questions["val"].checksum == questions["val"].checksum
    assert len(hashed) == len(set(hashed)) > 0


def test_worker_hashes_no_file_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_iconqa(tmp_path / "data", train=4, val=3, test=3)
    recipe = load_recipe(EXAMPLE, [f"model.name={model}", f"data.root={root}"])
    monkeypatch.setattr(storage, "_TICK", -(10**19))  # as if everything had been written long ago
    monkeypatch.setenv(PRELOAD_RECIPE, recipe.model_dump_json())
    monkeypatch.delitem(sys.modules, "commit_tuning.train.compare.preload", raising=False)
    importlib.import_module("commit_tuning.train.compare.preload")  # as the server does that workers are forked from
    read = storage._known_sha256.cache_info().misses
    assert len(Origin.of(recipe).data) == 3
    assert storage._known_sha256.cache_info().misses == read
