"""What the reader promises about any folder in IconQA's layout, however broken."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from commit_tuning.data.files import FaultError
from commit_tuning.data.pictures import choice_names, collage
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def write_question(root: Path, kind: str, pid: str, **changes: Any) -> Path:
    folder = root / "iconqa" / "test" / kind / pid
    folder.mkdir(parents=True)
    picture = Image.linear_gradient("L").resize((40, 30))
    picture.save(folder / "image.png")
    data: dict[str, Any] = {
        "question": " How many? ",
        "ques_type": kind,
        "grade": "grade1",
        "label": "S2",
        "answer": "3",
    }
    if kind == "choose_txt":
        data |= {"choices": ["heart", "star", "cup"], "answer": 1}
    if kind == "choose_img":
        data |= {"choices": ["choice_0.png", "choice_1.png"], "answer": 1}
        for index, colour in enumerate((RED, BLUE)):
            Image.new("RGB", (20, 10), colour).save(folder / f"choice_{index}.png")
    (folder / "data.json").write_text(json.dumps(data | changes))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three good questions: 2, 9 and 10."""
    write_question(tmp_path, "choose_txt", "10")
    write_question(tmp_path, "choose_img", "9")
    write_question(tmp_path, "fill_in_blank", "2")
    return tmp_path


def test_samples_in_order_of_ids(root: Path) -> None:
    dataset = IconQA(root, "test", strict=True)
    samples = list(dataset)
    assert [sample.id for sample in samples] == ["2", "9", "10"]
    assert [sample.kind for sample in samples] == ["fill_in_blank", "choose_img", "choose_txt"]
    assert [sample.answer for sample in samples] == ["3", "B", "star"]
    assert [sample.choices for sample in samples] == [None, ("A", "B"), ("heart", "star", "cup")]
    assert {sample.question for sample in samples} == {"How many?"}
    assert all(isinstance(sample, Sample) and sample.image.mode == "RGB" for sample in samples)
    assert dataset.skipped == []


def test_kinds_and_limit(root: Path) -> None:
    assert [sample.id for sample in IconQA(root, "test", kinds=["choose_txt", "fill_in_blank"])] == ["2", "10"]
    assert [sample.id for sample in IconQA(root, "test", limit=2)] == ["2", "9"]
    with pytest.raises(UserError, match="unknown kind of question: drawing"):
        IconQA(root, "test", kinds=["drawing"])


@pytest.mark.parametrize("inner", ["", "iconqa"])
def test_root_is_the_release_or_its_inner_folder(root: Path, tmp_path: Path, inner: str) -> None:
    assert len(IconQA(root / inner, "test")) == 3
    (tmp_path / "release").mkdir()
    (root / "iconqa").rename(tmp_path / "release" / "iconqa_data")
    (tmp_path / "release" / "iconqa_data").rename(tmp_path / "moved")
    (tmp_path / "release" / "iconqa_data").mkdir()
    (tmp_path / "moved").rename(tmp_path / "release" / "iconqa_data" / "iconqa")
    assert len(IconQA(tmp_path / "release", "test")) == 3


@pytest.mark.parametrize("split", ["train", "..", "", "test/choose_txt"])
def test_missing_split_says_what_is_expected(root: Path, split: str) -> None:
    with pytest.raises(UserError, match=r"expected .*image.png,data.json"):
        IconQA(root, split)


def truncate(folder: Path) -> None:
    picture = folder / "image.png"
    picture.write_bytes(picture.read_bytes()[:-40])


def bomb(folder: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def large(folder: Path) -> None:
    Image.new("1", (8000, 5000)).save(folder / "image.png")


def link(folder: Path) -> None:
    outside = folder.parents[4] / "secret.png"
    Image.new("RGB", (5, 5)).save(outside)
    (folder / "image.png").unlink()
    (folder / "image.png").symlink_to(outside)


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "data.json").read_text())
        (folder / "data.json").write_text(json.dumps(data | changes))

    return change


def climb(folder: Path) -> None:
    Image.new("RGB", (5, 5)).save(folder.parents[4] / "secret.png")
    edit(choices=["choice_0.png", "../" * 5 + "secret.png"])(folder)


def wide(folder: Path) -> None:
    for choice in ("choice_0.png", "choice_1.png"):
        Image.new("1", (5000, 4000)).save(folder / choice)


def text(content: str | bytes) -> Callable[[Path], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "data.json").write_bytes(raw) and None


BREAKAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {  # a new breakage joins by one line
    "truncated picture": ("choose_txt", truncate, "not a whole picture"),
    "empty picture": ("choose_txt", lambda f: (f / "image.png").write_bytes(b""), "not a whole picture"),
    "text as picture": ("choose_txt", lambda f: (f / "image.png").write_text("hello"), "not a whole picture"),
    "missing picture": ("choose_txt", lambda f: (f / "image.png").unlink(), "image.png is missing"),
    "missing choice": ("choose_img", lambda f: (f / "choice_1.png").unlink(), "choice_1.png is missing"),
    "bomb": ("choose_txt", bomb, "image.png"),
    "large picture": ("choose_txt", large, "too large: 8000 x 5000"),
    "choices that are large together": ("choose_img", wide, "are too large together: 40001200 pixels"),
    "link out of the folder": ("choose_txt", link, "outside the dataset folder"),
    "path out of the folder": ("choose_img", climb, "outside the dataset folder"),
    "absolute path": ("choose_img", edit(choices=["/etc/hostname", "choice_0.png"]), "outside the dataset folder"),
    "zero byte in a path": ("choose_img", edit(choices=["a\0b", "choice_0.png"]), "outside the dataset folder"),
    "long path": ("choose_img", edit(choices=["a" * 5000, "choice_0.png"]), "is missing"),
    "line break in a path": ("choose_img", edit(choices=["a\nb", "choice_0.png"]), "missing"),
    "missing json": ("choose_txt", lambda f: (f / "data.json").unlink(), "data.json is missing"),
    "invalid json": ("choose_txt", text("{"), "not valid JSON"),
    "deep json": ("choose_txt", text("[" * 200_000), "not valid JSON"),
    "latin-1 json": ("choose_txt", text(b'{"question": "\xe9"}'), "is not UTF-8 at byte 14"),
    "utf-16 json": ("choose_txt", text('{"question": "?"}'.encode("utf-16")), "data.json is UTF-16"),
    "answer true": ("fill_in_blank", text('{"question": "?", "answer": true}'), "is true and no text"),
    "list as json": ("choose_txt", text("[1]"), "not an object"),
    "no question": ("choose_txt", edit(question="  "), "no question"),
    "no choices": ("choose_txt", edit(choices=[]), "no choices"),
    "choices of no list": ("choose_txt", edit(choices="heart"), "no choices"),
    "too many choices": ("choose_txt", edit(choices=["x"] * 27), "no choices"),
    "blank choice": ("choose_txt", edit(choices=["heart", " "]), "empty choice"),
    "answer past the choices": ("choose_txt", edit(answer=3), "not one of 3 choices"),
    "negative answer": ("choose_txt", edit(answer=-1), "not one of 3 choices"),
    "word as index": ("choose_txt", edit(answer="star"), "no index"),
    "infinite index": ("choose_txt", edit(answer=float("inf")), "no index"),
    "blank answer": ("fill_in_blank", edit(answer=" "), "no answer"),
    "no answer": ("fill_in_blank", edit(answer=None), "no answer"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_question_is_skipped_or_raises_when_strict(root: Path, name: str) -> None:
    kind, damage, reason = BREAKAGES[name]
    folder = write_question(root, kind, "5")
    damage(folder)
    dataset = IconQA(root, "test")
    assert [sample.id for sample in dataset] == ["2", "9", "10"]
    assert [skip.path for skip in dataset.skipped] == [folder]
    assert reason in dataset.skipped[0].reason
    with pytest.raises(UserError, match="strict") as error:
        IconQA(root, "test", strict=True)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_question_folder_linked_from_outside_is_skipped(root: Path, tmp_path: Path) -> None:
    outside = write_question(tmp_path / "elsewhere", "choose_txt", "1")
    (root / "iconqa" / "test" / "choose_txt" / "77").symlink_to(outside)
    dataset = IconQA(root, "test")
    assert [skip.path.name for skip in dataset.skipped] == ["77"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    folder = write_question(tmp_path, "choose_txt", "1")
    (folder / "data.json").unlink()
    with pytest.raises(UserError, match=r"1 broken, first: data.json is missing"):
        IconQA(tmp_path, "test")


def test_a_picture_that_breaks_later_is_an_error(root: Path) -> None:
    dataset = IconQA(root, "test", kinds=["choose_txt"])
    truncate(root / "iconqa" / "test" / "choose_txt" / "10")
    with pytest.raises(UserError, match="changed after the dataset was opened"):
        dataset[0]


def test_collage_of_choices_is_a_grid_in_order() -> None:
    colours = [RED, BLUE, (0, 255, 0), (9, 9, 9)]
    sheet = collage(Image.new("RGB", (64, 64), WHITE), [Image.new("RGB", (32, 32), colour) for colour in colours])
    assert sheet.size == (64, 64)
    assert [sheet.getpixel(xy) for xy in ((5, 5), (37, 5), (5, 37), (37, 37))] == colours
    three = collage(Image.new("RGB", (64, 64), WHITE), [Image.new("RGB", (32, 32), colour) for colour in colours[:3]])
    assert three.size == (64, 64)
    assert three.getpixel((37, 37)) == WHITE
    assert choice_names(Image.new("RGB", (64, 64), WHITE), 3) == ("top left", "top right", "bottom left")
    assert choice_names(Image.new("RGB", (64, 64), WHITE), 5) == ("A", "B", "C", "D", "E")


def test_a_collage_of_crossed_strips_is_refused() -> None:
    strips = [Image.new("RGB", size) for size in ((20_000, 100), (100, 20_000))]
    with pytest.raises(FaultError, match="too large: 40000 x 40000 pixels"):
        collage(Image.new("RGB", (64, 64), WHITE), [*strips, *strips])


def test_collage_with_a_question_picture_crops_nothing(root: Path) -> None:
    sample = IconQA(root, "test", kinds=["choose_img"])[0]
    colours = {colour: count for count, colour in sample.image.getcolors(maxcolors=10**6) or []}
    assert colours[RED] == colours[BLUE] == 20 * 10
    assert sample.image.width == 40
    assert sample.image.height > 30 + 10
    last = sample.image.height - 1
    assert [sample.image.getpixel(xy) for xy in ((0, last), (39, last))] == [RED, BLUE]
    letters = sample.image.crop((0, 30, 40, sample.image.height - 10)).convert("L")
    assert letters.getextrema()[0] < 100  # type: ignore[operator]
