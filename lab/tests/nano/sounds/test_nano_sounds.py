from __future__ import annotations

import csv
import json
import random
from collections import Counter, defaultdict
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from commit_lab.nano.building import dataset_checksum
from commit_lab.nano.pictures.nano_iconqa import nano_vocabulary
from commit_lab.nano.sounds import nano_clothoaqa, nano_macs, nano_songdescriber, nano_sounds
from commit_lab.nano.sounds.nano_clothoaqa import build_nano_clothoaqa, nano_clothoaqa_vocabulary
from commit_lab.nano.sounds.nano_macs import build_nano_macs, nano_macs_vocabulary
from commit_lab.nano.sounds.nano_songdescriber import build_nano_songdescriber, nano_songdescriber_vocabulary
from commit_lab.nano.sounds.nano_sounds import vocabulary
from commit_lab.nano.sounds.scores import Score, Tone
from commit_lab.nano.sounds.sound_concepts import Player
from commit_tuning.data import sounds
from commit_tuning.data.readers.clothoaqa import ClothoAQA
from commit_tuning.data.readers.macs import MACS
from commit_tuning.data.readers.songdescriber import SongDescriber, split_of
from commit_tuning.errors import UserError

SIZES = {"train": 9, "val": 2, "test": 3}
BUILDERS = {"clothoaqa": build_nano_clothoaqa, "macs": build_nano_macs, "songdescriber": build_nano_songdescriber}
READERS = {"clothoaqa": ClothoAQA, "macs": MACS, "songdescriber": SongDescriber}
SECONDS = {"clothoaqa": 3.0, "macs": 3.0, "songdescriber": 4.0}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("nano")
    return {name: build(folder / name, **SIZES) for name, build in BUILDERS.items()}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_official_reader_reads_what_was_built(roots: dict[str, Path], name: str) -> None:
    for split, count in SIZES.items():
        samples = list(READERS[name](roots[name], split, strict=True))
        assert len(samples) == count
        for sample in samples:
            assert sample.audio.rate == 16_000
            assert len(sample.audio.samples) == pytest.approx(16_000 * SECONDS[name], abs=1200)
            assert 0.005 < np.abs(sample.audio.samples).max() < 1


