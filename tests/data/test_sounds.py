"""Sounds: one channel, one rate, and only as much as asked for."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import media_zoo as zoo
import numpy as np
import pytest
import soundfile

from commit_tuning.data.files import FaultError
from commit_tuning.data.sounds import check_sound, load_sound
from commit_tuning.errors import UserError


def sine(path: Path, rate: int = 44_100, seconds: float = 0.5, hertz: float = 1000.0, **options: str) -> Path:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    soundfile.write(path, np.stack([wave, 0 * wave], 1), rate, **options)
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_are_averaged_and_the_pitch_is_kept(name: str, rate: int, tmp_path: Path) -> None:
    path = sine(tmp_path / name)
    check_sound(path)
    audio = load_sound(path, rate)
    assert audio.rate == rate
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == pytest.approx((rate // 2,), rel=0.01)
    spectrum = np.abs(np.fft.rfft(audio.samples))
    assert np.argmax(spectrum) * rate / len(audio.samples) == pytest.approx(1000, abs=5)
    assert np.abs(audio.samples).max() == pytest.approx(0.25, abs=0.03)  # the other channel is silent


def test_a_file_and_its_content_are_the_same(tmp_path: Path) -> None:
    path = sine(tmp_path / "a.flac")
    check_sound(path.read_bytes())
    assert np.array_equal(load_sound(path).samples, load_sound(path.read_bytes()).samples)


def test_only_the_start_is_read(tmp_path: Path) -> None:
    path = sine(tmp_path / "a.wav", seconds=2)
    assert load_sound(path, 16_000, max_seconds=0.25).samples.shape == (4000,)
    assert load_sound(path, 16_000, max_seconds=9).samples.shape == (32_000,)


def test_long_sound_is_refused_unless_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sine(tmp_path / "a.wav", seconds=2)
    monkeypatch.setattr("commit_tuning.data.sounds.MAX_SECONDS", 1)
    with pytest.raises(FaultError, match=r"a.wav is too long: more than 1 s"):
        check_sound(path)
    check_sound(path, max_seconds=0.5)


@pytest.mark.parametrize("kind", zoo.SOUNDS)
def test_a_sound_is_read_to_its_end(kind: str) -> None:
    content = zoo.SOUNDS[kind]()
    check_sound(content)
    samples, law = load_sound(content).samples, kind in {"u-law", "A-law"}
    assert samples.shape == (4000,)
    assert np.abs(samples - zoo.wave()[:, 0]).max() < (0.02 if law else 1e-4)


@pytest.mark.parametrize("kind", zoo.ODD_SOUNDS)
def test_unreadable_sound_names_its_reason(kind: str) -> None:
    content, reason = zoo.ODD_SOUNDS[kind]
    for read in (check_sound, load_sound):
        with pytest.raises(FaultError, match=reason.replace("+", r"\+")):
            read(content())


def test_formats_that_are_heard_are_named() -> None:
    with pytest.raises(FaultError, match="is not a whole sound of WAV, FLAC, Ogg or MP3"):
        check_sound(b"\0\0\0\x18ftypM4A " + b"\0" * 99)


def test_header_longer_than_its_file_is_refused() -> None:
    with pytest.raises(FaultError, match="is cut off: 8000 of 2000000000 bytes"):
        check_sound(zoo.streamed(2_000_000_000, 2_000_000_036))


def test_ten_hours_are_read_as_far_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    head = zoo.streamed(2 * 36_000 * 16_000, 2 * 36_000 * 16_000 + 36)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) - 8000 + 2 * 36_000 * 16_000)  # a sparse file: silence
    check_sound(path, max_seconds=0.5)
    tracemalloc.start()
    assert load_sound(path, max_seconds=0.5).samples.shape == (8000,)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20
    with pytest.raises(FaultError, match="is too long"):
        check_sound(path)


def test_many_channels_are_decoded_in_bounded_memory(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((16_000, 200), np.int16), 16_000)
    tracemalloc.start()
    assert load_sound(tmp_path / "a.wav").samples.shape == (16_000,)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


@pytest.mark.parametrize("missing", ["soundfile", "soxr"])
def test_a_missing_library_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sine(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"sounds need {missing}: pip install 'commit-tuning\[audio\]'"):
        check_sound(path)
