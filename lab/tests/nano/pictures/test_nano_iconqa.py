from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from commit_lab.nano import building
from commit_lab.nano.building import cache_dir, dataset_checksum
from commit_lab.nano.pictures import nano_iconqa
from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa, default_nano_iconqa_root
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.errors import UserError

SIZES = {"train": 12, "val": 6, "test": 9}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nano_iconqa(tmp_path_factory.mktemp("nano") / "data", **SIZES)


def test_layout_is_the_official_one(root: Path) -> None:
    problems = json.loads((root / "problems.json").read_text())
    splits = json.loads((root / "pid_splits.json").read_text())
    assert {split: len(splits[split]) for split in SIZES} == SIZES
    assert sorted(pid for split in SIZES for pid in splits[split]) == sorted(problems)
    for split in SIZES:
        for kind in ("choose_txt", "choose_img", "fill_in_blank"):
            for pid in splits[f"{kind}_{split}"]:
                folder = root / "iconqa" / split / kind / pid
                data = json.loads((folder / "data.json").read_text())
                assert problems[pid] == data | {"split": split}
                assert data["ques_type"] == kind
                names = data["choices"] if kind == "choose_img" else []
                assert sorted(path.name for path in folder.iterdir()) == sorted(["data.json", "image.png", *names])


def test_reader_reads_what_was_built(root: Path) -> None:
    for split, count in SIZES.items():
        dataset = IconQA(root, split, strict=True)
        assert len(dataset) == count
        assert all(sample.image.size == (64, 64) for sample in dataset)
        assert all(sample.answer in (sample.choices or "12345") for sample in dataset)


def test_same_seed_same_dataset_whatever_the_workers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_CHUNK", 5)
    again = build_nano_iconqa(tmp_path / "again", **SIZES, workers=2)
    other = build_nano_iconqa(tmp_path / "other", **SIZES, seed=1)
    manifest = json.loads((again / "MANIFEST.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["counts"] == SIZES
    assert manifest["sha256"] == dataset_checksum(again) == dataset_checksum(root) != dataset_checksum(other)


def test_a_growing_dataset_keeps_its_questions(root: Path, tmp_path: Path) -> None:
    larger = build_nano_iconqa(tmp_path / "larger", train=15, val=6, test=9)
    for path in (root / "iconqa" / "train").rglob("*.png"):
        assert path.read_bytes() == (larger / path.relative_to(root)).read_bytes()


def test_checksum_sees_pixels_but_not_the_png_encoder(tmp_path: Path) -> None:
    root = build_nano_iconqa(tmp_path / "data", train=1, val=1, test=1)
    before = dataset_checksum(root)
    picture = next(root.rglob("image.png"))
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
    pixels.save(picture, compress_level=9)
    assert dataset_checksum(root) == before
    pixels.putpixel((0, 0), (1, 2, 3))
    pixels.save(picture)
    assert dataset_checksum(root) != before
    with pytest.raises(UserError, match="no dataset"):
        dataset_checksum(tmp_path / "nothing")


def test_a_complete_dataset_is_left_alone(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert build_nano_iconqa(root, **SIZES) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_another_dataset_or_folder_is_never_overwritten(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds another Nano-IconQA"):
        build_nano_iconqa(root, **SIZES, seed=7)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is no Nano-IconQA"):
        build_nano_iconqa(tmp_path, **SIZES)
    with pytest.raises(UserError, match="at least 1"):
        build_nano_iconqa(tmp_path / "none", train=0, val=1, test=1)


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(building, "dataset_checksum", fail)
    with pytest.raises(UserError, match=r"cannot write .*/data: disk full; make room"):
        build_nano_iconqa(tmp_path / "data", train=1, val=1, test=1)
    assert [path.name for path in tmp_path.iterdir()] == [".data.lock"]


def test_default_root_is_in_the_chosen_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT_TUNING_CACHE", str(tmp_path))
    monkeypatch.setattr(nano_iconqa, "build_nano_iconqa", lambda root, workers: root)
    assert default_nano_iconqa_root().parent == cache_dir() == tmp_path
    monkeypatch.delenv("COMMIT_TUNING_CACHE")
    assert cache_dir().name in {"commit-tuning", "Cache"}
