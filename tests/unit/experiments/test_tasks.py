"""Every dataset that a recipe can name opens in three splits, and is scored by a metric that there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commit_lab.nano.pictures.nano_textvqa import build_nano_textvqa
from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.data.tasks import TASKS, _validates
from commit_tuning.errors import UserError
from commit_tuning.metrics.score import METRICS

BUILT = [name for name, task in TASKS.items() if task.build is not None]


@pytest.fixture(scope="module", params=BUILT)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    task = TASKS[request.param]
    assert task.build is not None
    return request.param, task.build(tmp_path_factory.mktemp("data") / "root", train=4, val=4, test=4)


def scored(name: str, prediction: str, sample: Any) -> float:
    record = {
        "kind": sample.kind,
        "choices": sample.choices,
        "prediction": prediction,
        "answers": sample.answers,
        "answer": sample.answer,
    }
    return float(METRICS[TASKS[name].metric]([record])["score"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_built_dataset_is_read_and_scored(built: tuple[str, Path], split: str) -> None:
    name, root = built
    samples = TASKS[name].read(root, split, None, False)
    assert len(samples) >= 4
    sample = samples[0]
    assert (sample.image is None) != (sample.audio is None)
    assert scored(name, sample.answer, sample) > 0.5
    assert scored(name, "zebra", sample) == 0


def test_a_folder_with_a_dataset_is_taken_as_it_is(built: tuple[str, Path]) -> None:
    name, root = built
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert TASKS[name].root(str(root)) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_hidden_test_answers_make_validation_the_test(tmp_path: Path) -> None:
    root = build_nano_textvqa(tmp_path / "data", train=25, val=4, test=4)
    read = TASKS["textvqa"].read
    train, val, test = (read(root, split, None, False) for split in ("train", "val", "test"))
    whole = TextVQA(root, "train")
    assert [test[index].id for index in range(len(test))] == [sample.id for sample in TextVQA(root, "val")]
    held_out = [val[index].id for index in range(len(val))]
    assert sorted([*held_out, *(train[index].id for index in range(len(train)))]) == sorted(s.id for s in whole)
    assert len(read(root, "train", 3, False)) == 3
    assert 0 < len(held_out) < 8  # a tenth, more or less


def test_no_picture_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    root = build_nano_textvqa(tmp_path / "data", train=24, val=4, test=4)
    path = root / "TextVQA_0.5.1_train.json"
    content = json.loads(path.read_text("utf-8"))
    for first, second in zip(content["data"][::2], content["data"][1::2], strict=True):
        second["image_id"] = first["image_id"]
    path.write_text(json.dumps(content), "utf-8")
    whole = TextVQA(root, "train")
    pictures = {whole.record(index).id: whole.record(index).pictures[0].name for index in range(len(whole))}
    parts = [TASKS["textvqa"].read(root, split, None, False) for split in ("train", "val")]
    train, val = ({pictures[part[index].id] for index in range(len(part))} for part in parts)
    assert val
    assert not train & val


def test_too_few_training_questions_to_hold_any_out(tmp_path: Path) -> None:
    root = build_nano_textvqa(tmp_path / "data", train=1, val=1, test=1)
    held_out = _validates(TextVQA(root, "train").record(0))
    split = "train" if held_out else "val"
    with pytest.raises(UserError, match=rf"the 1 training questions in .* leave none for {split}"):
        TASKS["textvqa"].read(root, split, None, False)


def test_a_folder_below_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TASKS["textvqa"].root("~/textvqa") == tmp_path / "textvqa"
