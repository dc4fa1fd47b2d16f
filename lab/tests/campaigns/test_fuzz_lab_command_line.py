"""Command lines of `commit-lab` of any form: they start their work, or one line says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaign import inputs, succeeds_or_says
from hypothesis import given
from hypothesis import strategies as st

from commit_lab.cli.app import main
from commit_lab.reproduce.run import Reproduction
from commit_tuning.train.compare.arms import screening_arms
from commit_tuning.train.compare.comparison import Comparison

COMMANDS = ["reproduce", "demo"]
OPTIONS = ["--output", "-o", "--help", "-h", "--version", "--", "-", "--jobs", "-j", "--scale", "--rows", "--data"]
OPTIONS += ["--cluster", "--cluster-option", "--no-such"]
VALUES = ["", " ", ".", "out", "out/below", "file", "file/below", "nano-blip2", "table1", "figure1", "all", "paper"]
VALUES += ["nano", "blip2-iconqa", "0", "-1", "3", "9" * 400, "train.steps=3", "commit.kappa_window=10,50", "=1"]
VALUES += ["data.dataset=nano-macs", "local", "slurm", "partition=gpu", "timeout_min=[", "n" * 300, "a\nb", "\ud800"]
VALUES += ["\x1b[2J", "=", "a=b=c"]
FREE = st.text(st.characters(exclude_characters="/~"), max_size=12)  # never a place outside of the test's folder
WORDS = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(VALUES),
    st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES) | FREE).map("=".join),
    FREE,
)
LINES = st.builds(
    lambda command, words: [command, *words], st.sampled_from(COMMANDS), st.lists(WORDS, min_size=1, max_size=6)
)
STARTS = st.sampled_from([["reproduce", "table1"], ["demo"]])


def arms_of(comparison: Comparison) -> None:
    for arm in screening_arms(comparison.recipe, comparison.axes)[:3]:
        arm.recipe(comparison.recipe, seed=0)


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command up to its work, in a folder of the test."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Comparison, "run", arms_of)
    for name in ("make", "needs"):
        monkeypatch.setattr(Reproduction, name, lambda *_: "")


@given(line=LINES | st.lists(WORDS, min_size=1, max_size=4))
@inputs(60, 300)
def test_random_words_start_or_say(line: list[str]) -> None:
    succeeds_or_says(line, main)


@given(start=STARTS, words=st.lists(WORDS, min_size=1, max_size=4))
@inputs(60, 300)
def test_words_after_a_good_command_start_or_say(start: list[str], words: list[str]) -> None:
    succeeds_or_says([*start, *words], main)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_no_error(command: str) -> None:
    assert succeeds_or_says([command, "--help"], main) == 0


@pytest.mark.parametrize(
    "line", [["reproduce", "table1", "--data", ""], ["reproduce", "table1", "-o", ""], ["demo", "-o", ""]]
)
def test_empty_path_is_no_place(line: list[str]) -> None:
    assert succeeds_or_says(line, main) == 2
