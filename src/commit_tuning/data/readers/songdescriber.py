"""Reader of the Song Describer Dataset (Manco et al. 2023, https://zenodo.org/records/10072001): captions of music."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from commit_tuning.data.files import FaultError, csv_rows, file_name, words
from commit_tuning.data.prompts import DESCRIBE_MUSIC
from commit_tuning.data.readers.base import SPLITS, Place, Reader, Record, check_option, find, tenth
from commit_tuning.data.sample import CAPTION

_COLUMNS = ("caption_id", "track_id", "caption", "is_valid_subset", "artist_id", "path")


class SongDescriber(Reader[list[dict[str, str]]]):
    """The tracks of one split in the file's order, each with its captions; see :class:`Reader`.

    The dataset is made for evaluation and has one split, here `all`. To train on it, :func:`split_of` puts a tenth of
    the artists into val and a tenth into test; no artist is in two splits.

    Args:
        root: Folder of ``song_describer.csv`` and of ``audio/``.
        split: train, val, test or all.
        captions: first for a sample per track, trained on its first caption; all for one per caption.
        valid_only: Read the captions of the validated subset alone.
        limit: Read at most this many samples.
        strict: Raise on the first broken entry instead of skipping it.
        rate: Sampling rate of the sounds, in Hz.
        max_seconds: Cut sounds to their first so many seconds; None for all (they last two minutes).
    """

    layout = "song_describer.csv (caption_id,track_id,caption,...,path,duration), audio/<path>, ending in .2min.mp3"

    def __init__(
        self,
        root: str | Path,
        split: str,
        captions: str = "first",
        *,
        valid_only: bool = False,
        limit: int | None = None,
        strict: bool = False,
        rate: int = 16_000,
        max_seconds: float | None = None,
    ) -> None:
        check_option(split, "split of the Song Describer Dataset", (*SPLITS, "all"))
        check_option(captions, "value of captions", ("first", "all"))
        self._all = captions == "all"
        path = find(root, ("song_describer.csv",), self.layout)
        self._sounds = find(root, ("audio/audio", "audio"), self.layout).resolve()
        tracks = _tracks(path, split, valid_only)
        super().__init__(path, tracks, limit=limit, strict=strict, rate=rate, max_seconds=max_seconds)

    def _read(self, place: Place, entry: list[dict[str, str]]) -> Iterator[Record]:
        name, captions = entry[0]["path"], tuple(row["caption"] for row in entry)
        sound = self._sound(self._sounds, name.rstrip().removesuffix(".mp3").removesuffix(".2min") + ".2min.mp3")
        record = Record(place, entry[0]["track_id"], CAPTION, DESCRIBE_MUSIC, None, captions, sound=sound)
        yield from record.per_caption() if self._all else (record,)


def split_of(artist: str) -> str:
    """Return the split of an artist: a tenth of the hashes of the ids is val, a tenth test."""
    part = tenth(artist)
    return {8: "val", 9: "test"}.get(part, "train")


def _tracks(path: Path, split: str, valid_only: bool) -> Iterator[tuple[Place, list[dict[str, str]] | FaultError]]:
    """Yield the broken rows, then the tracks: the rows of each."""
    tracks: dict[str, tuple[Place, list[dict[str, str]]]] = {}
    seen: set[str] = set()
    for line, row in csv_rows(path, _COLUMNS):
        place = Place(path, line)
        try:
            if isinstance(row, FaultError):
                raise row
            clean = {name: words(row[name] or "", name) for name in _COLUMNS if name != "is_valid_subset"}
            clean["path"] = file_name(row["path"], "path")
            if clean["caption_id"] in seen:
                raise FaultError("the caption_id is there already")
        except FaultError as fault:
            yield place, fault
            continue
        seen.add(clean["caption_id"])
        if split in ("all", split_of(clean["artist_id"])) and (not valid_only or row["is_valid_subset"] == "True"):
            tracks.setdefault(clean["track_id"], (place, []))[1].append(clean)
    yield from tracks.values()
