from __future__ import annotations

import importlib.util

import pytest

from commit_lab.nano.pictures import icons
from commit_lab.nano.pictures.concepts import CONCEPT_NAMES, parse_table
from commit_tuning.errors import UserError


def test_splits_share_no_family_and_no_lineage() -> None:
    families = [family for split in icons.SPLIT_FAMILIES.values() for family in split]
    assert sorted(families) == sorted(icons.FAMILIES)
    lineages = {
        split: {glyph.lineage for glyph in icons.load_glyphs() if glyph.family in names}
        for split, names in icons.SPLIT_FAMILIES.items()
    }
    assert sum(map(len, lineages.values())) == len(set.union(*lineages.values()))


def test_every_split_draws_every_concept() -> None:
    assert len(icons.concepts()) == 40
    assert set(icons.concepts()) == set(CONCEPT_NAMES)
    for split, families in icons.SPLIT_FAMILIES.items():
        drawn = icons.concept_glyphs(split)
        assert set(drawn) >= set(icons.concepts())
        assert {glyph.family for glyphs in drawn.values() for glyph in glyphs} == set(families)


@pytest.mark.parametrize(
    ("name", "family", "drawing", "base"),
    [
        ("heart-2-line", "ri", "heart-2", "heart"),
        ("heart-straight-thin", "ph", "heart-straight", "heart-straight"),
        ("phone-alt", "fa", "phone-alt", "phone"),
        ("globe-light", "mdi", "globe-light", "globe-light"),  # a lamp, not a thin globe
        ("heart-outline", "mdi", "heart", "heart"),
        ("4k-fill", "ri", "4k", "4k"),
    ],
)
def test_names_lose_style_then_variant(name: str, family: str, drawing: str, base: str) -> None:
    assert icons.style_free(name, family) == drawing
    assert icons.base_name(name, family) == base


def test_weights_and_versions_share_a_lineage() -> None:
    by_name: dict[tuple[str, str], set[str]] = {}
    for glyph in icons.load_glyphs():
        by_name.setdefault((glyph.family, glyph.name), set()).add(glyph.lineage)
    assert by_name["ph", "heart-bold"] == by_name["ph", "heart-fill"] == by_name["ph", "heart"]
    assert all(len(lineages) == 1 for lineages in by_name.values())


def test_every_concept_glyph_is_in_its_font() -> None:
    from fontTools.ttLib import TTFont

    known = {}
    for font in sorted({glyph.font for glyph in icons.load_glyphs()}):
        with TTFont(icons.font_folder() / font, lazy=True) as file:
            known[font] = set(file.getBestCmap())
    assert [glyph.name for glyph in icons.load_glyphs() if glyph.codepoint not in known[glyph.font]] == []


@pytest.mark.parametrize("rotation", [0.0, -12.0])
@pytest.mark.parametrize("size", [17, 48, 90])
def test_ink_fills_the_square_in_the_colour(size: int, rotation: float) -> None:
    glyph = icons.concept_glyphs("test")["envelope"][0]
    icon = icons.render_glyph(glyph, size, (200, 10, 20), rotation=rotation)
    assert icon.size == (size, size)
    assert icon.mode == "RGBA"
    left, top, right, bottom = icon.getchannel("A").getbbox() or (0, 0, 0, 0)
    assert max(right - left, bottom - top) >= size - 1
    assert icon.getpixel((size // 2, size // 2))[:3] == (200, 10, 20)  # type: ignore[index]


def test_without_qtawesome_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    icons.font_folder.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'commit-tuning\[experiments\]'"):
        icons.font_folder()


def test_table_is_sorted_and_names_no_drawing_twice() -> None:
    assert parse_table("b c: x ri!y\n\na: z") == {"a": ("z",), "b c": ("x", "ri!y")}
    names = [name for names in CONCEPT_NAMES.values() for name in names]
    assert len(names) == len(set(names))
