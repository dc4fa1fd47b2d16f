"""Reading a recipe: YAML text, overrides, and one clear line for every fault."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from commit_tuning.config import MOVED
from commit_tuning.errors import UserError, one_line
from commit_tuning.plugins import load_plugins
from commit_tuning.train.recipe.schema import COMMIT_KEYS, Recipe, valid_keys
from commit_tuning.train.recipe.yaml_text import MAX_LETTERS, parse_mapping, parse_value

FOLDERS = [Path(__file__).resolve().parents[2] / "recipes"]
"""Where the shipped recipes lie; plugins add theirs."""

_FAULTS_SHOWN = 5


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by its bare name.

    Args:
        path_or_name: Path of a YAML file, or the name of a shipped recipe such as `"llava-textvqa"`.
        overrides: Settings that win over the file's, each `"section.key=value"` with a YAML value.

    Raises:
        UserError: No such file, not a YAML mapping, an unknown key, or a value of the wrong type or range.
    """
    path = find_recipe(path_or_name)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_LETTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read recipe {path}: {one_line(error)}; give the path of a YAML text file") from None
    return build_recipe(parse_mapping(text, source=str(path)), parse_overrides(overrides), source=str(path))


def find_recipe(path_or_name: str | Path) -> Path:
    """The file that a path or a bare recipe name stands for.

    Raises:
        UserError: There is none.
    """
    path = Path(path_or_name)
    if os.path.isfile(path):  # noqa: PTH113 (it never raises)
        return path
    load_plugins()
    shipped = {file.stem: file for folder in FOLDERS for file in folder.glob("*.yaml")}
    if str(path) in shipped:
        return shipped[str(path)]
    names, given = ", ".join(sorted(shipped)), one_line(repr(str(path)))
    raise UserError(f"no recipe {given}: give a path to a YAML file, or a shipped name ({names})")


def build_recipe(raw: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, source: str) -> Recipe:
    """Validate plain values as a recipe.

    Args:
        raw: Sections of the recipe.
        overrides: Dotted key to value; these win.
        source: Where `raw` comes from, for the error message.

    Raises:
        UserError: All faults, on one line.
    """
    merged = json.loads(_as_json(raw, source))
    for key, value in (overrides or {}).items():
        _set(merged, key, value, source)
    unknown = _unknown_commit_keys(merged.get("commit"))
    if unknown:
        raise _faulty([_unknown(f"commit.{key}", source) for key in unknown[:_FAULTS_SHOWN]], len(unknown))
    try:
        return Recipe.model_validate_json(_as_json(merged, source))
    except ValidationError as error:
        shown = [_fault(dict(fault), source) for fault in error.errors()[:_FAULTS_SHOWN]]
        raise _faulty(shown, error.error_count()) from None


def _faulty(shown: list[str], count: int) -> UserError:
    """The error that names the first faults of a recipe, and says how many more there are."""
    more = [f"and {count - len(shown):,} more"] if count > len(shown) else []
    return UserError("; ".join([*shown, *more]))


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some dotted keys changed, validated again."""
    return build_recipe(recipe.model_dump(mode="json"), changes, source="the recipe")


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` texts as keys with values.

    Raises:
        UserError: Not of that form.
    """
    parsed: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        shown = f"the setting {one_line(repr(text), 60)}"
        if not equals or not key.strip():
            raise UserError(f"cannot read {shown}: write it as section.key=value, e.g. train.steps=100")
        parsed.pop(key.strip(), None)  # a setting that is given again comes after those in between
        parsed[key.strip()] = parse_value(value, source=shown)
    return parsed


def _set(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    if key not in valid_keys():
        raise UserError(_unknown(key, f"the settings for {source}"))
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            short = tree.get(parent)  # the name of a controller, of a regulariser
            tree[parent] = {"name": short} if isinstance(short, str) and short != "auto" else {}
        tree = tree[parent]
    tree[last] = value


def _as_json(values: Mapping[str, Any], source: str) -> str:
    try:
        text = json.dumps(values, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:  # half a letter (a surrogate); of values given in Python: a loop, a date
        raise UserError(
            f"{source}: {one_line(error)}; a recipe holds text, numbers, true/false, null, lists and mappings"
        ) from None
    return text


def _unknown_commit_keys(section: object) -> list[str]:
    return [key for key in section if key not in COMMIT_KEYS] if isinstance(section, dict) else []


def _unknown(key: str, source: str) -> str:
    moved = MOVED.get(key.removeprefix("commit."))
    if moved and key.startswith("commit."):
        return f"{key} in {source} is commit.{moved} now; write that"
    known, key = valid_keys(), one_line(key, 80)
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(key, known, n=1) or [
        last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], list(last), n=1)
    ]
    hint = f"did you mean {near[0]}?" if near else "see the shipped recipes for what there is"
    return f"unknown key {key} in {source}; {hint}"


def _fault(fault: dict[str, Any], source: str) -> str:
    key = one_line(".".join(str(part) for part in fault["loc"]), 80)
    match fault["type"]:
        case "extra_forbidden":
            return _unknown(key, source)
        case "missing":
            return f"{key} is missing in {source}; add it"
        case "value_error":
            return f"{source}: {one_line(fault['ctx']['error'], 1000)}"
        case _:
            given = fault["input"] if isinstance(fault["input"], str) else json.dumps(fault["input"])
            return f"{key} in {source}: {one_line(fault['msg'].lower())}, got {one_line(given, 60)}"
