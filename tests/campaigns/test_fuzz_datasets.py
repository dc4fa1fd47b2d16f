"""Damaged datasets: every reader gives samples, skips with reasons, or one line; never a traceback, never a hang."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from campaign import inputs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from commit_tuning.data.readers.aokvqa import AOKVQA
from commit_tuning.data.readers.base import Reader
from commit_tuning.data.readers.clothoaqa import ClothoAQA
from commit_tuning.data.readers.conversations import Conversations
from commit_tuning.data.readers.hub import AOKVQA_DIRECT, HUB, Columns, HubReader
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.data.readers.macs import MACS
from commit_tuning.data.readers.songdescriber import SongDescriber
from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.errors import UserError

LONGEST = 20
"""Seconds that one input may take before it counts as a hang."""

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
DELETED = object()
ODD = st.one_of(
    st.just(DELETED),
    st.sampled_from([None, True, False, -1, 0, 1, 10**400, 1e308, float("nan"), float("inf"), [], {}, "", " ", DEEP]),
    st.sampled_from(
        ["\ud800", "\0", "a.png", "a.wav", "../a.png", "/etc/passwd", "a/" * 300, "n" * 5000, "~", "<image>"]
    ),
    st.sampled_from(
        ["</s>", "<video>", "[", "['a'", "[" * 5000, "user", "assistant", "tool", "C:\\a.png", "https://a"]
    ),
    st.sampled_from([[[]], [None], [1, "a"], {"": {}}, {"path": []}, {"bytes": 1}, [{"type": "image"}], ["", "a"]]),
    st.text(max_size=12),
    st.integers(),
    st.floats(),
)
BYTES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"null", b"{}", b"[]", b"\xef\xbb\xbf", b"\xff\xfe", b"caf\xe9", b"[" * 5000, b"1" * 5000, b"\r"]),
    st.sampled_from(
        [b"\n", b"\n\n", b'"', b",", b"\xe2\x80\xa8", b"&a [*a]", b"&b ", b"*b", b"!!python/name:os.system", b"\t"]
    ),
)

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
PARTS = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
SAID = {"role": "assistant", "content": "A cat."}
TALKS: list[dict[str, Any]] = [  # every form of data/readers/talk.py
    {"id": "1", "image": "a.png", "conversations": TURNS},
    {"images": ["a.png"], "system": "Be brief.", "conversations": TURNS},
    {"audios": ["a.wav"], "messages": [{"role": "user", "content": "<audio>What?"}, SAID | {"weight": 1}]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PARTS}, SAID]},
    {"image": {"path": "a.png"}, "conversation": [{"human": "What?", "assistant": "A cat."}]},
    {"image": "a.png", "instruction": "Say.", "input": "What?", "output": "A cat.", "history": [["Hello?", "Hi."]]},
    {"image": "a.png", "query": "What?", "response": "A cat."},
    {"sound": "a.wav", "prompt": [{"role": "user", "content": "What?"}], "completion": [SAID]},
    {"audio": "a.wav", "question": "What?", "answer": 3, "objects": {}, "label": None, "mask": "user"},
    {
        "messages": [
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"url": "a.wav"}}, PARTS[1]]},
            SAID,
        ]
    },
]
QUESTION = {"question_id": 1, "image_id": "a", "question": "what?", "answers": ["a", " ", "b"]}
CHOICE = {"question_id": "q", "image_id": 1, "question": "what?", "choices": ["a", "b"], "correct_choice_idx": 1}
CHOICE |= {"direct_answers": ["a"] * 10, "difficult_direct_answer": False}
CLIP = {"filename": "park-paris-1-1-a.wav", "annotations": [{"annotator_id": 1, "sentence": "rain", "tags": ["a"]}]}
ICON = {"question": "Which?", "answer": 0, "choices": ["choice_0.png", "choice_1.png"]}
AQA = [["file_name", "QuestionText", "answer", "confidence"], ["a.wav", "Is it?", "yes", "yes"]]
SONGS = [
    ["caption_id", "track_id", "caption", "is_valid_subset", "familiarity", "artist_id", "album_id", "path", "duration"]
]
SONGS += [["1", "2", "Slow", "True", "1", "3", "4", "a.mp3", "20"]]


def as_csv(rows: object) -> bytes:
    """A table; what is no table any more is written as it prints."""
    file = io.StringIO()
    for row in rows if isinstance(rows, list) else [rows]:
        csv.writer(file).writerow(row if isinstance(row, list) else [row])
    return file.getvalue().encode("utf-8", "surrogatepass")


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def as_lines(value: object) -> bytes:
    return b"\n".join(map(as_json, value if isinstance(value, list) else [value]))


def as_yaml(value: object) -> bytes:
    return yaml.dump(value, sort_keys=False).encode("utf-8", "surrogatepass")


Written = tuple[str, Callable[[object], bytes], object, Callable[[Path], Reader[Any]]]
FILES: dict[
    str, Written
] = {  # the file, how it is written, what it holds, who reads it; a new reader joins by one line
    "conversations": ("chat.json", as_json, TALKS, lambda root: Conversations(root / "chat.json")),
    "lines": ("chat.jsonl", as_lines, TALKS, lambda root: Conversations(root / "chat.jsonl")),
    "object": ("chat.json", as_json, {"data": TALKS}, lambda root: Conversations(root / "chat.json")),
    "textvqa": ("TextVQA_0.5.1_val.json", as_json, {"data": [QUESTION]}, lambda root: TextVQA(root, "val")),
    "aokvqa": ("aokvqa_v1p0_val.json", as_json, [CHOICE], lambda root: AOKVQA(root, "val")),
    "direct": ("aokvqa_v1p0_val.json", as_json, [CHOICE], lambda root: AOKVQA(root, "val", "direct_answer")),
    "iconqa": ("iconqa/val/choose_img/1/data.json", as_json, ICON, lambda root: IconQA(root, "val", ["choose_img"])),
    "words": ("iconqa/val/choose_txt/1/data.json", as_json, ICON, lambda root: IconQA(root, "val", ["choose_txt"])),
    "clothoaqa": ("clotho_aqa_val.csv", as_csv, AQA, lambda root: ClothoAQA(root, "val")),
    "songs": ("song_describer.csv", as_csv, SONGS, lambda root: SongDescriber(root, "all", "all")),
    "macs": ("MACS.yaml", as_yaml, {"files": [CLIP]}, lambda root: MACS(root, "all", "all")),
}
PICTURES = ("a.png", "train_images/a.jpg", "val2017/000000000001.jpg")
ICONS = ("image.png", "choice_0.png", "choice_1.png")
SOUNDS = ("a.wav", "audio_files/a.wav", "audio/a.2min.mp3", f"audio/{CLIP['filename']}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the media of every dataset lie."""
    folder = tmp_path_factory.mktemp("datasets")
    icons = [f"iconqa/val/{kind}/1/{name}" for kind in ("choose_img", "choose_txt") for name in ICONS]
    for path in (folder / name for name in (*PICTURES, *icons)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    for path in (folder / name for name in SOUNDS):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(1600), 16_000, format=path.suffix[1:].upper())
    return folder


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(*_: int | FrameType | None) -> None:
        raise AssertionError(f"an input took more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, from the outside to the inside."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """The value with something else at a place, or without what is there."""
    if not path:
        return None if odd is DELETED else odd
    copy = value.copy()
    if len(path) == 1 and odd is DELETED:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(value[path[0]], path[1:], odd)
    return copy


def mutated(data: st.DataObject, value: Any) -> Any:
    """The value with one to three places changed."""
    for _ in range(data.draw(st.integers(1, 3))):
        value = replaced(value, data.draw(st.sampled_from(list(places(value)))), data.draw(ODD))
    return value


def cut(data: st.DataObject, raw: bytes) -> bytes:
    """The bytes with something else in their middle."""
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
    return raw[:start] + data.draw(BYTES) + raw[end if data.draw(st.booleans()) else start :]


def check(opened: Callable[[], Reader[Any]]) -> None:
    """Only samples, skips with reasons, or one line."""
    signal.alarm(LONGEST)
    try:
        reader = opened()
    except UserError as error:
        lines = str(error).splitlines()
    else:
        lines = [check_samples(reader)]
    signal.alarm(0)
    assert len(lines) == 1


def check_samples(reader: Reader[Any]) -> str:
    """What is read can be used, and what is not has its reason."""
    samples = list(reader)
    assert samples
    assert len({sample.id for sample in samples}) == len(samples)
    assert all(sample.question and sample.answer and (sample.image or sample.audio) for sample in samples)
    assert all(skip.reason and "\n" not in skip.reason and len(skip.reason) < 1000 for skip in reader.skipped)
    return "samples"


@pytest.mark.parametrize("name", FILES)
def test_the_sound_file_is_read(root: Path, name: str) -> None:
    path, written, value, opened = FILES[name]
    (root / path).write_bytes(written(value))
    if name == "object":
        with pytest.raises(UserError, match="save that list alone"):
            opened(root)
    else:
        assert opened(root).skipped == []


@inputs(300, 1500)
@given(name=st.sampled_from(list(FILES)), data=st.data())
def test_damaged_file_gives_samples_skips_or_one_line(root: Path, name: str, data: st.DataObject) -> None:
    path, written, value, opened = FILES[name]
    whole = data.draw(st.booleans())
    (root / path).write_bytes(written(mutated(data, value)) if whole else cut(data, written(value)))
    check(lambda: opened(root))


class Rows(list[dict[str, Any]]):
    """Rows as `datasets` gives them, of any values."""

    features: dict[str, Any]

    def with_format(self, kind: None) -> Rows:
        return self

    def select_columns(self, names: list[str]) -> Rows:
        return self

    def cast_column(self, name: str, feature: object) -> Rows:
        return self


def hub_rows(row: dict[str, Any], columns: Columns) -> Rows:
    import datasets

    rows = Rows([row] * 2)
    classes = datasets.ClassLabel(names=["yes", "no"])
    medium = datasets.Image() if columns.image else datasets.Audio()
    special = {columns.image or columns.audio: medium, "answer": classes}
    rows.features = {name: special.get(name, datasets.Value("string")) for name in columns.names}
    return rows


@inputs(100, 500)
@given(name=st.sampled_from([*HUB, "direct"]), data=st.data())
def test_damaged_rows_of_the_hub_are_skipped(root: Path, name: str, data: st.DataObject) -> None:
    columns = AOKVQA_DIRECT if name == "direct" else HUB[name]
    path = root / ("a.png" if columns.image else "a.wav")
    row: dict[str, Any] = dict.fromkeys(columns.names, "text")
    row |= {
        columns.answers: 0 if columns.choices else ["yes"],
        columns.image or columns.audio or "": {"path": str(path)},
    }
    row |= {columns.choices: ["a", "b"]} if columns.choices else {}
    row |= {columns.leave_out: False} if columns.leave_out else {}
    key = data.draw(st.sampled_from(sorted(row)))
    odd = data.draw(ODD.filter(lambda it: it is not DELETED))  # a row of datasets has every column
    check(lambda: HubReader(hub_rows(row | {key: odd}, columns), columns, "rows"))