def test_the_check_of_mp3_is_silent(roots: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for path in (roots["songdescriber"] / "audio").rglob("*.mp3"):
        sounds.check_sound(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", BUILDERS)
def test_same_seed_same_files(
    roots: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano_sounds, "_CHUNK", 2)
    again = BUILDERS[name](tmp_path / "again", **SIZES)
    assert json.loads((again / "MANIFEST.json").read_text())["sha256"] == dataset_checksum(roots[name])
    assert BUILDERS[name](tmp_path / "again", **SIZES) == again  # left alone
    with pytest.raises(UserError, match="holds another"):
        BUILDERS[name](tmp_path / "again", **SIZES, seed=1)


def test_dataset_depends_on_seed_and_not_on_workers(roots: dict[str, Path], tmp_path: Path) -> None:
    two = build_nano_macs(tmp_path / "two", **SIZES, workers=2)
    other = build_nano_macs(tmp_path / "other", **SIZES, seed=1)
    assert dataset_checksum(two) == dataset_checksum(roots["macs"]) != dataset_checksum(other)


def test_a_growing_dataset_keeps_its_clips(roots: dict[str, Path], tmp_path: Path) -> None:
    larger = build_nano_clothoaqa(tmp_path / "larger", train=13, val=2, test=3)
    for path in (roots["clothoaqa"] / "audio_files").iterdir():
        assert path.read_bytes() == (larger / "audio_files" / path.name).read_bytes()
    rows = [(root / "clotho_aqa_train.csv").read_text() for root in (roots["clothoaqa"], larger)]
    assert rows[1].startswith(rows[0])


def test_clothoaqa_has_three_rows_per_question(roots: dict[str, Path]) -> None:
    with (roots["clothoaqa"] / "clotho_aqa_train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file_name", "QuestionText", "answer", "confidence"]
    assert set(Counter((row["file_name"], row["QuestionText"]) for row in rows).values()) == {3}
    assert len(rows) == 3 * SIZES["train"]
    assert {row["confidence"] for row in rows} <= {"yes", "maybe", "no"}


def test_majority_of_annotators_is_right_some_are_wrong() -> None:
    votes = [nano_clothoaqa._votes(random.Random(number), "two", ("one", "two", "three")) for number in range(300)]
    right = [sum(answer == "two" for answer, _ in three) for three in votes]
    assert set(right) == {2, 3}
    assert 30 < right.count(2) < 90


def test_macs_has_five_annotators_and_its_cities(roots: dict[str, Path]) -> None:
    clips = yaml.safe_load((roots["macs"] / "MACS.yaml").read_text())["files"]
    assert len(clips) == sum(SIZES.values())
    for clip in clips:
        scene, _, location, segment, device = clip["filename"].removesuffix(".wav").split("-")
        assert scene in {"airport", "park", "public_square"}
        assert (location.isdigit(), segment, device) == (True, "0", "a")
        assert len({note["annotator_id"] for note in clip["annotations"]}) == 5
        assert len({note["sentence"] for note in clip["annotations"]}) == 5
        assert all(set(note) == {"annotator_id", "sentence", "tags"} for note in clip["annotations"])


def test_songdescriber_splits_by_piece(roots: dict[str, Path]) -> None:
    with (roots["songdescriber"] / "song_describer.csv").open() as file:
        rows = list(csv.DictReader(file))
    official = "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration"
    assert ",".join(rows[0]) == official
    assert len({row["caption_id"] for row in rows}) == len(rows) == 3 * sum(SIZES.values())
    first = {"train": "1", "val": "2", "test": "3"}
    assert all(row["track_id"].startswith(first[split_of(row["artist_id"])]) for row in rows)
    for split in SIZES:
        groups = nano_songdescriber._groups(split)
        assert all(split_of(piece.name) == split for metres in groups.values() for one in metres for piece in one)


def test_a_drum_marks_the_bars() -> None:
    score = Score((), tuple(map(Fraction, (0, 2, 8, 14, 20))))  # after an upbeat, bars of six
    strong = [(Fraction(bar), 110) for bar in (2, 8, 14)]
    weak = [(Fraction(bar + 3), 60) for bar in (2, 8, 14)]
    assert nano_songdescriber._beats(score, 2) == sorted(strong + weak)
    assert nano_songdescriber._BEATS.keys() == set(nano_songdescriber.METRES.values())


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips without sound, for tests of many."""
    silent = np.ones(1600, np.float32)
    monkeypatch.setattr(Player, "event", lambda *_: silent)
    monkeypatch.setattr(nano_clothoaqa, "render", lambda *_: silent)
    monkeypatch.setattr(nano_songdescriber, "render", lambda *_: silent)
    monkeypatch.setattr(
        nano_songdescriber, "read_score", lambda _: Score(((Tone(Fraction(0), Fraction(1), 60),),), (Fraction(0),))
    )


def asked(split: str, count: int) -> list[tuple[str, str]]:
    """Questions with their right answers."""
    rows = [
        row
        for number in range(count)
        for row in (entry["row"] for entry in nano_clothoaqa.make_clip(0, split, number).entries)
    ]
    threes = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    return [(three[0][1], Counter(row[2] for row in three).most_common(1)[0][0]) for three in threes]


@pytest.mark.usefixtures("unheard")
def test_words_of_question_do_not_reveal_its_answer() -> None:
    questions, unseen = asked("train", 800), asked("test", 400)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in questions:
        answers[question][answer] += 1
    for form, texts in nano_clothoaqa._FORMS.items():
        stems = tuple(text.split("{")[0] for text in texts)
        found = Counter(answer for question, answer in questions if question.startswith(stems))
        chance = 1 / len(found)
        assert max(found.values()) / found.total() < 1.35 * chance + 0.03, (form, found)
    guessed = [answers[question].most_common(1)[0][0] == answer for question, answer in unseen if question in answers]
    assert sum(guessed) / len(guessed) < 0.4


@pytest.mark.usefixtures("unheard")
def test_the_vocabularies_are_whole_and_small() -> None:
    texts = {
        nano_clothoaqa_vocabulary: [text for pair in asked("train", 300) for text in pair],
        nano_macs_vocabulary: [
            note["sentence"]
            for number in range(300)
            for note in nano_macs.make_clip(0, "train", number).entries[0]["annotations"]
        ],
        nano_songdescriber_vocabulary: [
            entry["caption"]
            for number in range(300)
            for entry in nano_songdescriber.make_track(0, "train", number).entries
        ],
    }
    for known, said in texts.items():
        words = set(vocabulary(*said))
        assert words <= set(known())
        assert len(words) > 0.85 * len(known())  # and holds little else
        assert len(set(known()) - set(nano_vocabulary())) < 80
        assert max(len(text.split()) for text in said) <= 14


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_missing_or_wrong_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at least 1 sample per split and 1 worker"):
        BUILDERS[name](tmp_path / "none", train=0)
    monkeypatch.setattr(sounds, "import_module", partial(_missing, "soundfile"))
    with pytest.raises(UserError, match=r"sounds need soundfile: pip install 'commit-tuning\[audio\]'"):
        BUILDERS[name](tmp_path / "none", **SIZES)
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".*.partial"))


def _missing(name: str, _: str) -> None:
    raise ImportError(name=name)
