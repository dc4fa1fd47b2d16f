"""Every dataset that a recipe can name opens in three splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.data.tasks import TASKS, _validates
from commit_tuning.errors import UserError
from commit_tuning.metrics.score import METRICS


def write_textvqa(root: Path, **counts: int) -> Path:
    """Questions in TextVQA's layout, each about a picture of its own."""
    for split, count in counts.items():
        folder = root / ("test_images" if split == "test" else "train_images")
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for number in range(count):
            name = f"{split}{number:012x}"
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{name}.jpg")
            entries.append({"question_id": number, "image_id": name, "question": "what?", "answers": ["nokia"] * 10})
        (root / f"TextVQA_0.5.1_{split}.json").write_text(json.dumps({"data": entries}), "utf-8")
    return root


def test_every_dataset_has_a_metric() -> None:
    assert {task.metric for task in TASKS.values()} <= METRICS.keys()


def test_hidden_test_answers_make_validation_the_test(tmp_path: Path) -> None:
    root = write_textvqa(tmp_path / "data", train=25, val=4, test=4)
    read = TASKS["textvqa"].read
    train, val, test = (read(root, split, None, False) for split in ("train", "val", "test"))
    whole = TextVQA(root, "train")
    assert [test[index].id for index in range(len(test))] == [sample.id for sample in TextVQA(root, "val")]
    held_out = [val[index].id for index in range(len(val))]
    assert sorted([*held_out, *(train[index].id for index in range(len(train)))]) == sorted(s.id for s in whole)
    assert len(read(root, "train", 3, False)) == 3
    assert 0 < len(held_out) < 8  # a tenth, more or less


def test_held_out_pictures_are_not_trained_on(tmp_path: Path) -> None:
    root = write_textvqa(tmp_path / "data", train=60, val=4, test=4)
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
    root = write_textvqa(tmp_path / "data", train=1, val=1, test=1)
    held_out = _validates(TextVQA(root, "train").record(0))
    split = "train" if held_out else "val"
    with pytest.raises(UserError, match=rf"the 1 training questions in .* leave none for {split}"):
        TASKS["textvqa"].read(root, split, None, False)


def test_a_folder_below_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TASKS["textvqa"].root("~/textvqa") == tmp_path / "textvqa"
