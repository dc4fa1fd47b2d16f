"""The common part of the nano datasets of sounds: clips are made one by one, written in chunks, then listed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from commit_lab.nano.building import build, in_processes, recipe_of
from commit_lab.nano.sounds.soundfont import RATE
from commit_tuning.data.sounds import sound_libraries

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 2
_CHUNK = 50
_PACKAGES = ("pretty_midi", "soundfile", "soxr")
Entry = dict[str, Any]
Samples: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True)
class Clip:
    """A sound and what the dataset says of it.

    Attributes:
        file: Its path below the dataset's folder; the ending decides the format.
        samples: float32 (T,), at 16 kHz.
        entries: What the index is made from.
    """

    file: str
    samples: NDArray[np.float32]
    entries: list[Entry]


MakeClip = Callable[[int, str, int], Clip]
"""(seed, split, number) -> clip; of the top level of a module, for the other processes."""


def build_sounds(
    root: str | Path,
    title: str,
    counts: dict[str, int],
    make: MakeClip,
    index: Callable[[Path, list[Entry]], None],
    *,
    seed: int,
    workers: int,
    clips: dict[str, int] | None = None,
    packages: tuple[str, ...] = (),
) -> Path:
    """Build a dataset of sounds (see :func:`commit_lab.nano.building.build`).

    Args:
        root: Folder to create.
        title: The dataset's name, for errors.
        counts: What the user asked for, by split.
        make: Makes a clip.
        index: Writes the dataset's lists into a folder, from the entries of all clips in order.
        seed: Seed of all chance.
        workers: Number of processes.
        clips: Number of clips by split; ``counts`` if not given.
        packages: Further packages whose versions the manifest holds.

    Raises:
        UserError: A count is not positive, ``root`` holds something else, or a package is not installed.
    """
    recipe = recipe_of(title, FORMAT, seed, counts, workers, unit="sample")
    tasks = [
        (split, range(start, min(start + _CHUNK, count)))
        for split, count in (clips or counts).items()
        for start in range(0, count, _CHUNK)
    ]

    def write(folder: Path) -> dict[str, Any]:
        written = in_processes(partial(_write_chunk, str(folder), seed, make), tasks, workers)
        index(folder, [entry for entries in written for entry in entries])
        return {"versions": {name: metadata.version(name) for name in (*_PACKAGES, *packages)}}

    return build(root, title, recipe, write)


def _write_chunk(root: str, seed: int, make: MakeClip, task: tuple[str, range]) -> list[Entry]:
    """Write some clips of a split; returns their entries."""
    (soundfile, _), (split, numbers) = sound_libraries(), task
    entries = []
    for number in numbers:
        clip = make(seed, split, number)
        path = Path(root, clip.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()  # soundfile itself says nothing of a full disk
        soundfile.write(encoded, clip.samples, RATE, format=path.suffix[1:].upper())
        path.write_bytes(encoded.getvalue())
        entries += clip.entries
    return entries


def vocabulary(*texts: str) -> tuple[str, ...]:
    """Return the words of some texts in lower case, sorted; punctuation marks are words of their own."""
    spaced = " ".join(texts).lower()
    for mark in ".,:?":
        spaced = spaced.replace(mark, f" {mark} ")
    return tuple(sorted(set(spaced.split())))
