"""Recipes and settings of any form: a run starts, or one line says what is wrong."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaign import inputs, succeeds_or_says
from damage import JUNK, places, replaced
from hypothesis import given
from hypothesis import strategies as st

from commit_tuning.train import runner
from commit_tuning.train.compare.arms import screening_arms
from commit_tuning.train.recipe.load import find_recipe
from commit_tuning.train.recipe.schema import Recipe, valid_keys
from commit_tuning.train.record import RunRecord

SHIPPED = yaml.safe_load(find_recipe("llava-textvqa").read_text(encoding="utf-8"))
WORDS = st.sampled_from(
    [
        *("model", "name", "llava", "train", "steps", "commit", "method", "compare", "rates", "null", "true"),
        *(
            ": ",
            ":",
            "- ",
            ", ",
            "[",
            "]",
            "{",
            "}",
            "\n",
            "\n  ",
            "&a ",
            "*a",
            "<<: ",
            "? ",
            "| ",
            "> ",
            "%",
            "@",
            "`",
        ),
        *("!!int ", "!!python/name:os.system", "!", "---\n", "...\n", "#", "'", '"', "\t"),
        *("0400", "1:30", ".nan", "1e-3", "2**64"),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(WORDS, max_size=25).map("".join),
    st.lists(WORDS, max_size=12).map(
        lambda words: "model: {name: llava}\ndata: {dataset: iconqa, root: there}\n" + "".join(words)
    ),
)
VALUES = st.one_of(
    st.text(max_size=20),
    st.lists(WORDS, max_size=6).map("".join),
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(["", "~", "[]", "{}", "[1, 2]", "9" * 5000, "-1", "1e400", "[[[[]]]]", "textvqa", "cpu", "meta"]),
)


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run, only what its recipe decides."""

    def train(recipe: Recipe, output: Path, **_: object) -> RunRecord:
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert recipe.differences(json.loads(json.dumps(recipe.for_record()))) == []
        for arm in screening_arms(recipe)[:3]:
            arm.recipe(recipe, seed=0)
        return RunRecord(recipe={}, files={})

    monkeypatch.setattr(runner, "train", train)


def starts_or_says(raw: bytes, settings: list[str] | tuple[str, ...] = ()) -> None:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, "mine.yaml")
        path.write_bytes(raw)
        succeeds_or_says(["train", "--output", made, "--", str(path), *settings])


@given(text=TEXTS | st.binary(max_size=60))
@inputs(60, 500)
def test_random_yaml_is_read_or_refused(text: str | bytes) -> None:
    starts_or_says(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


@given(place=st.sampled_from(list(places(SHIPPED))[1:]), junk=JUNK, as_json=st.booleans())
@inputs(80, 500)
def test_changed_recipe_is_read_or_refused(place: tuple[Any, ...], junk: Any, as_json: bool) -> None:
    changed = replaced(SHIPPED, place, junk)
    try:
        text = json.dumps(changed) if as_json else yaml.safe_dump(changed, allow_unicode=True)
    except (ValueError, RecursionError):
        text = "too large to be written"
    starts_or_says(text.encode("utf-8", "surrogatepass"))


@given(
    key=st.sampled_from(valid_keys()) | st.text(max_size=20),
    value=VALUES,
    more=st.lists(st.text(max_size=12), max_size=2),
)
@inputs(80, 500)
def test_random_setting_is_taken_or_refused(key: str, value: str, more: list[str]) -> None:
    starts_or_says(json.dumps(SHIPPED).encode(), [f"{key}={value}", *more])
