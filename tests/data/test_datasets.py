"""What is particular to each dataset: splits, kinds, answers, settings, and the forms of conversations."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from commit_tuning.data.pictures import load_picture
from commit_tuning.data.readers.aokvqa import AOKVQA
from commit_tuning.data.readers.clothoaqa import ClothoAQA
from commit_tuning.data.readers.conversations import Conversations
from commit_tuning.data.readers.hub import AOKVQA_DIRECT, HUB, Columns, HubReader, open_hub
from commit_tuning.data.readers.macs import CITIES, MACS
from commit_tuning.data.readers.songdescriber import SongDescriber, split_of
from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.data.sample import CAPTION, Sample
from commit_tuning.errors import UserError


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (200, 10, 10)).save(path)


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(1600), 16_000, format=path.suffix[1:].upper())


def table(path: Path, rows: list[list[object]], encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)


def test_answer_is_the_commonest_or_the_first_caption() -> None:
    assert Sample("1", "direct_answer", "?", None, ("b", "a", "a", "c")).answer == "a"
    assert Sample("1", "direct_answer", "?", None, ("c", "a", "a", "c")).answer == "c"
    assert Sample("1", CAPTION, "?", None, ("rain", "wind", "wind")).answer == "rain"


def test_textvqa_val_shares_train_pictures_test_lacks_answers(tmp_path: Path) -> None:
    entry = {"question_id": 1, "image_id": "a", "question": "what brand?", "answers": ["htc", "nokia", "nokia"]}
    for split, folder in (("val", "train_images"), ("test", "test_images")):
        picture(tmp_path / "images" / folder / "a.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        data = [entry] if split == "val" else [{key: entry[key] for key in entry if key != "answers"}]
        (tmp_path / "annotations" / f"TextVQA_0.5.1_{split}.json").write_text(json.dumps({"data": data}))
    sample = TextVQA(tmp_path, "val")[0]
    assert (sample.answer, sample.answers, sample.choices) == ("nokia", ("htc", "nokia", "nokia"), None)
    with pytest.raises(UserError, match="those of TextVQA's test split are not public"):
        TextVQA(tmp_path, "test")
    with pytest.raises(UserError, match="no split of TextVQA 'dev': there are train, val, test"):
        TextVQA(tmp_path, "dev")


def write_aokvqa(root: Path, split: str) -> None:
    entries = []
    for number, difficult in enumerate((False, True, False)):
        picture(root / f"{split}2017" / f"{number:012d}.jpg")
        entries.append(
            {
                "image_id": number,
                "question_id": f"q{number}",
                "question": "What floats?",
                "choices": ["duck", "boat", "mat", "train"],
                "correct_choice_idx": 3,
                "direct_answers": ["boat"] * 4 + ["ship"] * 6,
                "difficult_direct_answer": difficult,
            }
        )
    (root / f"aokvqa_v1p0_{split}.json").write_text(json.dumps(entries))


def test_aokvqa_settings(tmp_path: Path) -> None:
    write_aokvqa(tmp_path, "train")
    write_aokvqa(tmp_path, "val")
    choosing, writing = AOKVQA(tmp_path, "val"), AOKVQA(tmp_path, "val", "direct_answer")
    assert [sample.id for sample in choosing] == ["q0", "q1", "q2"]
    assert [sample.id for sample in writing] == ["q0", "q2"]  # the official evaluation leaves the difficult one out
    assert writing.skipped == []
    assert len(AOKVQA(tmp_path, "train", "direct_answer")) == 3
    assert (choosing[0].kind, choosing[0].answers) == ("multiple_choice", ("train",))
    assert (writing[0].kind, writing[0].answer, writing[0].choices) == ("direct_answer", "ship", None)
    with pytest.raises(UserError, match="no setting of A-OKVQA 'mc'"):
        AOKVQA(tmp_path, "val", "mc")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "elsewhere" / "val2017")
    assert len(AOKVQA(tmp_path, "val", coco=tmp_path / "elsewhere")) == 3


def test_clothoaqa_rows_become_questions(tmp_path: Path) -> None:
    header: list[object] = ["file_name", "QuestionText", "answer", "confidence"]
    said = [("Is it rain?", ["yes", "No", "no"]), ("What falls?", ["Rain", "water", "rain"])]
    rows = [header, *([name, q, a, "maybe"] for name in ("a.wav", "é.wav") for q, answers in said for a in answers)]
    table(tmp_path / "clotho_aqa_test.csv", rows, "latin-1")
    for name in ("a.wav", "é.wav"):
        sound(tmp_path / "audio_files" / name)
    samples = list(ClothoAQA(tmp_path, "test", strict=True))
    assert [sample.id for sample in samples] == ["a.wav:0", "a.wav:1", "é.wav:0", "é.wav:1"]
    assert [(sample.kind, sample.answer) for sample in samples[:2]] == [("yes_no", "no"), ("single_word", "rain")]
    assert samples[1].answers == ("rain", "water", "rain")
    table(tmp_path / "clotho_aqa_test.csv", rows)
    assert len(ClothoAQA(tmp_path, "test", strict=True)) == 4


@pytest.mark.parametrize(("raw", "text"), [(b"It\x92s \x80?", "It\u2019s \u20ac?"), (b"\xe9 \x81?", "\xe9 \x81?")])
def test_clothoaqa_in_cp1252_keeps_its_letters(raw: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "audio_files").mkdir()
    sound(tmp_path / "audio_files" / "a.wav")
    rows = b"".join(b"a.wav,%s,yes,maybe\n" % raw for _ in range(3))
    (tmp_path / "clotho_aqa_test.csv").write_bytes(b"file_name,QuestionText,answer,confidence\n" + rows)
    (sample,) = ClothoAQA(tmp_path, "test", strict=True)
    assert sample.question == text


def write_macs(root: Path) -> None:
    files = []
    for split in CITIES:
        for city in CITIES[split]:
            name = f"park-{city}-5-55-a.wav"
            sound(root / "TAU-urban-acoustic-scenes-2019-development" / "audio" / name)
            notes = [{"annotator_id": n, "sentence": text, "tags": []} for n, text in enumerate(("one", "two", "two"))]
            files.append({"filename": name, "annotations": notes})
    (root / "MACS.yaml").write_text(yaml.dump({"files": files}))


def test_macs_splits_by_city_and_captions(tmp_path: Path) -> None:
    write_macs(tmp_path)
    ids = {split: [sample.id for sample in MACS(tmp_path, split)] for split in ("train", "val", "test", "all")}
    assert sum(len(ids[split]) for split in CITIES) == len(ids["all"]) == len(set(ids["all"])) == 10
    assert not set(ids["train"]) & set(ids["test"]) | set(ids["val"]) & set(ids["test"])
    assert [sample.answers for sample in MACS(tmp_path, "test")] == [("one", "two", "two")]
    every = list(MACS(tmp_path, "test", captions="all"))
    assert [sample.id for sample in every] == [f"{ids['test'][0]}#{turn}" for turn in range(3)]
    assert [sample.answer for sample in every] == ["one", "two", "two"]
    assert every[1].answers == ("two", "one", "two")
    assert len(MACS(tmp_path, "test", captions="all", limit=2)) == 2
    assert every[0].question == "Please describe the audio."
    with pytest.raises(UserError, match="no value of captions 'some'"):
        MACS(tmp_path, "test", "some")


def write_songs(root: Path) -> list[str]:
    header: list[object] = ["caption_id", "track_id", "caption", "is_valid_subset", "familiarity", "artist_id", "path"]
    rows: list[list[object]] = []
    for track in range(40):
        sound(root / "audio" / "audio" / f"{track}.2min.mp3")
        for turn in range(1 + track % 2):
            rows.append([2 * track + turn, track, f"caption {turn}", turn == 0, 0, track // 2, f"{track}.mp3"])
    table(root / "song_describer.csv", [header, *rows])
    return [str(track // 2) for track in range(40)]


def test_songs_split_by_artist(tmp_path: Path) -> None:
    artists = write_songs(tmp_path)
    read = {split: [sample.id for sample in SongDescriber(tmp_path, split)] for split in ("train", "val", "test")}
    assert sorted(int(track) for tracks in read.values() for track in tracks) == list(range(40))
    assert all(split_of(artists[int(track)]) == split for split, tracks in read.items() for track in tracks)
    everything = SongDescriber(tmp_path, "all")
    assert everything[1].answers == ("caption 0", "caption 1")
    assert len(SongDescriber(tmp_path, "all", "all")) == 60
    assert len(SongDescriber(tmp_path, "all", "all", valid_only=True)) == 40


def test_the_split_of_an_artist_is_fixed() -> None:
    splits = [split_of(str(artist)) for artist in range(1000)]
    assert 70 < Counter(splits)["val"] < 130
    assert 70 < Counter(splits)["test"] < 130
    assert [split_of(artist) for artist in ("1", "3", "7")] == ["train", "val", "test"]


def chat(root: Path, entry: dict[str, Any]) -> list[Sample]:
    picture(root / "a.png")
    sound(root / "a.wav")
    (root / "chat.jsonl").write_text(json.dumps(entry) + "\n\n")
    return list(Conversations(root / "chat.jsonl", strict=True))


USER, BOT = {"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}
PARTS = {"type": "text", "text": "What is it?"}
FORMS: dict[str, dict[str, Any]] = {  # the same exchange, as each tool writes it
    "LLaVA": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A cat."}],
    },
    "ShareGPT": {
        "images": ["a.png"],
        "conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A cat."}],
    },
    "messages with marks": {"messages": [USER, BOT], "images": ["a.png"]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, PARTS]}, BOT]},
    "parts with a path": {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, PARTS]}, BOT]},
    "parts with an address": {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, PARTS]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ]
    },
    "parts and a list": {
        "messages": [{"role": "user", "content": [{"type": "image"}, PARTS]}, BOT],
        "images": [{"path": "a.png"}],
    },
    "parts without types": {
        "messages": [{"role": "user", "content": [{"image": "a.png"}, {"text": "What is it?"}]}, BOT]
    },
    "files in a turn": {"messages": [USER | {"images": ["a.png"]}, BOT]},
    "pairs": {"image": "a.png", "conversation": [{"human": "<image>What is it?", "assistant": "A cat."}]},
    "instruction": {"instruction": "<image>What", "input": "is it?", "output": "A cat.", "images": ["a.png"]},
    "query": {"query": "<image>What is it?", "response": "A cat.", "images": ["a.png"], "history": []},
    "prompt": {"prompt": "What is it?", "completion": "A cat.", "image": "a.png"},
    "prompt of messages": {"prompt": [USER], "completion": [BOT], "images": ["a.png"]},
    "question": {"question": "What is it?", "answer": "A cat.", "image": "a.png"},
    "nothing in other keys": {"messages": [USER, BOT], "images": ["a.png"], "videos": [], "system": None, "tools": ""},
    "a path of Windows": {"question": "What is it?", "answer": "A cat.", "image": ".\\a.png"},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_conversations(form: str, tmp_path: Path) -> None:
    (sample,) = chat(tmp_path, FORMS[form])
    assert (sample.id, sample.kind, sample.question.replace("\n", " ")) == ("1", "conversation", "What is it?")
    assert sample.answer == "A cat."
    assert sample.image is not None
    assert sample.image.size == (8, 6)


def test_a_conversation_of_several_turns(tmp_path: Path) -> None:
    said = ["Be brief.", "<audio>\nWhat is it?", "Rain.", "Where?", "On a roof."]
    roles = ["system", "user", "assistant", "user", "assistant"]
    turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    first, second = chat(tmp_path, {"id": "x", "audios": ["a.wav"], "messages": turns})
    assert (first.id, first.question, first.answer) == ("x", "Be brief.\nWhat is it?", "Rain.")
    assert (second.id, second.answer) == ("x#1", "On a roof.")
    assert second.question == "Be brief.\nWhat is it?\nRain.\nWhere?"
    assert second.audio is not None
    assert len(Conversations(tmp_path / "chat.jsonl", turns="first")) == 1
    assert len(Conversations(tmp_path / "chat.jsonl", limit=1)) == 1


def test_an_answer_of_weight_zero_is_context_alone(tmp_path: Path) -> None:
    for flag in ({"weight": 0}, {"loss": False}, {"train": False}, {"loss_scale": 0.0}):
        said = [USER, BOT | flag, {"role": "user", "content": "Sure?"}, BOT | {"weight": 1}]
        (sample,) = chat(tmp_path, {"id": "x", "image": "a.png", "messages": said})
        assert (sample.id, sample.question) == ("x#1", "What is it?\nA cat.\nSure?")
        (sample,) = Conversations(tmp_path / "chat.jsonl", turns="first")
        assert sample.id == "x#1"


def test_a_system_text_stands_before_the_question(tmp_path: Path) -> None:
    (sample,) = chat(tmp_path, FORMS["LLaVA"] | {"system": "Be brief."})
    assert sample.question == "Be brief.\nWhat is it?"
    (sample,) = chat(
        tmp_path,
        FORMS["query"] | {"query": "What is it?"} | {"system": "Be brief.", "history": [["<image>Hello?", "Hi."]]},
    )[1:]
    assert sample.question == "Be brief.\nHello?\nHi.\nWhat is it?"


def test_names_of_files_may_begin_with_a_space(tmp_path: Path) -> None:
    picture(tmp_path / " b.png")
    (sample,) = chat(tmp_path, FORMS["LLaVA"] | {"image": " b.png"})
    assert sample.image is not None


def test_unknown_keys_of_conversations_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chat(tmp_path, FORMS["LLaVA"] | {"source": "web", "model": "x"})
    assert caplog.messages == []
    chat(tmp_path, FORMS["messages with marks"] | {"crop": [1, 2, 3, 4], "messages": [USER | {"mood": "sad"}, BOT]})
    (message,) = caplog.messages
    assert (
        "has keys that are not read: 'mood' (1 entries), 'crop' (1 entries)" in message
        or "'crop' (1 entries), 'mood'" in message
    )


def test_grey_in_16_bits_keeps_its_brightness(tmp_path: Path) -> None:
    Image.new("I;16", (4, 3), 127 * 256 + 128).save(tmp_path / "grey.png")
    assert load_picture(tmp_path / "grey.png").getpixel((0, 0)) == (127, 127, 127)


def test_conversations_about_one_picture_may_share_its_id(tmp_path: Path) -> None:
    chat(tmp_path, FORMS["LLaVA"] | {"id": "000000033471"})
    path = tmp_path / "chat.jsonl"
    path.write_text(f"{path.read_text('utf-8').strip()}\n" * 2, "utf-8")
    assert [sample.id for sample in Conversations(path, strict=True)] == ["000000033471", "000000033471@2"]


def test_media_of_conversations_may_lie_elsewhere(tmp_path: Path) -> None:
    chat(tmp_path, FORMS["LLaVA"])
    (tmp_path / "media").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "media" / "a.png")
    assert len(Conversations(tmp_path / "chat.jsonl", tmp_path / "media")) == 1
    with pytest.raises(UserError, match=f"no folder {tmp_path}/nowhere, where the pictures and sounds should lie"):
        Conversations(tmp_path / "chat.jsonl", tmp_path / "nowhere")
    (tmp_path / "media" / "a.png").unlink()
    with pytest.raises(UserError, match=f"a.png is missing in {tmp_path}/media"):
        Conversations(tmp_path / "chat.jsonl", tmp_path / "media")


def hub_rows(features: dict[str, Any], **columns: list[Any]) -> Any:
    import datasets

    typed = {"string": datasets.Value("string"), "int": datasets.Value("int64"), "flag": datasets.Value("bool")}
    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    typed |= {"image": datasets.Image(), "file": file, "list": datasets.List(datasets.Value("string"))}
    spec = datasets.Features({name: typed[kind] for name, kind in features.items()})
    return datasets.Dataset.from_dict(columns, features=spec)


def encoded(path: Path) -> dict[str, Any]:
    (picture if path.suffix == ".png" else sound)(path)
    return {"bytes": path.read_bytes(), "path": path.name}


def test_the_hubs_aokvqa_in_both_settings(tmp_path: Path) -> None:
    kinds = {"image": "image", "question_id": "string", "question": "string", "choices": "list"}
    kinds |= {"correct_choice_idx": "int", "direct_answers": "string", "difficult_direct_answer": "flag"}
    rows = hub_rows(
        kinds,
        image=[encoded(tmp_path / "a.png")] * 4,
        question_id=["a", "b", "c", "d"],
        question=["what?"] * 4,
        choices=[["duck", "boat"]] * 4,
        correct_choice_idx=[1, 0, 1, None],
        direct_answers=["['boat', 'ship', 'ship']"] * 3 + ["[" * 5000],
        difficult_direct_answer=[False, True, False, False],
    )
    choosing = HubReader(rows, "HuggingFaceM4/A-OKVQA", "A-OKVQA")
    assert [(sample.id, sample.answer) for sample in choosing] == [("a", "boat"), ("b", "duck"), ("c", "boat")]
    assert "no correct_choice_idx" in choosing.skipped[0].reason
    writing = HubReader(rows, AOKVQA_DIRECT)
    assert [(sample.id, sample.answer) for sample in writing] == [("a", "ship"), ("c", "ship")]
    assert writing.skipped[0].reason == "the answers are no list"
    assert writing.skipped[0].line == 4


def test_the_hubs_sounds_need_no_decoder_of_datasets(tmp_path: Path) -> None:
    import datasets

    rows = hub_rows(
        {"audio": "file", "question": "string", "answer": "string"},
        audio=[encoded(tmp_path / "a.wav"), {"bytes": b"RIFF", "path": None}],
        question=["is it rain?"] * 2,
        answer=["yes", "rain"],
    ).cast_column("audio", datasets.Audio())  # as parquet files give it
    reader = HubReader(rows, "lmms-lab/ClothoAQA")
    assert [(sample.id, sample.kind) for sample in reader] == [("1", "yes_no")]
    assert reader[0].audio is not None
    assert "the file is not a whole sound" in reader.skipped[0].reason


def of_classes(tmp_path: Path) -> Any:
    """Three rows whose columns are classes, lists of them, true or false, and ids of which one is missing."""
    import datasets

    animal = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        image=datasets.Image(),
        question=datasets.Value("string"),
        answers=datasets.List(animal),
        one=animal,
        both=datasets.List(animal),
        true=datasets.Value("bool"),
        id=datasets.Value("string"),
    )
    columns = {
        "image": [encoded(tmp_path / "a.png")] * 3,
        "question": ["what?"] * 3,
        "answers": [[0, 1, 1], [-1, 0], []],
        "one": [0, 1, -1],
        "both": [[1, 0]] * 3,
        "true": [True, False, None],
        "id": ["x", None, "z"],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def outcome(rows: Any, **columns: Any) -> tuple[list[tuple[str, ...]], list[tuple[int | None, str]]]:
    """Answers and skips of the rows."""
    reader = HubReader(rows, Columns(image="image", **columns))
    return [sample.answers for sample in reader], [(skip.line, skip.reason) for skip in reader.skipped]


def test_classes_of_the_hub_are_their_names(tmp_path: Path) -> None:
    rows = of_classes(tmp_path)
    assert outcome(rows, answers="one") == ([("cat",), ("dog",)], [(3, "no column one")])
    blank = (2, "1 of 2 column answers are blank; the others are read")
    assert outcome(rows) == ([("cat", "dog", "dog"), ("cat",)], [blank, (3, "no column answers")])
    reader = HubReader(rows, Columns(image="image", choices="both", answers="one"))
    assert [(sample.choices, sample.answer) for sample in reader] == [(("dog", "cat"), "dog"), (("dog", "cat"), "cat")]
    with pytest.raises(UserError, match="1 of 2 column answers are blank"):
        HubReader(rows, Columns(image="image"), strict=True)


def test_hub_rows_without_an_id_are_skipped_once(tmp_path: Path) -> None:
    assert outcome(of_classes(tmp_path), answers="one", id="id")[1] == [(2, "no column id"), (3, "no column one")]
    assert outcome(of_classes(tmp_path), id="id")[1] == [(2, "no column id"), (3, "no column answers")]


def test_truth_of_the_hub_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the column true is true and no text: write what is to be said, such as yes"):
        outcome(of_classes(tmp_path), answers="true")
    neither = "the column id is neither true nor false"
    assert outcome(of_classes(tmp_path), answers="one", leave_out="id")[1][0] == (1, neither)
    assert outcome(of_classes(tmp_path), answers="one", leave_out="true") == ([("dog",)], [(3, "no column one")])


def test_the_hubs_rows_are_read_in_any_format(tmp_path: Path) -> None:
    rows = of_classes(tmp_path)
    assert outcome(rows.with_format("numpy")) == outcome(rows)


def test_hub_streams_and_several_splits_are_refused(tmp_path: Path) -> None:
    import datasets

    rows = of_classes(tmp_path)
    with pytest.raises(
        UserError, match=r"is a IterableDataset, not a datasets\.Dataset with a length: load it with str"
    ):
        outcome(rows.to_iterable_dataset())
    for splits in (datasets.DatasetDict, datasets.IterableDatasetDict):
        with pytest.raises(UserError, match=r"has several splits: give one, such as dataset\['val'\]"):
            outcome(splits(val=rows))
    with pytest.raises(UserError, match="no readable sample in the dataset"):
        outcome(rows.select([]))


def test_faults_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hub_rows({"picture": "string"}, picture=["a.png"])
    with pytest.raises(UserError, match="has no column question, answers, image; it has picture"):
        HubReader(rows, Columns(image="image"))
    with pytest.raises(UserError, match="column picture of x is no Image: cast it"):
        HubReader(rows, Columns("picture", "picture", image="picture"), "x")
    with pytest.raises(UserError, match="either image or audio"):
        HubReader(rows, Columns())
    with pytest.raises(UserError, match="the columns of 'me/mine' are not known"):
        open_hub("me/mine", "train")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError, match=r"cannot load split 'train' of facebook/textvqa: no network$"):
        open_hub("facebook/textvqa", "train")
    monkeypatch.setattr("datasets.load_dataset", lambda name, config, split: rows)
    with pytest.raises(UserError, match="facebook/textvqa has no column"):
        open_hub("facebook/textvqa", "train")
    assert all(columns.image or columns.audio for columns in HUB.values())
