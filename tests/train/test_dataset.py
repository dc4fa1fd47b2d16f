"""Questions kept in memory give the very batches of questions read each time, and neither stops at a damaged one."""

from __future__ import annotations

import importlib
import sys
from itertools import islice
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
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.data.sample import Sample
from commit_tuning.data.tasks import Part
from commit_tuning.errors import UserError
from commit_tuning.models.load import load_model
from commit_tuning.train import dataset
from commit_tuning.train.compare.pool import PRELOAD_RECIPE
from commit_tuning.train.dataset import StoredQuestions, data_order, open_splits
from commit_tuning.train.origin import Origin
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Data, Train
from commit_tuning.train.training import step_batches


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


def test_later_tiles_are_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = train_split(tmp_path / "data", 9)
    collator = VisionCollator(llava_processor())
    expected = [collator([samples[index] for index in range(at, at + 3)])["input_ids"] for at in (0, 6, 3)]
    questions = StoredQuestions(samples, collator)
    encode = collator.encode

    def tiled(read: list[Sample]) -> Any:
        prompts, answers, media = encode(read)
        return prompts, answers, {name: torch.cat([values, values[:1]]) for name, values in media.items()}

    first = questions.training([0, 1, 2])
    monkeypatch.setattr(collator, "encode", tiled)
    batches = [first, *(questions.training(list(range(at, at + 3))) for at in (6, 3))]
    assert all(torch.equal(batch["input_ids"], ids) for batch, ids in zip(batches, expected, strict=True))
    assert [len(batch["pixel_values"]) for batch in batches] == [3, 4, 4]
    assert len(questions.prompts([0, 1])[1]["input_ids"]) == 2


def test_each_question_in_memory_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = train_split(tmp_path / "data", 9)
    collator = VisionCollator(llava_processor())
    encode, encoded = collator.encode, []
    monkeypatch.setattr(collator, "encode", lambda read: encoded.extend(one.id for one in read) or encode(read))
    questions = StoredQuestions(samples, collator)
    ids = [samples.record(index).id for index in range(9)]
    assert encoded == ids[:4]  # the form of the media is known when a split is opened
    for _ in range(2):
        questions.training([8, 3, 8])
        questions.prompts([2, 5])
    assert encoded == [*ids[:4], ids[8], ids[5]]
    questions.expect([7, 1, 7])
    assert encoded[6:] == [ids[7]]
    questions.fill()
    assert sorted(encoded) == sorted(ids)


def test_only_the_questions_of_a_run_are_encoded(tmp_path: Path) -> None:
    questions = StoredQuestions(train_split(tmp_path / "data", 9), VisionCollator(llava_processor()))
    told: list[list[int]] = []
    questions.expect, expect = lambda indices: told.append(indices) or expect(indices), questions.expect
    settings = Train(steps=9, batch_size=2)
    order = list(islice(data_order(9, 2, settings.seed), 13))
    batches = list(islice(step_batches(questions, settings, start=1), 10))  # one more than the run has
    for indices, (batch,) in zip(order[1:], batches, strict=False):
        assert torch.equal(batch["labels"], questions.training(indices)["labels"])
    assert [len(indices) for indices in told] == [12, 4, 2, 2]


def test_long_questions_in_memory_are_listed_first(model: Path, tmp_path: Path) -> None:
    samples = IconQA(odd(tmp_path / "data", "heart " * 500), "train")
    questions = StoredQuestions(Part(samples, [0, 1, 3, 4, 2]), VisionCollator(llava_processor(), max_tokens=90))
    assert (len(questions), len(questions.skipped)) == (4, 1)
    assert questions[3].id == samples.record(4).id
    assert (
        questions.checksum
        == StoredQuestions(Part(samples, [0, 1, 3, 4, 2]), VisionCollator(llava_processor())).checksum
    )


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


def test_a_worker_encodes_nothing_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_iconqa(tmp_path / "data", train=6, val=5, test=5)
    recipe = load_recipe(EXAMPLE, [f"model.name={model}", f"data.root={root}", "data.in_memory=true"])
    monkeypatch.setenv(PRELOAD_RECIPE, recipe.model_dump_json())
    monkeypatch.delitem(sys.modules, "commit_tuning.train.compare.preload", raising=False)
    importlib.import_module("commit_tuning.train.compare.preload")  # as the server does that workers are forked from
    monkeypatch.setattr(VisionCollator, "encode", None)
    for split, asked in open_splits(root, recipe.data, str(model), "cpu").items():
        assert len(asked.prompts(list(range(len(asked))))[0]) == {"train": 6, "val": 5, "test": 5}[split]


class Tiles:
    """A collator of questions whose pictures have so many tiles."""

    def __init__(self, tiles: dict[int, int]) -> None:
        self._tiles = tiles

    def doubtful(self, *_: Any) -> list[int]:
        return []

    def encode(self, samples: list[Sample]) -> Any:
        numbers = [int(sample.id) for sample in samples]
        tiles = [torch.full((self._tiles.get(number, 1), 1), float(number)) for number in numbers]
        return [[number] for number in numbers], [[0] for _ in numbers], {"pixel_values": torch.cat(tiles)}

    def training_batch(self, prompts: list[list[int]], answers: Any, media: dict[str, Any]) -> Any:
        return {"input_ids": torch.tensor(prompts), **media}

    def __call__(self, samples: list[Sample]) -> Any:
        prompts, answers, media = self.encode(samples)
        return self.training_batch(prompts, answers, media)


class Numbered(list[Sample]):
    """Questions by number."""

    skipped: tuple[()] = ()

    def record(self, index: int) -> Sample:
        return self[index]


@pytest.mark.parametrize("tiles", [2, 0])
@pytest.mark.parametrize("place", [10, 150])
def test_one_odd_picture_moves_no_other(place: int, tiles: int) -> None:
    samples = Numbered(Sample(str(number), "kind", "?", (), ("yes",)) for number in range(300))
    questions = StoredQuestions(samples, Tiles({place: tiles}))  # type: ignore[arg-type]
    questions.fill()
    batch = questions.training([place - 1, place, place + 1, place + 60])
    expected = [place - 1, *[place] * tiles, place + 1, place + 60]
    assert batch["pixel_values"].flatten().tolist() == expected
