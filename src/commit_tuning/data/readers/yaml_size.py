"""How large and how deep a YAML text is, told from its events before any of it is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import yaml


def sizes(events: Iterable[yaml.Event], most: int) -> Iterator[tuple[int, int]]:
    """Yield, after each part of a YAML text, its depth and the number of values so far, aliases written out.

    Args:
        events: Of `yaml.parse`.
        most: The most values that the caller takes; an alias inside what it names counts as so many.

    Yields:
        Open collections; scalars, keys and collections, each counted as often as aliases repeat it.
    """
    values, anchored, open_parts = 0, dict[str | None, int](), list[tuple[str | None, int]]()
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            values += anchored.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            open_parts.append((event.anchor, values))
            values += 1
            anchored[event.anchor] = most  # while it is open: an alias inside repeats it without end
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            anchor, before = open_parts.pop()
            anchored[anchor] = values - before
        yield len(open_parts), values
