"""Command lines of any form: they start their work, or one line says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaign import inputs, succeeds_or_says
from hypothesis import given
from hypothesis import strategies as st

from commit_tuning.errors import UserError
from commit_tuning.train import evaluate, runner
from commit_tuning.train import inspect_target as inspect
from commit_tuning.train.compare.arms import screening_arms
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.evaluate import Evaluation
from commit_tuning.train.record import RunRecord

RECIPE = "llava-textvqa"
COMMANDS = ["train", "evaluate", "compare", "report", "inspect"]
OPTIONS = [
    "--output",
    "-o",
    "--force",
    "--help",
    "-h",
    "--version",
    "--json",
    "--",
    "-",
    "--save-weights",
    "--jobs",
    "-j",
]
OPTIONS += ["--methods", "--seeds", "--screen-seeds", "--first-seed", "--rates", "--axis", "--static-grid"]
OPTIONS += ["--predictions", "--skipped", "--split", "--cluster", "--cluster-option", "--no-such"]
VALUES = ["", " ", ".", "out", "out/below", "file", "file/below", RECIPE, "all"]
VALUES += [
    "textvqa",
    "constant,commit",
    "1e-3,1e-2",
    "0",
    "-1",
    "3",
    "9" * 400,
    "1e400",
]
VALUES += [
    "train.steps=3",
    "commit.kappa_window=10,50",
    "model.name=x,y",
    "data.dataset=macs",
    "train.steps=",
    "=1",
]
VALUES += [
    "local",
    "slurm",
    "partition=gpu",
    "timeout_min=[",
    "n" * 300,
    "a\nb",
    "\ud800",
    "\x1b[2J",
    "test",
    "=",
    "a=b=c",
]
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
STARTS = st.sampled_from(
    [
        ["train", RECIPE, "-o", "out"],
        ["compare", RECIPE, "-o", "out"],
        ["evaluate", RECIPE],
        ["report", "out"],
    ]
)


def arms_of(comparison: Comparison) -> None:
    for arm in screening_arms(comparison.recipe, comparison.axes)[:3]:
        arm.recipe(comparison.recipe, seed=0)


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command up to its work, in a folder of the test."""
    scores = {"metric": "iconqa", "accuracy": 0.5, "questions": 2, "by_kind": {}, "left_out": ""}

    def refuses(*_: object, **__: object) -> None:
        raise UserError("nothing is inspected here")

    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "train", lambda *_, **__: RunRecord(recipe={}, files={}))
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: Evaluation("iconqa", "test", scores, [], []))
    monkeypatch.setattr(inspect, "inspect_target", refuses)
    monkeypatch.setattr(Comparison, "run", arms_of)


@given(line=LINES | st.lists(WORDS, min_size=1, max_size=4))
@inputs(100, 600)
def test_random_words_start_or_say(line: list[str]) -> None:
    succeeds_or_says(line)


@given(start=STARTS, words=st.lists(WORDS, min_size=1, max_size=4))
@inputs(100, 600)
def test_words_after_a_good_command_start_or_say(start: list[str], words: list[str]) -> None:
    succeeds_or_says([*start, *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_no_error(command: str) -> None:
    assert succeeds_or_says([command, "--help"]) == 0


@pytest.mark.parametrize(
    "line",
    [
        ["train", RECIPE, "-o", ""],
        ["compare", RECIPE, "--output="],
        ["evaluate", RECIPE, "--predictions", ""],
        ["evaluate", RECIPE, "--skipped", " "],
        ["report", ""],
    ],
)
def test_empty_path_is_no_place(line: list[str]) -> None:
    assert succeeds_or_says(line) == 2
