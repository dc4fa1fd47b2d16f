"""What every reader promises about its dataset, however broken. A new reader joins READERS by one line."""

from __future__ import annotations

import csv
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import media_zoo as zoo
import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from commit_tuning.data.readers.aokvqa import AOKVQA
from commit_tuning.data.readers.base import DamagedError, Reader
from commit_tuning.data.readers.clothoaqa import ClothoAQA
from commit_tuning.data.readers.conversations import Conversations
from commit_tuning.data.readers.hub import HubReader
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.data.readers.macs import MACS
from commit_tuning.data.readers.songdescriber import SongDescriber
from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError
from commit_tuning.metrics.aokvqa import direct_answer
from commit_tuning.metrics.vqa import soft_accuracy


@dataclass(frozen=True)
class Written:
    """Five good samples on disk: the media file of each, their ids in order, and the file of annotations, if any."""

    media: list[Path]
    ids: list[str]
    notes: Path | None = None


def paint(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.linear_gradient("L").resize((40, 30)).point([max(0, value - shade) for value in range(256)])
    picture.convert("RGB").save(path)
    return path


def play(path: Path, gain: float = 0.5, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = gain * np.sin(np.arange(4000) / 8)
    soundfile.write(path, np.stack([wave, wave], 1), 16_000, format=path.suffix[1:].upper(), **options)
    return path


def write_iconqa(root: Path) -> Written:
    folders = [root / "iconqa" / "train" / "fill_in_blank" / str(number) for number in range(5)]
    media = [paint(folder / "image.png") for folder in folders]
    for folder in folders:
        (folder / "data.json").write_text(json.dumps({"question": "How many?", "answer": "3"}))
    return Written(media, [str(number) for number in range(5)])


def write_textvqa(root: Path) -> Written:
    media = [paint(root / "train_images" / f"{number:016x}.jpg") for number in range(5)]
    entries = [
        {"question_id": 34602 + number, "image_id": path.stem, "question": "what brand?", "answers": ["nokia"] * 10}
        for number, path in enumerate(media)
    ]
    notes = root / "TextVQA_0.5.1_train.json"
    notes.write_text(json.dumps({"dataset_type": "train", "dataset_version": "0.5.1", "data": entries}))
    return Written(media, [str(34602 + number) for number in range(5)], notes)


def write_aokvqa(root: Path) -> Written:
    media = [paint(root / "coco" / "train2017" / f"{number:012d}.jpg") for number in range(5)]
    entries = [
        {
            "split": "train",
            "image_id": number,
            "question_id": f"22jbM6gDxdaMaunuzgrs{number}",
            "question": "What is in the water?",
            "choices": ["duck", "boat", "mat", "train"],
            "correct_choice_idx": 1,
            "direct_answers": ["boat"] * 10,
            "difficult_direct_answer": False,
            "rationales": ["It floats."] * 3,
        }
        for number in range(5)
    ]
    notes = root / "aokvqa_v1p0_train.json"
    notes.write_text(json.dumps(entries))
    return Written(media, [entry["question_id"] for entry in entries], notes)  # type: ignore[misc]


def write_rows(path: Path, header: str, rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def write_clothoaqa(root: Path) -> Written:
    media = [play(root / "audio_files" / f"Rain {number}, roof.wav") for number in range(5)]
    rows = [[path.name, 'Is it "rain"?', answer, "yes"] for path in media for answer in ("yes", "no", "yes")]
    notes = write_rows(root / "clotho_aqa_train.csv", "file_name,QuestionText,answer,confidence", rows)  # type: ignore[arg-type]
    return Written(media, [f"{path.name}:0" for path in media], notes)


def write_macs(root: Path) -> Written:
    media = [play(root / "audio" / f"airport-paris-{number}-{number}-a.wav") for number in range(5)]
    notes = root / "MACS.yaml"
    said = [{"annotator_id": turn, "sentence": f"people talk {turn}", "tags": ["footsteps"]} for turn in range(3)]
    notes.write_text(yaml.dump({"files": [{"filename": path.name, "annotations": said} for path in media]}))
    return Written(media, [path.name for path in media], notes)


def write_songs(root: Path) -> Written:
    media = [play(root / "audio" / f"0{number}" / f"{number}.2min.mp3") for number in range(5)]
    header = "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration"
    rows = [[n, 100 + n, "Slow, sad piano", True, 1, n, 7, f"0{n}/{n}.mp3", 200.5] for n in range(5)]
    return Written(media, [str(100 + n) for n in range(5)], write_rows(root / "song_describer.csv", header, rows))  # type: ignore[arg-type]


def write_llava(root: Path) -> Written:
    media = [paint(root / "images" / f"{number}.jpg") for number in range(5)]
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    entries = [{"id": f"c{n}", "image": f"images/{n}.jpg", "conversations": turns} for n in range(5)]
    (root / "chat.json").write_text(json.dumps(entries))
    return Written(media, [f"c{n}" for n in range(5)], root / "chat.json")


def write_messages(root: Path) -> Written:
    media = [play(root / f"{number}.wav") for number in range(5)]
    lines = []
    for path in media:
        parts = [{"type": "audio", "audio": path.name}, {"type": "text", "text": "What do you hear?"}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Rain."}]
        lines.append(json.dumps({"messages": messages}))
    (root / "chat.jsonl").write_text("\n".join(lines) + "\n")
    return Written(media, [str(number) for number in range(1, 6)], root / "chat.jsonl")


def write_hub(root: Path) -> Written:
    return Written([paint(root / f"{number}.png") for number in range(5)], [str(n) for n in range(5)])


def open_hub(root: Path, **options: Any) -> HubReader:
    import datasets

    files = [str(root / f"{number}.png") for number in range(5)]
    rows = {"image": files, "question_id": list(range(5)), "question": ["what?"] * 5, "answers": [["a", "b"]] * 5}
    features = datasets.Features(
        image=datasets.Image(),
        question_id=datasets.Value("int32"),
        question=datasets.Value("string"),
        answers=datasets.Sequence(datasets.Value("string")),
    )
    return HubReader(datasets.Dataset.from_dict(rows, features=features), "facebook/textvqa", **options)


TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
Open = Callable[..., Reader[Any]]
READERS: dict[str, tuple[Callable[[Path], Written], Open]] = {  # a new reader joins by one line
    "iconqa": (write_iconqa, lambda root, **options: IconQA(root, "train", **options)),
    "textvqa": (write_textvqa, lambda root, **options: TextVQA(root, "train", **options)),
    "aokvqa": (write_aokvqa, lambda root, **options: AOKVQA(root, "train", **options)),
    "clothoaqa": (write_clothoaqa, lambda root, **options: ClothoAQA(root, "train", **options)),
    "macs": (write_macs, lambda root, **options: MACS(root, "train", **options)),
    "songdescriber": (write_songs, lambda root, **options: SongDescriber(root, "all", **options)),
    "llava": (write_llava, lambda root, **options: Conversations(root / "chat.json", **options)),
    "messages": (write_messages, lambda root, **options: Conversations(root / "chat.jsonl", **options)),
    "hub": (write_hub, open_hub),
}


@dataclass(frozen=True)
class Case:
    root: Path
    written: Written
    open: Open

    def __call__(self, **options: Any) -> Reader[Any]:
        return self.open(self.root, **options)

    def check_third_is_skipped(self, reason: str) -> None:
        """All else is read, the third is named with its reason; strict, it is an error."""
        reader, ids = self(), self.written.ids
        assert [sample.id for sample in reader] == ids[:2] + ids[3:]
        assert len(reader.skipped) == 1
        assert reason in reader.skipped[0].reason
        with pytest.raises(UserError, match="repair it, or read without strict to skip it") as error:
            self(strict=True)
        assert "\n" not in str(error.value)
        assert str(reader.skipped[0].path) in str(error.value)

    def check_error(self, *words: str) -> None:
        """Opening is an error of one line that names the file of annotations."""
        with pytest.raises(UserError) as error:
            self()
        assert "\n" not in str(error.value)
        name = "" if self.written.notes is None else self.written.notes.name
        assert all(word in str(error.value) for word in (name, *words))


def make(name: str, root: Path) -> Case:
    root.mkdir(exist_ok=True)
    return Case(root, READERS[name][0](root), READERS[name][1])


@pytest.fixture(params=list(READERS))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return make(request.param, tmp_path / "root")


def test_samples_in_a_fixed_order(case: Case) -> None:
    reader = case(strict=True)
    assert len(reader) == 5
    assert [sample.id for sample in reader] == [sample.id for sample in case()] == case.written.ids
    assert reader.skipped == []
    for sample in reader:
        assert isinstance(sample, Sample)
        assert sample.answer in sample.answers
        assert all(isinstance(text, str) and text for text in (sample.kind, sample.question, *sample.answers))
        assert sample.choices is None or sample.answer in sample.choices
        if sample.audio is None:
            assert sample.image is not None
            assert sample.image.mode == "RGB"
        else:
            assert sample.image is None
            assert (sample.audio.rate, sample.audio.samples.dtype) == (16_000, np.float32)
            assert sample.audio.samples.shape == pytest.approx((4000,), abs=200)


def test_limit(case: Case) -> None:
    assert [sample.id for sample in case(limit=2)] == case.written.ids[:2]
    with pytest.raises(UserError, match="at least one"):
        case(limit=0)


def test_decoded_when_asked_for_and_not_kept(case: Case) -> None:
    reader = case()
    before = [reader[0], reader[0]]
    path = case.written.media[0]
    paint(path, 0) if before[0].image else play(path, gain=0.1)
    after = reader[0]
    if after.image is not None:
        assert before[0].image is not None
        assert before[0].image.tobytes() == before[1].image.tobytes() != after.image.tobytes()  # type: ignore[union-attr]
    else:
        assert np.abs(after.audio.samples).max() < 0.2 < np.abs(before[0].audio.samples).max()  # type: ignore[union-attr]


def test_a_file_removed_after_opening(case: Case) -> None:
    reader = case()
    case.written.media[2].unlink()
    with pytest.raises(UserError, match="is missing; it changed after the dataset was opened") as error:
        reader[2]
    assert "\n" not in str(error.value)
    assert reader[3].id == case.written.ids[3]
    assert len(reader) == 5


def test_a_reader_goes_to_a_worker(case: Case) -> None:
    copy = pickle.loads(pickle.dumps(case()))
    assert [sample.id for sample in copy] == case.written.ids


def test_nothing_readable(case: Case) -> None:
    for path in case.written.media:
        path.unlink()
    case.check_error("no readable sample", "5 broken, first:", "is missing", "expected")


ANNOTATED = [name for name in READERS if name not in {"iconqa", "hub"}]


@pytest.mark.parametrize("name", ANNOTATED)
def test_no_annotations(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    case.written.notes.unlink()  # type: ignore[union-attr]
    case.check_error("expected")


def no_data(path: Path) -> None:
    path.write_bytes(b"")


def bomb(side: int) -> Callable[[Path], None]:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def write(path: Path) -> None:
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))

    return write


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)]) and None


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def sound(frames: int, rate: int, **options: Any) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, np.zeros(frames), rate, format="WAV", **options)


