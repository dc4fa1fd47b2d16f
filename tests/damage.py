"""Damage to files of JSON: anything at any place, or in the middle of the bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DELETED = object()
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
JUNK = st.one_of(
    st.just(DELETED),
    st.sampled_from([None, True, -1, 0, 1e308, 1e-320, 2**70, 10**400, float("nan"), float("inf"), [], {}, "", "x"]),
    st.sampled_from(
        ["\ud800", "\0", "<b>", "$x", "../../..", "/etc", "a/" * 300, "n" * 30_000, [[]], [None], {"": {}}, DEEP]
    ),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5), max_size=3),
)
BYTES = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"null", b"[]", b"{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b"1" * 5000])
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, from the outside to the inside."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """The value with something else at a place, or without what is there."""
    if not path:
        return None if junk is DELETED else junk
    copy = value.copy()
    if len(path) == 1 and junk is DELETED:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(value[path[0]], path[1:], junk)
    return copy


def damage(path: Path, data: st.DataObject) -> None:
    """Put something else at one place of a file, or in the middle of its bytes."""
    raw = path.read_bytes()
    if data.draw(st.integers(0, 4)) == 0:
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
        path.write_bytes(raw[:start] + data.draw(BYTES) + raw[end:])
        return
    lines = path.suffix == ".jsonl"
    value = [json.loads(line) for line in raw.splitlines()] if lines else json.loads(raw)
    changed = replaced(value, data.draw(st.sampled_from(list(places(value))[1:])), data.draw(JUNK))
    path.write_text("".join(json.dumps(row) + "\n" for row in changed) if lines else json.dumps(changed))
