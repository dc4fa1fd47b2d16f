from __future__ import annotations

import importlib.util
import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from commit_lab.nano.sounds import soundfont
from commit_lab.nano.sounds.scores import CHORALE, Piece, Score, Tone, pieces, read_score
from commit_lab.nano.sounds.sound_concepts import CONCEPTS, HIGHEST, LOUD, QUIET, SHIFTS, Player, Sound, levelled, mixed
from commit_lab.nano.sounds.soundfont import RATE, Note, Voice, recordings, render
from commit_tuning.errors import UserError

OCARINA, ORGAN, XYLOPHONE = Voice(0, 79), Voice(0, 16), Voice(0, 13)


def frequency(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE / len(samples))


def strength(samples: np.ndarray) -> float:
    return float(np.sqrt((samples**2).mean()))


@pytest.mark.parametrize(("key", "shift", "hertz"), [(69, 0, 440), (81, 0, 880), (69, 12, 880), (57, 0, 220)])
def test_a_note_has_the_pitch_of_its_key(key: int, shift: float, hertz: float) -> None:
    assert frequency(render([Note(OCARINA, 0, 1, key, shift=shift)], 1)) == pytest.approx(hertz, abs=5)


def test_a_note_begins_and_ends_when_it_should() -> None:
    samples = render([Note(ORGAN, 0.5, 1, 60)], 2.5)
    assert samples.dtype == np.float32
    assert samples.shape == (40_000,)
    assert np.abs(samples[:7900]).max() < 1e-4
    assert strength(samples[22_000:23_000]) > 0.8 * strength(samples[10_000:11_000])  # its recording is shorter
    assert strength(samples[32_000:]) < 0.01 * strength(samples[10_000:11_000])


def test_struck_note_fades_and_velocity_sets_loudness() -> None:
    loud, soft = (render([Note(XYLOPHONE, 0, 1, 72, velocity)], 1) for velocity in (120, 60))
    assert strength(loud[8000:]) < 0.1 * strength(loud[:8000])
    assert strength(soft) == pytest.approx(strength(loud) / 4, rel=0.01)


def test_rendering_is_exact_and_mixes() -> None:
    notes = [Note(ORGAN, 0, 0.4, 60), Note(OCARINA, 0.2, 0.4, 72)]
    both = render(notes, 0.8)
    soundfont._play.cache_clear()
    assert np.array_equal(both, render(notes, 0.8))
    assert np.allclose(both, sum(render([note], 0.8) for note in notes), atol=1e-6)


def test_tuning_has_recordings_that_pretraining_does_not_know() -> None:
    def heard(sounds: tuple[Sound, ...]) -> frozenset[int]:
        keys = ([sound.key] if sound.key else range(HIGHEST + 1) for sound in sounds)
        return frozenset().union(*(recordings(sound.voice, own) for sound, own in zip(sounds, keys, strict=True)))

    alone = [concept for concept in CONCEPTS if concept.one_recording]
    assert len(alone) == 8
    for concept in CONCEPTS:
        new = heard(concept.tuned) - heard(concept.pretrain)
        assert bool(new) != (concept in alone), concept.name
    spans = sorted(SHIFTS.values())
    assert all(low[1] < high[0] for low, high in pairwise(spans))  # what all share has other pitches


@pytest.mark.parametrize("split", SHIFTS)
def test_every_concept_sounds_and_none_is_clipped(split: str) -> None:
    for concept in CONCEPTS:
        samples = Player(random.Random(1), split).event(concept, 0.8)
        assert samples.shape == (12_800,)
        assert strength(samples) > 0.003, concept.name
        assert np.abs(samples).max() < 1, concept.name


def test_levels_are_loudness_and_a_mix_never_clips() -> None:
    samples = np.sin(np.arange(RATE, dtype=np.float32))
    loud, quiet = levelled(samples, LOUD[0]), levelled(samples, QUIET[1])
    assert strength(loud) == pytest.approx(LOUD[0], rel=0.01)
    assert strength(quiet) == pytest.approx(QUIET[1], rel=0.01)
    assert np.array_equal(mixed([(0.5, loud)], 1)[8000:], loud[:8000])
    assert np.abs(mixed([(0, 9 * loud)], 1)).max() == pytest.approx(0.97)


def test_missing_packages_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pretty_midi"):
        soundfont._font.__wrapped__()
    with pytest.raises(UserError, match="music21"):
        pieces.__wrapped__()


def abc(body: str, key: str = "C") -> Score:
    return read_score(Piece("x", "tune", "major", "four four", f"X:1\nT:x\nM:4/4\nL:1/8\nK:{key}\n{body}\n"))


def tones(score: Score) -> list[tuple[Fraction, int]]:
    return [(tone.length, tone.key) for tone in score.voices[0]]


@pytest.mark.parametrize(
    ("body", "key", "expected"),
    [
        ("C,CcC'", "C", [(1, 48), (1, 60), (1, 72), (1, 72)]),
        ("C2 E/ G3/2 z2 c", "C", [(2, 60), (Fraction(1, 2), 64), (Fraction(3, 2), 67), (1, 72)]),
        ("^F F _B =B|F", "C", [(1, 66), (1, 66), (1, 70), (1, 71), (1, 65)]),
        ("F C B", "D", [(1, 66), (1, 61), (1, 71)]),
        ("B E F", "Gm", [(1, 70), (1, 63), (1, 65)]),
        ("A>B c<d", "C", [(Fraction(3, 2), 69), (Fraction(1, 2), 71), (Fraction(1, 2), 72), (Fraction(3, 2), 74)]),
        ("(3ABc d", "C", [(Fraction(2, 3), 69), (Fraction(2, 3), 71), (Fraction(2, 3), 72), (1, 74)]),
        ('"Am"A2-A {gf}!trill!B [CEG]', "C", [(3, 69), (1, 71), (1, 67)]),
    ],
)
def test_abc_by_hand(body: str, key: str, expected: list[tuple[float, int]]) -> None:
    assert tones(abc(body, key)) == expected


def test_bars_of_abc() -> None:
    assert abc("G|C2D2 E2F2|:G4 A4:|1 B8|2 c8|]").bars == (0, 1, 9, 17, 25, 33)


def test_a_chorale_has_four_voices_of_one_length() -> None:
    chorales = [piece for piece in pieces() if piece.kind == CHORALE]
    score = read_score(next(piece for piece in chorales if piece.name == "bwv269"))
    assert len(chorales) > 200
    assert len(score.voices) == 4
    assert len({voice[-1].start + voice[-1].length for voice in score.voices}) == 1
    highs = [sum(tone.key for tone in voice) / len(voice) for voice in score.voices]
    assert highs == sorted(highs, reverse=True)
    assert score.voices[0][0] == Tone(Fraction(0), Fraction(1), 67)


def test_pieces_are_plain_tunes() -> None:
    found = pieces()
    assert len(found) > 2500
    assert {piece.mode for piece in found} == {"major", "minor"}
    valley = found[0]
    assert (valley.name, valley.mode, valley.metre) == ("enchantedvalley", "minor", "two four")
    assert read_score(valley).bars[:3] == (0, 8, 16)
