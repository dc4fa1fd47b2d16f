from __future__ import annotations

import importlib.util

import pytest

from commit_lab.nano.pictures import lettering
from commit_lab.nano.pictures.lettering import FONTS, SPLIT_FONTS, font_folder, split_fonts, text_mask
from commit_tuning.errors import UserError


def test_no_font_is_in_two_splits() -> None:
    used = [font for split in SPLIT_FONTS for font in split_fonts(split)]
    assert len(used) == len(set(used)) == sum(map(len, FONTS.values()))


@pytest.mark.parametrize("split", SPLIT_FONTS)
def test_fonts_draw_distinct_texts(split: str) -> None:
    for font in split_fonts(split, "$"):
        drawn = [text_mask(text, font).tobytes() for text in ("boat", "coat", "BOAT", "13", "18", "$18")]
        assert len(set(drawn)) == len(drawn)
        assert text_mask("boat", font).getextrema() == (0, 255)
        assert text_mask("$18", font).width > text_mask("18", font).width
    assert "cmti10" not in split_fonts(split, "$18")  # it has a pound sign there


def test_ink_is_neither_cut_nor_padded() -> None:
    for split in SPLIT_FONTS:
        for font in split_fonts(split):
            mask = text_mask("gifts", font)
            assert mask.getbbox() == (0, 0, *mask.size)
            assert 0.8 < text_mask("mmmmmm", font).width / (6 * text_mask("mm", font).width / 2) < 1.25


def test_a_missing_package_or_font_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lettering._font.cache_clear()
    monkeypatch.setitem(lettering.FONTS, "cm", ("nothing",))
    with pytest.raises(UserError, match=r"no font .*nothing.ttf: install matplotlib"):
        text_mask("a", "nothing")
    font_folder.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="matplotlib, whose fonts write Nano-TextVQA, is not installed as a whole: pip"):
        font_folder()
