"""Reader of MACS (Martin-Morato and Mesaros 2021, https://zenodo.org/records/5114771): captions of city sounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from commit_tuning.data.files import FaultError, file_name, read_yaml, shown
from commit_tuning.data.prompts import DESCRIBE_SOUND
from commit_tuning.data.readers.base import Place, Reader, Record, check_option, fields, find
from commit_tuning.data.sample import CAPTION

CITIES = {
    "train": ("barcelona", "helsinki", "lisbon", "london", "paris", "prague", "stockholm", "vienna"),
    "val": ("lyon",),
    "test": ("milan",),
}
"""The split, of our making: MACS has none."""


class MACS(Reader[object]):
    """The clips of one split in the file's order, each with the captions of two to five people; see :class:`Reader`.

    The clips are of TAU Urban Acoustic Scenes 2019, development set; a clip's city stands in its name,
    ``<scene>-<city>-<location>-<segment>-<device>.wav``, and no city is in two splits (:data:`CITIES`).

    Args:
        root: Folder of ``MACS.yaml`` and of ``audio/`` (or of the unpacked archives' folder).
        split: train, val, test or all.
        captions: first for a sample per clip, trained on its first caption; all for one per caption.
        limit: Read at most this many samples.
        strict: Raise on the first broken entry instead of skipping it.
        rate: Sampling rate of the sounds, in Hz.
        max_seconds: Cut sounds to their first so many seconds; None for all (they last 10 s).
    """

    layout = "MACS.yaml (files: [{filename, annotations: [{annotator_id, sentence, tags}]}]), audio/<filename>"

    def __init__(
        self,
        root: str | Path,
        split: str,
        captions: str = "first",
        *,
        limit: int | None = None,
        strict: bool = False,
        rate: int = 16_000,
        max_seconds: float | None = None,
    ) -> None:
        check_option(split, "split of MACS", (*CITIES, "all"))
        check_option(captions, "value of captions", ("first", "all"))
        self._split, self._all = split, captions == "all"
        path = find(root, ("MACS.yaml",), self.layout)
        folders = ("audio", "TAU-urban-acoustic-scenes-2019-development/audio")
        self._sounds = find(root, folders, self.layout).resolve()
        super().__init__(path, _clips(path), limit=limit, strict=strict, rate=rate, max_seconds=max_seconds)

    def _read(self, place: Place, entry: object) -> Iterator[Record]:
        item = fields(entry)
        name = file_name(item.get("filename"), "filename")
        if self._split not in (_split_of(name), "all"):
            return
        notes = item.get("annotations")
        if not isinstance(notes, list) or not notes:
            raise FaultError("no annotations")
        captions = self._texts(place, [fields(note).get("sentence") for note in notes], "sentence")
        record = Record(place, name, CAPTION, DESCRIBE_SOUND, None, captions, sound=self._sound(self._sounds, name))
        yield from record.per_caption() if self._all else (record,)


def _split_of(name: str) -> str:
    city = name.split("-")[1] if "-" in name else ""
    for split, cities in CITIES.items():
        if city in cities:
            return split
    raise FaultError(f"no city of the dataset in the name {shown(name)}")


def _clips(path: Path) -> Iterator[tuple[Place, object]]:
    data = read_yaml(path)
    clips = data.get("files") if isinstance(data, dict) else None
    if not isinstance(clips, list):
        raise FaultError("MACS.yaml holds no list of files")
    for number, clip in enumerate(clips, 1):
        yield Place(path, number), clip
