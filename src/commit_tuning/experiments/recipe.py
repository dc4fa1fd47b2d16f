"""Reading a recipe: YAML text, overrides, and one clear line for every fault."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from commit_tuning.errors import UserError
from commit_tuning.experiments.schema import COMMIT_KEYS, Recipe, valid_keys
from commit_tuning.experiments.yaml_text import parse_mapping, parse_value

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPE_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by its bare name.

    Args:
        path_or_name: Path of a YAML file, or the name of a shipped recipe such as `"iconqa-nano-llava"`.
        overrides: Settings that win over the file's, each `"section.key=value"` with a YAML value.

    Raises:
        UserError: No such file, not a YAML mapping, an unknown key, or a value of the wrong type or range.
    """
    path = find_recipe(path_or_name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read recipe {path}: {error}; give the path of a YAML text file") from None
    return build_recipe(parse_mapping(text, source=str(path)), parse_overrides(overrides), source=str(path))


def find_recipe(path_or_name: str | Path) -> Path:
    """The file that a path or a bare recipe name stands for.

    Raises:
        UserError: There is none.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    bare = len(path.parts) == 1 and path.suffix not in (".yaml", ".yml")
    for folder in RECIPE_FOLDERS if bare else ():
        if (folder / f"{path}.yaml").is_file():
            return folder / f"{path}.yaml"
    shipped = sorted({file.stem for folder in RECIPE_FOLDERS for file in folder.glob("*.yaml")})
    raise UserError(f"no recipe {str(path)!r}: give a path to a YAML file, or a shipped name ({', '.join(shipped)})")


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
        raise UserError("; ".join(_unknown(f"commit.{key}", source) for key in unknown))
    try:
        return Recipe.model_validate_json(_as_json(merged, source))
    except ValidationError as error:
        raise UserError("; ".join(_fault(dict(fault), source) for fault in error.errors())) from None


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some dotted keys changed, validated again."""
    return build_recipe(recipe.model_dump(mode="json"), changes, source="the recipe")


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` texts as keys with values.

    Raises:
        UserError: Not of that form.
    """
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"cannot read the setting {text!r}: write it as section.key=value, e.g. train.steps=100")
        parsed[key.strip()] = parse_value(value, source=f"the setting {text!r}")
    return parsed


def _set(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    *parents, last = key.split(".")
    if key not in valid_keys():
        raise UserError(_unknown(key, f"the settings for {source}"))
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


def _as_json(values: Mapping[str, Any], source: str) -> str:
    try:
        return json.dumps(values)
    except TypeError as error:
        raise UserError(
            f"{source}: {error}; a recipe holds text, numbers, true/false, null, lists and mappings"
        ) from None


def _unknown_commit_keys(section: object) -> list[str]:
    return [key for key in section if key not in COMMIT_KEYS] if isinstance(section, dict) else []


def _unknown(key: str, source: str) -> str:
    known = valid_keys()
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(key, known, n=1) or [
        last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], list(last), n=1)
    ]
    hint = f"did you mean {near[0]}?" if near else "see the shipped recipes for what there is"
    return f"unknown key {key} in {source}; {hint}"


def _fault(fault: dict[str, Any], source: str) -> str:
    place = [str(part) for part in fault["loc"]]
    key = ".".join(place)
    match fault["type"]:
        case "extra_forbidden":
            return _unknown(key, source)
        case "missing":
            return f"{key} is missing in {source}; add it"
        case "value_error":
            return f"{source}: {fault['ctx']['error']}"
        case _:
            given = yaml.safe_dump(fault["input"], default_flow_style=True).strip().removesuffix("\n...")
            return f"{key} in {source}: {fault['msg'].lower()}, got {given}"
