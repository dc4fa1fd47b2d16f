"""Sounds: one channel, one rate, and only as much as asked for."""

from __future__ import annotations

import sys
from pathlib import Path

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


def test_a_long_sound_is_refused_unless_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sine(tmp_path / "a.wav", seconds=2)
    monkeypatch.setattr("commit_tuning.data.sounds.MAX_SECONDS", 1)
    with pytest.raises(FaultError, match=r"a.wav is too long: more than 1 s"):
        check_sound(path)
    check_sound(path, max_seconds=0.5)


def test_a_header_that_does_not_know_its_length_is_no_fault(tmp_path: Path) -> None:
    path = sine(tmp_path / "a.wav", 16_000)
    content = bytearray(path.read_bytes())
    place = content.index(b"data")
    content[4:8] = content[place + 4 : place + 8] = b"\xff" * 4
    check_sound(bytes(content))
    assert load_sound(bytes(content)).samples.shape == (8000,)


@pytest.mark.parametrize("missing", ["soundfile", "soxr"])
def test_a_missing_library_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sine(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"sounds need {missing}: pip install 'commit-tuning\[audio\]'"):
        check_sound(path)
