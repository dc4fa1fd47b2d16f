"""Text from outside reads as it is wherever it is shown, and does nothing there."""

from __future__ import annotations

import unicodedata

import pytest
from campaign import inputs
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text

from commit_tuning.report.curves import Group
from commit_tuning.report.figure_style import drawn
from commit_tuning.report.plots import draw_accuracy, draw_curves
from commit_tuning.shown import markdown_text, strong, visible, visible_line
from commit_tuning.train.compare.table import markdown_table

HOSTILE = (
    "a|b", "`code`", "*a* **b** _c_ __d__", "<b>x</b> <!-- c -->", "[a](http://b)", "![a](http://b)", "![a][b] [c]: d",
    "<http://a.b>", "~~a~~", "a & &lt; &amp;", "\\ \\| \\`", "a\nb\r\nc", "| --- |", "$x$", "\\", "`", "|", "***",
)  # fmt: skip


@given(text=st.text())
@inputs(200, 2000)
def test_no_character_that_acts_is_left(text: str) -> None:
    shown = visible(text)
    kinds = {unicodedata.category(sign) for sign in shown if sign not in "\n\t"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert shown.isprintable() or kinds
    shown.encode("utf-8")


@pytest.mark.parametrize("sign", [*"\x00\x07\x08\x1b\x7f\x9b\u200b\u200e\u202e\u2066\u2028\ufeff\ud800", "\U000e0041"])
def test_hidden_characters_are_spelt(sign: str) -> None:
    assert visible(f"a{sign}b") == f"a{ascii(sign)[1:-1]}b"


@pytest.mark.parametrize("text", ["Größe\n\t", "हिन्दी क्‍ष", "שלום", "👩‍🚀", "模型"])
def test_ordinary_text_stays(text: str) -> None:
    assert visible(text) == text


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table as a reader of Markdown shows them; nothing but text may be in one."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(table)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            assert {part.type for part in token.children or ()} <= {
                "text",
                "text_special",
                "strong_open",
                "strong_close",
            }
            rows[-1].append("".join(part.content for part in token.children or ()))
    return rows


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_cells_are_text(text: str) -> None:
    found = cells(markdown_table(["a", text], [[text, "1"], [strong(text), "2"]]))
    assert found == [["a", visible_line(text)], [visible_line(text), "1"], [visible_line(text), "2"]]


@given(text=st.text(st.sampled_from("ab |`*_<>[]()!\\&;#~$\n:/"), min_size=1).map(str.strip).filter(bool))
@inputs(200, 3000)
def test_any_cell_is_text(text: str) -> None:
    assert cells(markdown_table(["a"], [[text]]))[1:] == [[visible_line(text)]]


def test_markdown_is_escaped_once() -> None:
    assert markdown_text(markdown_text("a|b")) == r"a\|b"


@pytest.mark.parametrize(
    "text", ["$x$", "$\\frac{$", "\\$1 $", "$$", "模型 👩", "模" * 90, "\ud800\x00", "a\nb", "W" * 5000]
)
def test_any_label_can_be_drawn(text: str) -> None:
    assert "<svg" in draw_accuracy([(text, "constant", [0.5]), ("b", "commit", [])]).svg
    history = tuple({"step": step, f"lr/{text}": 0.1} for step in (1, 2))
    assert draw_curves([Group(text, text, (), (history,))])


@pytest.mark.parametrize("text", ["$x^2$", "a $ b", "\\$x$", "$$"])
def test_dollars_in_a_label_are_no_formula(text: str) -> None:
    assert Text(text=drawn(text))._preprocess_math(drawn(text)) == (text, False)


def test_long_label_keeps_both_ends() -> None:
    assert drawn("a" * 100 + ", 0.001 / 0.0001") == "a" * 30 + "…" + "aaa, 0.001 / 0.0001"


def test_figure_holds_no_copy_of_its_labels() -> None:
    assert "<!--" not in draw_accuracy([("-->", "constant", [0.5])]).svg
