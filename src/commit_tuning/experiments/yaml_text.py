"""YAML as recipes use it: no code, no key given twice, and `1e-3` is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

from commit_tuning.errors import UserError


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's floats and without silently dropped duplicates."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for position, key in enumerate(keys):
        if any(key.value == earlier.value for earlier in keys[:position]):
            raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_mapping(text: str, *, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds.

    Args:
        text: The YAML document.
        source: Where it comes from, for the error message.

    Raises:
        UserError: A syntax error, a tag that would run code, or something other than a mapping with text keys.
    """
    value = parse_value(text, source=source)
    if not isinstance(value, dict):
        raise UserError(f"{source} is not a recipe: expected 'section: ...' entries, found {_kind(value)}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{source} is not a recipe: section names are text, found {key!r}")
    return value


def parse_value(text: str, *, source: str) -> Any:
    """Any YAML value.

    Raises:
        UserError: A syntax error, or a tag that would run code.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{source}{_line(error)}: {error.problem}; use plain values only") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{source}{_line(error)} is not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())[:200]}") from None


def _line(error: yaml.MarkedYAMLError) -> str:
    return f", line {error.problem_mark.line + 1}" if error.problem_mark else ""


def _kind(value: object) -> str:
    return (
        "nothing" if value is None else {"list": "a list", "str": "plain text"}.get(type(value).__name__, repr(value))
    )
