"""Questions kept in memory give the very batches of questions read each time, and neither stops at a damaged one."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa
from commit_tuning import storage
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.base import SkipList, Skipped
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.errors import UserError
from commit_tuning.models.load import load_nano, load_processor
from commit_tuning.train import dataset
from commit_tuning.train.compare.pool import PRELOAD_RECIPE
from commit_tuning.train.dataset import StoredQuestions, StreamedQuestions, open_splits
from commit_tuning.train.origin import Origin
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Data, Eval
from commit_tuning.train.scoring import generate


def test_stored_and_streamed_questions_are_the_same(tmp_path: Path) -> None:
    root = build_nano_iconqa(tmp_path / "data", train=9, val=3, test=3)
    for name in ("nano-llava", "nano-blip2"):
        collator = VisionCollator(load_nano(name)[1])
        samples = IconQA(root, "train")
        streamed, stored = StreamedQuestions(samples, collator), StoredQuestions(samples, collator)
        assert len(streamed) == len(stored) == 9
        for indices in ([0, 1, 2, 3], [8, 4]):
            for ours, theirs in (
                (stored.training(indices), streamed.training(indices)),
                (stored.prompts(indices)[1], streamed.prompts(indices)[1]),
            ):
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert stored[5].question == streamed[5].question


def test_what_cannot_be_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = IconQA(build_nano_iconqa(tmp_path / "data", train=4, val=3, test=3), "train")
    collator = VisionCollator(load_processor("nano-llava"))
    prompts, answers, _ = collator.encode([samples[index] for index in range(4)])
    tiles = {"pixel_values": torch.zeros(5, 3, 8, 8)}
    monkeypatch.setattr(collator, "encode", lambda read: (prompts, answers, tiles))
    with pytest.raises(UserError, match=r"pixel_values has not one row .* set data\.in_memory=false"):
        StoredQuestions(samples, collator)


@pytest.mark.parametrize("kept", [StreamedQuestions, StoredQuestions])
def test_a_picture_damaged_inside_is_left_out_and_listed(
    kept: type[StreamedQuestions | StoredQuestions], tmp_path: Path
) -> None:
    samples = IconQA(build_nano_iconqa(tmp_path / "data", train=5, val=3, test=3), "train")
    collator = VisionCollator(load_processor("nano-llava"))
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


@pytest.mark.parametrize("kept", [StreamedQuestions, StoredQuestions])
def test_nothing_that_can_be_decoded(kept: type[StreamedQuestions | StoredQuestions], tmp_path: Path) -> None:
    samples = IconQA(build_nano_iconqa(tmp_path / "data", train=2, val=3, test=3), "train")
    for index in range(2):
        samples.record(index).pictures[0].write_bytes(b"")
    with pytest.raises(UserError, match="no question can be used; the first: "):
        kept(samples, VisionCollator(load_processor("nano-llava"))).training([0])


def odd(root: Path, question: str, answer: str = "3") -> Path:
    """Nano-IconQA of which question 2 of train is another."""
    folder = IconQA(build_nano_iconqa(root, train=5, val=3, test=3), "train").record(2).place.path
    kind = {"question": question, "answer": answer} if folder.parent.name == "fill_in_blank" else {"question": question}
    data = json.loads((folder / "data.json").read_text("utf-8")) | kind
    (folder / "data.json").write_text(json.dumps(data), "utf-8")
    return root


@pytest.mark.parametrize("kept", [StreamedQuestions, StoredQuestions])
@pytest.mark.parametrize("name", ["nano-llava", "nano-blip2", "nano-internvl2"])
def test_one_long_question_is_skipped_and_listed(
    name: str, kept: type[StreamedQuestions | StoredQuestions], tmp_path: Path
) -> None:
    samples = IconQA(odd(tmp_path / "data", "heart " * 66_667), "train")
    collator = VisionCollator(load_processor(name))
    good = [samples[index] for index in (0, 1, 3, 4)]
    with pytest.raises(UserError, match="tokens, and the model reads 128"):
        kept(samples, collator, strict=True).prompts([0, 1, 2, 3, 4])
    assert samples.skipped == []
    questions = kept(samples, collator)
    asked, batch = questions.prompts(list(range(len(questions))))
    assert [sample.id for sample in asked] == [sample.id for sample in good]
    assert len(batch["input_ids"]) == 4
    for index, sample in ((2, good[2]), (len(questions) - 1, good[3])):  # streamed, the next one stands in
        assert torch.equal(questions.training([index])["labels"], collator([sample])["labels"])
    assert [(skip.path, skip.reason) for skip in questions.skipped] == [
        (samples.record(2).place.path, questions.skipped[0].reason)
    ]
    assert "tokens, and the model reads 128" in questions.skipped[0].reason


@pytest.mark.parametrize("kept", [StreamedQuestions, StoredQuestions])
@pytest.mark.parametrize("name", ["nano-llava", "nano-blip2", "nano-internvl2"])
def test_special_tokens_in_a_question_are_trained_as_text(
    name: str, kept: type[StreamedQuestions | StoredQuestions], tmp_path: Path
) -> None:
    model, processor = load_nano(name)
    questions = kept(IconQA(odd(tmp_path / "data", "is <image> </s> or <img>?"), "train"), VisionCollator(processor))
    batch = questions.training(list(range(5)))
    assert torch.isfinite(model(**batch).loss)
    assert questions.skipped == []
    assert len(questions.prompts(list(range(5)))[0]) == 5


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_recipe_cuts_or_skips_long_questions(in_memory: bool, tmp_path: Path) -> None:
    root = odd(tmp_path / "data", "heart " * 500)
    sizes = {}
    for too_long in ("skip", "cut"):
        data = Data(root=str(root), in_memory=in_memory, max_tokens=90, too_long=too_long)
        questions = open_splits(root, data, "nano-llava", "cpu")["train"]
        asked, batch = questions.prompts(list(range(len(questions))))
        sizes[too_long] = (len(asked), len(questions.skipped), batch["input_ids"].shape[1] <= 90 - 4)
    assert sizes == {"skip": (4, 1, True), "cut": (5, 0, True)}


def test_positions_of_a_model_bound_a_recipe(tmp_path: Path) -> None:
    root = odd(tmp_path / "data", "heart " * 500)
    data = Data(root=str(root), max_tokens=10_000)
    questions = open_splits(root, data, "nano-blip2", "cpu")["train"]
    assert len(questions.prompts([0, 1, 2, 3, 4])[0]) == 4
    assert "the model reads 128" in questions.skipped[0].reason


@pytest.mark.parametrize("name", ["nano-llava", "nano-blip2", "nano-internvl2"])
def test_an_answer_ends_where_the_positions_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load_nano(name)
    samples = IconQA(build_nano_iconqa(tmp_path, train=5, val=3, test=3), "train")
    _, prompts = StreamedQuestions(samples, VisionCollator(processor)).prompts([0, 1])
    for part in (one for one in model.modules() if hasattr(one, "generation_config")):
        monkeypatch.setattr(part.generation_config, "eos_token_id", None)  # it never stops by itself
    written = []
    make = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: written.append(make(**given)) or written[0])
    short = generate(model, processor, prompts, Eval(max_new_tokens=3))
    assert len(short) == 2
    assert written.pop().shape[1] == prompts["input_ids"].shape[1] + 3
    generate(model, processor, prompts, Eval(max_new_tokens=1000))
    assert written[0].shape[1] == 128


@pytest.mark.parametrize("name", ["nano-llava", "nano-blip2", "nano-internvl2"])
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


def test_nothing_is_hashed_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build_nano_iconqa(tmp_path / "data", train=4, val=3, test=3)
    hashed: list[Path] = []
    monkeypatch.setattr(dataset, "sha256", lambda path: hashed.append(path) or "0")
    questions = open_splits(root, Data(root=str(root)), "nano-llava", "cpu")
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
