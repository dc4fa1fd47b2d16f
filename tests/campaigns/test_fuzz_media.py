"""Damaged bytes of pictures and sounds: a sample that can be used, or a fault of one line, in bounded memory."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable

import media_zoo as zoo
import numpy as np
import pytest
from campaign import inputs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from commit_tuning.data.files import FaultError
from commit_tuning.data.pictures import check_picture, load_picture
from commit_tuning.data.sounds import check_sound, load_sound

MOST_KIB = 2 * 2**20
"""How much more memory a campaign may take, at its highest, in KiB."""

SOUNDS = zoo.SOUNDS | {form: lambda form=form: zoo.written(form=form) for form in ("MP3", "OGG")}

CHANGES = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6)
CUTS = st.none() | st.integers(0, 4000)


def damaged(content: bytes, changes: Iterable[tuple[int, int]], cut: int | None) -> bytes:
    """Some bytes set anew, most of them in the header, and perhaps the end cut off."""
    changed = bytearray(content)
    for place, value in changes:
        changed[place % len(changed) if place % 2 else place % min(len(changed), 120)] = value
    return bytes(changed if cut is None else changed[: cut % (len(changed) + 1)])


def outcome(read: Callable[[bytes], object], content: bytes) -> object:
    """What a reader returns, or the one line it refuses with."""
    try:
        return read(content)
    except FaultError as fault:
        line = str(fault)
    assert "\n" not in line
    return line


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterable[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB


@inputs(150, 750)
@given(kind=st.sampled_from(sorted(zoo.PICTURES)), changes=CHANGES, cut=CUTS)
def test_a_damaged_picture_is_rgb_or_a_fault(kind: str, changes: list[tuple[int, int]], cut: int | None) -> None:
    content = damaged(zoo.PICTURES[kind][0](), changes, cut)
    outcome(check_picture, content)
    picture = outcome(load_picture, content)
    assert isinstance(picture, str) or (isinstance(picture, Image.Image) and picture.mode == "RGB")


@inputs(150, 750)
@given(kind=st.sampled_from(sorted(SOUNDS)), changes=CHANGES, cut=CUTS)
def test_a_damaged_sound_is_finite_or_a_fault(kind: str, changes: list[tuple[int, int]], cut: int | None) -> None:
    content = damaged(SOUNDS[kind](), changes, cut)
    outcome(check_sound, content)
    sound = outcome(load_sound, content)
    assert isinstance(sound, str) or np.isfinite(sound.samples).all()  # type: ignore[attr-defined]