def not_finite(path: Path) -> None:
    soundfile.write(path, np.full(4000, np.nan), 16_000, format="WAV", subtype="FLOAT")


def cut_mp3(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 40_000), 16_000, format="MP3")
    cut(0.5)(path)


def cut_wav(path: Path) -> None:
    sound(4000, 16_000)(path)
    cut(0.5)(path)


BOTH: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "empty": (no_data, "is not a whole"),
    "text": (lambda path: path.write_text("hello"), "is not a whole"),
    "a pipe": (pipe, "is missing"),
    "a folder": (folder, "is missing"),
}
PICTURES = BOTH | {  # a new damage joins by one line
    "truncated": (cut(0.95), "is not a whole picture"),
    "bomb": (bomb(20_000), "is too large: above 32 million pixels"),
    "small bomb": (bomb(6000), "is too large: 6000 x 6000 pixels"),
    "PostScript": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a whole"),
}
SOUNDS = BOTH | {
    "truncated wav": (cut_wav, "is cut off"),
    "truncated mp3": (cut_mp3, "is cut off"),
    "no frames": (sound(0, 16_000), "holds no sound"),
    "too long": (sound(1_900_000, 1000, subtype="PCM_U8"), "is too long"),
    "a rate of 1 Hz": (sound(100, 1), "has a sampling rate of 1 Hz"),
    "not finite": (not_finite, "not finite"),
}
HEARING = {"clothoaqa", "macs", "songdescriber", "messages"}
MEDIA = [(name, damage) for name in READERS for damage in (SOUNDS if name in HEARING else PICTURES)]


