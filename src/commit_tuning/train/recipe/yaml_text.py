"""YAML as recipes use it: plain values of bounded size, no code, no key given twice, and `1e-3` is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

from commit_tuning.data.readers.yaml_size import sizes
from commit_tuning.errors import UserError, one_line

MAX_LETTERS = 2**18
"""Longest text that is parsed."""

MAX_DEPTH = 20
"""Deepest nesting."""

MAX_VALUES = 10_000
"""Most values, keys and collections of a text, each counted as often as aliases repeat it."""

MAX_BITS = 256
"""Longest whole number; one of some thousand digits cannot even be printed."""

_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """The safe loader with plain values only. As in YAML 1.2, dates and `1:30` are text, `1e-3` and `0400` numbers."""

    yaml_constructors = {  # noqa: RUF012 (PyYAML's own name)
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _PLAIN
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("null", "bool", "merge")]
        for letter, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A node's value; one that is not what its form or its tag says is an error with its line."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise OverflowError
            return value
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            shown = one_line(repr(node.value), 60) if isinstance(node, yaml.ScalarNode) else "what is there"
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown} is no {node.tag.rpartition(':')[2]}", node.start_mark
            ) from None


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    known: set[str] = set()
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        if key.value in known:
            shown = one_line(repr(key.value), 60)
            raise yaml.constructor.ConstructorError(None, None, f"key {shown} is given twice", key.start_mark)
        known.add(key.value)
    return loader.construct_mapping(node, deep=True)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0 if re.match("0[xo]", text) else 10)


_INTEGER = re.compile(r"^([-+]?\d[\d_]*|0x[\da-fA-F]+|0o[0-7]+)$", re.ASCII)
_REAL = re.compile(r"^[-+]?((\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$", re.ASCII)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _REAL, list("-+.0123456789"))


def parse_mapping(text: str, *, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds.

    Args:
        text: The YAML document.
        source: Where it comes from, for the error message.

    Raises:
        UserError: As `parse_value`; or something other than a mapping with text keys.
    """
    value = parse_value(text, source=source)
    if not isinstance(value, dict):
        raise UserError(f"{source} is not a recipe: expected 'section: ...' entries, found {_kind(value)}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{source} is not a recipe: section names are text, found {one_line(repr(key), 60)}")
    return value


def parse_value(text: str, *, source: str) -> Any:
    """Any YAML value.

    Raises:
        UserError: A syntax error, a value that is none, a tag that would run code, or more text, more values (with
            what aliases repeat) or deeper nesting than a recipe needs.
    """
    if len(text) > MAX_LETTERS:
        raise UserError(f"{source} is too long: {len(text):,} letters, and a recipe has at most {MAX_LETTERS:,}")
    try:
        _check_size(text, source)
        return yaml.load(text, Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{source}{_line(error)}: {one_line(error.problem)}; use plain values only") from None
    except yaml.MarkedYAMLError as error:
        problem = one_line(error.problem or error.context)
        raise UserError(f"{source}{_line(error)} is not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # too long a number of an escape or a version
        raise UserError(f"{source} is not valid YAML: {one_line(error)}") from None


def _check_size(text: str, source: str) -> None:
    """Refuse what is too large when every alias is written out, before any of it is built."""
    for depth, values in sizes(yaml.parse(text, Loader=_Loader), MAX_VALUES):
        if depth > MAX_DEPTH:
            raise UserError(f"{source} is nested more than {MAX_DEPTH} deep; a recipe needs 4")
        if values > MAX_VALUES:
            raise UserError(f"{source} holds more than {MAX_VALUES:,} values, its aliases written out; shorten it")


def _line(error: yaml.MarkedYAMLError) -> str:
    return f", line {error.problem_mark.line + 1}" if error.problem_mark else ""


def _kind(value: object) -> str:
    kinds = {"NoneType": "nothing", "list": "a list", "str": "plain text"}
    return kinds.get(type(value).__name__) or one_line(repr(value), 60)