@pytest.mark.parametrize(("name", "damage"), MEDIA)
def test_a_broken_file_is_skipped_and_named(name: str, damage: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    destroy, reason = (SOUNDS if name in HEARING else PICTURES)[damage]
    destroy(case.written.media[2])
    case.check_third_is_skipped(reason)


@pytest.mark.parametrize("name", READERS)
def test_every_kind_of_picture_or_sound_is_read(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    path = case.written.media[2]
    if name in HEARING:
        for kind in zoo.SOUNDS.values():
            path.write_bytes(kind())
            assert case(strict=True)[2].audio.samples.shape == (4000,)  # type: ignore[union-attr]
    else:
        for content, expected in zoo.PICTURES.values():
            path.write_bytes(content())
            assert zoo.shows(case(strict=True)[2].image, expected())  # type: ignore[arg-type]


ODD = [(name, kind) for name in READERS for kind in (zoo.ODD_SOUNDS if name in HEARING else zoo.ODD_PICTURES)]


@pytest.mark.parametrize(("name", "kind"), ODD)
def test_unreadable_picture_or_sound_is_no_sample(name: str, kind: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    content, reason = (zoo.ODD_SOUNDS if name in HEARING else zoo.ODD_PICTURES)[kind]
    case.written.media[2].write_bytes(content())
    if len(reader := case()) == 4:
        case.check_third_is_skipped(reason)
    else:  # damaged inside
        with pytest.raises(DamagedError, match=reason):
            reader[2]


NAMING = ["textvqa", "clothoaqa", "macs", "llava", "messages"]  # their entries name files as they like


def rename_third(case: Case, name: str, on_disk: str, in_notes: str) -> None:
    """Give the third file another name, and its entry perhaps a third one, beside its folder and ending."""
    path, notes = case.written.media[2], case.written.notes
    assert notes is not None
    path.rename(path.with_name(on_disk + path.suffix))
    spelt = in_notes if name == "textvqa" else in_notes + path.suffix
    if name in {"textvqa", "macs"}:
        put(**{"image_id" if name == "textvqa" else "filename": spelt})(notes)
    elif name == "clothoaqa":
        text = notes.read_text("utf-8").replace('"' + path.name + '"', '"' + spelt + '"')
        notes.write_text(text, "utf-8")
    else:
        text = notes.read_text("utf-8").replace(path.name, json.dumps(spelt)[1:-1])
        notes.write_text(text, "utf-8")


CITY = "airport-paris-7"  # a name of MACS holds the city
SPELLINGS = {  # on disk, in the annotations
    "space around it": (f"  {CITY} ", f"  {CITY} "),
    "accents composed": (f"{CITY}-caf\u00e9", f"{CITY}-cafe\u0301"),
    "accents apart": (f"{CITY}-cafe\u0301", f"{CITY}-caf\u00e9"),
    "other scripts": (f"{CITY}-\u4e2d\u6587 \U0001f431", f"{CITY}-\u4e2d\u6587 \U0001f431"),
    "a backslash": (f"{CITY}\\a", f"{CITY}\\a"),
    "shell's marks": (f"{CITY}*?[a] $(b)", f"{CITY}*?[a] $(b)"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", NAMING)
def test_readers_open_unusual_file_names(name: str, spelling: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    rename_third(case, name, *SPELLINGS[spelling])
    assert len(case(strict=True)) == 5


SPACED = {
    "textvqa": {"image_id": f" {2:016x} "},
    "macs": {"filename": " airport-paris-2-2-a.wav "},
    "llava": {"image": " images/2.jpg\n"},
}


@pytest.mark.parametrize("name", SPACED)
def test_space_in_the_annotations_alone_is_no_fault(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    put(**SPACED[name])(case.written.notes)  # type: ignore[arg-type]
    assert len(case(strict=True)) == 5


@pytest.mark.parametrize("name", NAMING)
def test_windows_paths_lead_to_the_file(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    path = case.written.media[2]
    (path.parent / "deep").mkdir()
    rename_third(case, name, CITY, f"deep\\{CITY}" if name != "macs" else f"deep\\a-paris-{CITY}")
    moved = path.with_name(CITY + path.suffix)
    moved.rename(path.parent / "deep" / (("a-paris-" if name == "macs" else "") + moved.name))
    assert len(case(strict=True)) == 5


@pytest.mark.parametrize("name", NAMING)
def test_windows_paths_out_of_the_folder_are_skipped(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    rename_third(case, name, CITY, f"..\\..\\a-paris-{CITY}")
    assert "lies outside the dataset folder" in case().skipped[0].reason


@pytest.mark.parametrize("name", [name for name in READERS if name != "hub"])
def test_the_folder_that_was_searched_is_named(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    path = case.written.media[2]
    path.unlink()
    reason = case().skipped[0].reason
    folder = Path(reason.split(" is missing in ")[1].split(";")[0])
    assert folder.is_dir()
    assert path.is_relative_to(folder)


@pytest.mark.parametrize("name", ["clothoaqa", "macs", "llava", "messages"])
def test_another_case_of_the_ending_is_named(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    path = case.written.media[2]
    path.rename(path.with_suffix(path.suffix.upper()))
    case.check_third_is_skipped("; there is ")
    assert case().skipped[0].reason.endswith(path.suffix.upper())


@pytest.mark.parametrize("ending", [".jpeg", ".png", ".webp", ".JPG", ".PNG"])
@pytest.mark.parametrize("name", ["iconqa", "textvqa", "aokvqa"])
def test_pictures_of_ids_may_end_otherwise(name: str, ending: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    for path in case.written.media:
        path.rename(path.with_suffix(ending))
    assert [sample.id for sample in case(strict=True)] == case.written.ids


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "textvqa": {"question_id": "shop/12", "image_id": "shop-12"},
        "aokvqa": {"question_id": 12, "image_id": "shop-12"},
    }.items(),
)
def test_ids_may_be_texts_or_numbers(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    put(**values)(case.written.notes)  # type: ignore[arg-type]
    path = case.written.media[2]
    path.rename(path.with_stem("shop-12"))
    assert case(strict=True)[2].id == str(values["question_id"])


@pytest.mark.parametrize("name", [name for name in READERS if name != "hub"])
def test_a_home_folder_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(name, tmp_path / "root")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(READERS[name][1](Path("~/root"))) == 5
    with pytest.raises(UserError, match="~nobody-there"):
        READERS[name][1](Path("~nobody-there/root"))


@pytest.mark.parametrize("name", [name for name in READERS if name != "hub"])  # the hub's files lie where datasets says
def test_a_link_out_of_the_folder_is_skipped(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    path = case.written.media[2]
    path.symlink_to(path.rename(tmp_path / path.name))
    case.check_third_is_skipped("lies outside the dataset folder")


@pytest.mark.parametrize("name", [name for name in READERS if name != "hub"])
def test_readers_follow_links_of_the_hub_cache(name: str, tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "0123abc").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    case = make(name, tmp_path / "snapshots" / "0123abc" / "data")
    for index, path in enumerate(sorted(path for path in tmp_path.rglob("*") if path.is_file())):
        path.symlink_to(path.rename(tmp_path / "blobs" / str(index)))
    assert [sample.id for sample in case(strict=True)] == case.written.ids


FILES: dict[str, Callable[[Path], Any]] = {
    "empty": no_data,
    "broken": lambda path: path.write_text('{"data": [{"files": ['),
    "deep": lambda path: path.write_text("[" * 200_000),
    "not UTF-8": lambda path: path.write_bytes(b'[{"question": "\xe9\xff"}]'),
    "UTF-16": lambda path: path.write_bytes(path.read_text("utf-8").encode("utf-16")),
    "UTF-16 without a mark": lambda path: path.write_bytes(path.read_text("utf-8").encode("utf-16-be")),
    "of another type": lambda path: path.write_text('"heart"'),
    "nothing in it": lambda path: path.write_text("[]"),
    "zero bytes": lambda path: path.write_bytes(b"\0" * 1000),
    "a pipe": pipe,
    "a folder": folder,
}


@pytest.mark.parametrize("damage", FILES)
@pytest.mark.parametrize("name", ANNOTATED)
def test_a_broken_file_of_annotations_is_an_error(name: str, damage: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    assert case.written.notes is not None
    FILES[damage](case.written.notes)
    case.check_error()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ANNOTATED)
def test_a_file_in_another_encoding_is_named(name: str, encoding: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    assert case.written.notes is not None
    case.written.notes.write_bytes(case.written.notes.read_text("utf-8").encode(encoding))
    case.check_error("is UTF-16 or UTF-32; save it as UTF-8")


@pytest.mark.parametrize("name", ["textvqa", "aokvqa", "macs", "llava"])
def test_a_code_page_of_windows_is_named(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    assert case.written.notes is not None
    raw = case.written.notes.read_bytes()
    case.written.notes.write_bytes(raw[:40] + "café".encode("cp1252") + raw[40:])
    case.check_error("is not UTF-8 at byte 43 (perhaps cp1252 or another code page); save it as UTF-8")


@pytest.mark.parametrize("name", ANNOTATED)
def test_ends_of_lines_and_separators_lose_nothing(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    notes = case.written.notes
    assert notes is not None
    words = notes.read_text("utf-8")
    for old in ("what brand?", "What is in the water?", 'Is it ""rain""?', "people talk", "Slow, sad piano", "What"):
        words = words.replace(old, f"{old}\u2028a\u0085b") if notes.suffix != ".yaml" else words
    notes.write_bytes(b"\xef\xbb\xbf" + words.replace("\n", "\r\n").encode())
    reader = case(strict=True)
    assert [sample.id for sample in reader] == case.written.ids
    if notes.suffix != ".yaml":
        sample = reader[4]
        assert "\u2028a\u0085b" in f"{sample.question} {sample.answer}"


@pytest.mark.parametrize("change", [lambda text: text[:-2], lambda text: text + " ]", lambda text: text[:-1] + ",]"])
@pytest.mark.parametrize("name", ["textvqa", "aokvqa", "llava"])
def test_json_that_ends_wrongly_is_an_error(name: str, change: Callable[[str], str], tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    assert case.written.notes is not None
    case.written.notes.write_text(change(case.written.notes.read_text()))
    case.check_error("is not valid JSON")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_of_conversations_is_named(indent: int | None, tmp_path: Path) -> None:
    case = make("llava", tmp_path / "root")
    assert case.written.notes is not None
    entries = json.loads(case.written.notes.read_text())
    case.written.notes.write_text(json.dumps({"version": 1, "data": entries}, indent=indent))
    case.check_error("is one JSON object with its entries under 'data': save that list alone")
    case.written.notes.write_text(json.dumps(entries[0], indent=indent))
    if indent is None:
        assert [sample.id for sample in case(strict=True)] == ["c0"]
    else:
        case.check_error("is one JSON object on several lines: put it into a list, [...]")


def test_a_blank_vote_is_one_of_ten(tmp_path: Path) -> None:
    textvqa, aokvqa = make("textvqa", tmp_path / "a"), make("aokvqa", tmp_path / "b")
    put(answers=[" "] * 6 + ["nokia"] * 2 + ["htc"] * 2)(textvqa.written.notes)  # type: ignore[arg-type]
    put(direct_answers=[""] * 8 + ["boat"] * 2)(aokvqa.written.notes)  # type: ignore[arg-type]
    brand, boat = textvqa()[2], AOKVQA(aokvqa.root, "train", "direct_answer")[2]
    assert (len(brand.answers), brand.answer, len(boat.answers), boat.answer) == (10, "nokia", 10, "boat")
    # of ten, two match: each of the two left out leaves 1/3, each of the eight others 2/3
    assert soft_accuracy("nokia", brand.answers) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert direct_answer("boat", boat.answers) == pytest.approx(2 / 3)
    assert textvqa().skipped == []


def test_blank_captions_are_left_out_and_counted(tmp_path: Path) -> None:
    case = make("macs", tmp_path / "root")
    put(annotations=[{"sentence": " "}, {"sentence": "rain"}])(case.written.notes)  # type: ignore[arg-type]
    reader = case()
    assert (len(reader), reader[2].answers) == (5, ("rain",))
    assert [skip.reason for skip in reader.skipped] == ["1 of 2 sentence are blank; the others are read"]


def test_a_file_is_checked_as_each_medium(tmp_path: Path) -> None:
    case = make("llava", tmp_path / "root")
    put(image=None, audio="images/1.jpg", conversations=TALK)(case.written.notes)  # type: ignore[arg-type]
    case.check_third_is_skipped("1.jpg is not a whole sound")


def test_json_list_is_read_with_any_white_space(tmp_path: Path) -> None:
    case = make("llava", tmp_path / "root")
    assert case.written.notes is not None
    entries = json.loads(case.written.notes.read_text())
    spaced = "\ufeff \n[\r\n" + "\t,\n".join(json.dumps(entry, indent=2) for entry in entries) + "\n]\n"
    case.written.notes.write_text(spaced, "utf-8")
    assert [sample.id for sample in case(strict=True)] == case.written.ids


@pytest.mark.parametrize("name", [name for name in ANNOTATED if name != "messages"])  # read line by line
def test_annotations_too_large_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(name, tmp_path / "root")
    for bound in ("MAX_BYTES", "MAX_YAML"):
        monkeypatch.setattr(f"commit_tuning.data.files.{bound}", 100)
    case.check_error("too large")


def third(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the third entry of a JSON or YAML file of annotations."""

    def write(path: Path) -> None:
        load, dump = (yaml.safe_load, yaml.dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
        if path.suffix == ".jsonl":
            entries = data = [json.loads(line) for line in path.read_text().splitlines()]
        else:
            data = load(path.read_text())
            entries = data if isinstance(data, list) else data["data" if "data" in data else "files"]
        change(entries[2])
        path.write_text("\n".join(map(json.dumps, data)) if path.suffix == ".jsonl" else dump(data))

    return write


def put(**values: Any) -> Callable[[Path], None]:
    return third(lambda entry: entry.update(values))


def line(number: int, text: str) -> Callable[[Path], None]:
    """Replace a line, counted from 0."""

    def write(path: Path) -> None:
        lines = path.read_text("utf-8").splitlines()
        lines[number] = text
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))

    return write


def turns(*said: tuple[Any, Any]) -> Callable[[Path], None]:
    return put(conversations=[{"from": role, "value": text} for role, text in said])


def messages(content: Any, role: str = "user") -> Callable[[Path], None]:
    return put(messages=[{"role": role, "content": content}, {"role": "assistant", "content": "Rain."}])


SURROGATE = "\ud800"
ENTRIES: dict[str, dict[str, tuple[Callable[[Path], None], str]]] = {  # a new breakage joins by one line
    "textvqa": {
        "no question": (put(question=" "), "no question"),
        "question of another type": (put(question=["what?"]), "no question"),
        "half a character": (put(question=SURROGATE), "is not UTF-8"),
        "no answers": (put(answers=[]), "no answers"),
        "blank answers": (put(answers=[" ", ""]), "no answers"),
        "answers of another type": (
            put(answers=[["nokia"], 2]),
            "no answers (those of TextVQA's test split are not public): one is a list",
        ),
        "answers true and false": (put(answers=[True, False]), "is true and no text"),
        "answers of no list": (put(answers="nokia"), "no answers"),
        "an id that is there": (put(question_id=34602), "is there already"),
        "an id of another type": (put(question_id=True), "question_id"),
        "a path out": (put(image_id="../../../secret"), "lies outside"),
        "an absolute path": (put(image_id="/etc/hostname"), "lies outside"),
        "a zero byte in a path": (put(image_id="a\0b"), "lies outside"),
        "a long path": (put(image_id="a" * 5000), "is missing"),
        "a line break in a path": (put(image_id="a\nb"), "is missing"),
        "no entry": (third(dict.clear), "no answers"),
    },
    "aokvqa": {
        "no choices": (put(choices=[]), "no choices"),
        "a blank choice": (put(choices=["a", " ", "b"]), "a blank choice"),
        "one choice": (put(choices=["a"]), "not 2 to 26 choices"),
        "an index past the choices": (put(correct_choice_idx=4), "is none below 4"),
        "an index below": (put(correct_choice_idx=-1), "is none below 4"),
        "an index of another type": (put(correct_choice_idx="1"), "is none below 4"),
        "no index": (put(correct_choice_idx=None), "no correct_choice_idx"),
        "a huge image id": (put(image_id=10**400), "image_id"),
        "an image id of another type": (put(image_id=["1"]), "image_id"),
        "no id": (put(question_id=None), "no question_id"),
    },
    "clothoaqa": {
        "a path out": (line(7, "../../secret.wav,Is it?,yes,yes"), "lies outside"),
        "no answer": (line(7, "a.wav,Is it?, ,yes"), "no answer"),
    },
    "macs": {
        "no annotations": (put(annotations=[]), "no annotations"),
        "annotations of another type": (put(annotations="rain"), "no annotations"),
        "an annotation of another type": (put(annotations=["rain"]), "not an object"),
        "a blank sentence and no sound": (
            put(filename="park-paris-9.wav", annotations=[{"sentence": " "}, {"sentence": "rain"}]),
            "park-paris-9.wav is missing",
        ),
        "a blank sentence": (put(annotations=[{"sentence": " "}]), "no sentence"),
        "no city": (put(filename="rain.wav"), "no city"),
        "a path out": (put(filename="../airport-paris-1.wav"), "lies outside"),
        "a clip that is there": (put(filename="airport-paris-0-0-a.wav"), "is there already"),
        "a name of another type": (put(filename=["airport-paris-0-0-a.wav"]), "no filename"),
    },
    "songdescriber": {
        "a path out": (line(3, "2,102,Piano,True,1,2,7,../../secret.mp3,2.0"), "lies outside"),
        "an absolute path": (line(3, "2,102,Piano,True,1,2,7,/etc/x.mp3,2.0"), "lies outside"),
        "no caption": (line(3, "2,102,,True,1,2,7,02/2.mp3,2.0"), "no caption"),
        "a caption id that is there": (line(3, "1,102,Piano,True,1,2,7,02/2.mp3,2.0"), "is there already"),
        "a column too few": (line(3, "2,102,Piano"), "3 columns instead of 9"),
        "a column too many": (line(3, "2,102,Slow, sad,True,1,2,7,02/2.mp3,2.0"), "10 columns instead of 9"),
        "cp1252": (
            line(3, "2,102,\udce9,True,1,2,7,02/2.mp3,2.0"),
            "the caption is not UTF-8; save a file in cp1252 or another code page as UTF-8",
        ),
        "a long field": (line(3, f'2,102,"{"a" * 200_000}",True,1,2,7,02/2.mp3,2.0'), "are not CSV"),
        "letters after a quote": (line(3, '2,102,"Slow"x,True,1,2,7,02/2.mp3,2.0'), "lines 4 to 4 are not CSV"),
    },
    "llava": {
        "no turns": (put(conversations=[]), "no conversations"),
        "turns of another type": (put(conversations={"a": 1}), "no conversations"),
        "a turn of another type": (put(conversations=["hello"]), "not an object"),
        "no answer": (turns(("human", "Hello?")), "no answer"),
        "a blank answer": (turns(("human", "Hello?"), ("gpt", " ")), "no text in a turn"),
        "an answer first": (turns(("gpt", "Hello!"), ("human", "?")), "an answer before any question"),
        "a question of a mark alone": (turns(("human", "<image>"), ("gpt", "A cat.")), "no text in a turn"),
        "an unknown role": (
            turns(("robot", "Hello?"), ("gpt", "Hello!")),
            "the role 'robot' is none of human, user, gpt",
        ),
        "a text of another type": (turns(("human", {"a": 5}), ("gpt", "Hello!")), "no text in a turn"),
        "an answer true": (turns(("human", "Is it?"), ("gpt", True)), "is true and no text: write"),
        "no picture": (put(image=None), "0 pictures"),
        "two pictures": (put(image=["images/1.jpg", "images/2.jpg"]), "2 pictures"),
        "a picture of another type": (put(image=5), "no name of a picture"),
        "an address": (put(image="https://example.org/a.jpg"), "download it first"),
        "an embedded picture": (put(image="data:image/png;base64,AAAA"), "download it first"),
        "a path out": (put(image="../secret.jpg"), "lies outside"),
        "an absolute path": (put(image="file:///etc/hostname"), "lies outside"),
        "a half character as id": (put(id=SURROGATE), "is not UTF-8"),
    },
    "messages": {
        "a broken line": (line(2, '{"messages": ['), "not valid JSON"),
        "a deep line": (line(2, "[" * 100_000), "not valid JSON"),
        "a line of another type": (line(2, "[1]"), "not an object"),
        "a line that is not UTF-8": (line(2, '{"messages": "\udce9"}'), "the line is not UTF-8 at byte 14"),
        "no parts": (messages([]), "no text"),
        "an unknown part": (
            messages([{"type": "video", "video": "a.mp4"}]),
            "a part of type 'video' that is neither text",
        ),
        "a part of another type": (messages(["hello"]), "not an object"),
        "a part without a type": (messages([{"texts": "hello"}]), "neither text"),
        "an embedded sound": (messages([{"type": "input_audio", "input_audio": {"data": "AAAA"}}]), "no name of"),
        "text alone": (messages("Hello?"), "0 pictures and sounds"),
        "no content": (messages(None), "no text"),
    },
}


@pytest.mark.parametrize(("name", "damage"), [(name, damage) for name in ENTRIES for damage in ENTRIES[name]])
def test_a_broken_entry_is_skipped_and_named(name: str, damage: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    (tmp_path / "secret.wav").write_bytes(b"")
    assert case.written.notes is not None
    change, reason = ENTRIES[name][damage]
    change(case.written.notes)
    if name == "clothoaqa":  # a row of three: the question keeps the two others
        assert [sample.id for sample in case()] == case.written.ids
        assert reason in case().skipped[0].reason
    else:
        case.check_third_is_skipped(reason)
    where = case().skipped[0]
    assert (where.path, where.line) == (case.written.notes, {"clothoaqa": 8, "songdescriber": 4}.get(name, 3))


@pytest.mark.parametrize("name", ["clothoaqa", "songdescriber"])
def test_unclosed_quote_skips_rows_and_counts_them(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    notes = case.written.notes
    assert notes is not None
    lines = notes.read_text("utf-8").splitlines()
    lines[1] = (
        lines[1].replace('"Slow, sad piano"', '"Slow, sad piano').replace('"Is it ""rain""?"', '"Is it ""rain""?')
    )
    notes.write_text("\n".join(lines), "utf-8")
    reader = case()
    assert "are not CSV" in reader.skipped[0].reason
    assert reader.skipped[0].line == 2
    assert 3 <= len(reader) <= 5
    with pytest.raises(UserError, match=f"{notes.name}:2: lines 2 to"):
        case(strict=True)


@pytest.mark.parametrize("name", ["clothoaqa", "songdescriber"])
def test_a_missing_column_is_an_error(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path / "root")
    assert case.written.notes is not None
    column = {"clothoaqa": "QuestionText", "songdescriber": "artist_id"}[name]
    case.written.notes.write_text(case.written.notes.read_text("utf-8").replace(column, "other", 1), "utf-8")
    case.check_error(f"has no column {column}")


YAML: dict[str, str] = {  # all within a moment and a few megabytes
    "tabs": "files:\n\t- a",
    "deep": "files: " + "[" * 200_000,
    "deep blocks": "\n".join(" " * depth + "a:" for depth in range(300)),
    "a code tag": "files: !!python/object/apply:os.system ['true']",
    "aliases of aliases": "a0: &a0 [x, x]\n"
    + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))
    + "\nfiles: [*a59, *a59]",
    "merged mappings": "a0: &a0 {x: y}\n"
    + "\n".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))
    + "\nfiles: [*a59]",
    "an alias of itself": "files: &a [*a]",
    "an unknown alias": "files: [*nobody]",
}


@pytest.mark.parametrize("damage", YAML)
def test_hostile_yaml_is_an_error(damage: str, tmp_path: Path) -> None:
    case = make("macs", tmp_path / "root")
    assert case.written.notes is not None
    case.written.notes.write_text(YAML[damage])
    case.check_error()


def test_aliases_are_counted_as_often_as_they_stand(tmp_path: Path) -> None:
    case = make("macs", tmp_path / "root")
    assert case.written.notes is not None
    notes = "a: &a [" + "{sentence: rain}," * 1000 + "]\nfiles:\n"
    case.written.notes.write_text(notes + "- {filename: park-paris-0.wav, annotations: *a}\n" * 2000)  # 100 kB
    case.check_error("holds more than 4,194,304 values, its aliases written out")


def test_endless_line_is_skipped_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commit_tuning.data.files.MAX_LINE", 1000)
    case = make("messages", tmp_path / "root")
    line(2, '{"a": "' + "b" * 5000 + '"}')(case.written.notes)  # type: ignore[arg-type]
    case.check_third_is_skipped("longer than 1000 bytes")
