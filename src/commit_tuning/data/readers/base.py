"""The common part of all readers: it checks everything at opening and decodes on request.

A reader turns one entry of its files into records (:meth:`Reader._read`). The rest is here, so that every dataset
behaves alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from commit_tuning.data.files import FaultError, json_list, located, read_json, shown, texts, user_path
from commit_tuning.data.pictures import check_picture, load_picture
from commit_tuning.data.sample import Sample
from commit_tuning.data.sounds import check_sound, load_sound
from commit_tuning.errors import UserError

SPLITS = ("train", "val", "test")
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Place:
    """Where an entry stands: a file or folder; in a file, its line (CSV, JSONL) or its number in the list, from 1."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Skipped:
    """An entry that cannot be read, where it stands, and why."""

    path: Path
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{Place(self.path, self.line)}: {self.reason}"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"path": str(self.path), "line": self.line, "reason": self.reason}


class SkipList(list[Skipped]):
    """The entries that are left out, in the order in which they were met."""

    def __init__(self) -> None:
        super().__init__()
        self._met: set[Skipped] = set()

    def append(self, entry: Skipped) -> None:
        """Add an entry."""
        self._met.add(entry)
        super().append(entry)

    def note(self, entry: Skipped) -> None:
        """Add an entry that is not there yet."""
        if entry not in self._met:
            self.append(entry)


class DamagedError(UserError):
    """A picture or sound that cannot be decoded, found when its sample was asked for; `skipped` says which and why."""

    def __init__(self, skipped: Skipped) -> None:
        super().__init__(f"{skipped}; it changed after the dataset was opened, or is damaged inside")
        self.skipped = skipped


@dataclass(frozen=True)
class Record:
    """A checked sample before its picture and sound are decoded; the fields are :class:`Sample`'s.

    Attributes:
        place: Where it stands.
        pictures: Files, the question's first.
        sound: File, or None.
    """

    place: Place
    id: str
    kind: str
    question: str
    choices: tuple[str, ...] | None
    answers: tuple[str, ...]
    pictures: tuple[Path, ...] = ()
    sound: Path | None = None

    def per_caption(self) -> Iterator[Record]:
        """Yield a record for each caption: it comes first in its answers, the others stay as references."""
        for turn, own in enumerate(self.answers):
            others = self.answers[:turn] + self.answers[turn + 1 :]
            yield replace(self, id=f"{self.id}#{turn}", answers=(own, *others))


class Reader(Generic[Entry]):
    """The samples of one split, as a map-style dataset in a fixed order.

    Everything but the pixels and the sound is checked when the dataset is opened: the text, that every file lies inside
    the dataset's folders, that every picture is whole and every sound opens and has its end. So the length is final,
    and `skipped` lists what was left out. Pictures and sounds are decoded when a sample is asked for, which may raise
    :class:`DamagedError`; none is kept.

    Args:
        name: What is read, for messages: a file or folder.
        entries: The raw entries with their places; an entry that is a FaultError is skipped for that reason.
        limit: Read at most this many samples.
        strict: Raise on the first broken entry instead of skipping it.
        rate: Sampling rate of the sounds, in Hz.
        max_seconds: Cut sounds to their first so many seconds; None for all.

    Attributes:
        skipped: The entries left out, with reasons.

    Raises:
        UserError: The dataset is not in the expected layout, nothing readable is in it, or `strict` and an entry is
            broken.
    """

    layout: ClassVar[str]

    def __init__(
        self,
        name: Path | str,
        entries: Iterable[tuple[Place, Entry | FaultError]],
        *,
        limit: int | None = None,
        strict: bool = False,
        rate: int = 16_000,
        max_seconds: float | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise UserError(f"limit is {limit}: read at least one sample")
        self.skipped = SkipList()
        self._records: list[Record] = []
        self._rate, self._max_seconds, self._strict = rate, max_seconds, strict
        self._known: dict[tuple[str, Path], str | None] = {}  # by medium, of files that several samples share
        self._ids: set[str] = set()
        self._blank: list[Skipped] = []  # of the entry that is being read
        try:
            for place, entry in entries:
                self._take(place, entry)
                if limit is not None and len(self._records) >= limit:
                    break
        except FaultError as fault:  # of the whole file
            raise UserError(f"{name}: {fault}; expected {self.layout}") from None
        self._records = self._records[:limit]
        del self._known, self._ids, self._blank
        if not self._records:
            raise UserError(f"no readable sample in {name}{self._first_skip()}; expected {self.layout}")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        try:
            return self._sample(record)
        except FaultError as fault:
            raise DamagedError(Skipped(record.place.path, str(fault), record.place.line)) from None

    def record(self, index: int) -> Record:
        """Return a sample before its picture and sound are decoded."""
        return self._records[index]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def _read(self, place: Place, entry: Entry) -> Iterator[Record]:
        """Yield the checked records of an entry; FaultError if it is broken."""
        raise NotImplementedError

    def _sample(self, record: Record) -> Sample:
        image = load_picture(record.pictures[0]) if record.pictures else None
        audio = None if record.sound is None else load_sound(record.sound, self._rate, self._max_seconds)
        return Sample(record.id, record.kind, record.question, record.choices, record.answers, image, audio)

    def _take(self, place: Place, entry: Entry | FaultError) -> None:
        self._blank.clear()
        try:
            if isinstance(entry, FaultError):
                raise entry
            records = list(self._read(place, entry))
            twice = [record.id for record in records if record.id in self._ids]
            if twice:
                raise FaultError(f"the id {shown(twice[0])} is there already")
        except FaultError as fault:
            if self._strict:
                raise UserError(f"{place}: {fault}; repair it, or read without strict to skip it") from None
            self.skipped.append(Skipped(place.path, str(fault), place.line))
            return
        for blank in self._blank if records else ():
            self.skipped.append(blank)
        self._records += records
        self._ids.update(record.id for record in records)

    def _first_skip(self) -> str:
        return f" ({len(self.skipped)} broken, first: {self.skipped[0].reason})" if self.skipped else ""

    def _texts(self, place: Place, value: object, what: str) -> tuple[str, ...]:
        """Return a list of texts; blank ones are omitted and counted among the skipped.

        Raises:
            FaultError: As :func:`~commit_tuning.data.files.texts`; or one is blank, and the reader is strict.
        """
        kept, given = texts(value, what), len(value) if isinstance(value, list) else 0
        if len(kept) < given:
            fault = FaultError(f"{given - len(kept)} of {given} {what} are blank; the others are read")
            if self._strict:
                raise fault
            self._blank.append(Skipped(place.path, str(fault), place.line))
        return kept

    def _picture(self, folder: Path, *names: str) -> Path:
        """Return the picture in a resolved media folder that has the first of some names, checked once."""
        return self._checked("picture", located(folder, folder, *names), check_picture)

    def _sound(self, folder: Path, name: str) -> Path:
        """Return a sound in a resolved media folder, checked once."""
        return self._checked("sound", located(folder, folder, name), lambda it: check_sound(it, self._max_seconds))

    def _checked(self, medium: str, path: Path, check: Callable[[Path], object]) -> Path:
        if (medium, path) not in self._known:
            try:
                check(path)
                self._known[medium, path] = None
            except FaultError as fault:
                self._known[medium, path] = str(fault)
        reason = self._known[medium, path]
        if reason is not None:
            raise FaultError(reason)
        return path


def find(root: str | Path, names: Sequence[str], layout: str) -> Path:
    """Find the first of some files or folders under a root, which may begin with `~`, that exists.

    Raises:
        UserError: None does.
    """
    paths = [user_path(root) / name for name in names]
    for path in paths:
        if path.exists():
            return path
    raise UserError(f"no {names[0]} in {root}: expected {layout}")


def check_option(value: str, what: str, options: Sequence[str] = SPLITS) -> None:
    """Refuse a split, or the value of another option, that there is not.

    Raises:
        UserError: There is not.
    """
    if value not in options:
        raise UserError(f"no {what} {value!r}: there are {', '.join(options)}")


def tenth(name: str) -> int:
    """Return the tenth, 0 to 9, that a name falls into."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10


def json_entries(path: Path, key: str | None = None) -> Iterator[tuple[Place, object]]:
    """Yield the entries of a JSON list, or of the list under a key, with their places.

    Raises:
        FaultError: The file is no such thing.
    """
    entries = json_list(path) if key is None else fields(read_json(path)).get(key)
    if not isinstance(entries, (list, Iterator)):
        raise FaultError(f"{shown(path)} holds no list of {key}")
    for number, entry in enumerate(entries, 1):
        yield Place(path, number), entry


def fields(entry: object) -> dict[str, object]:
    """Return an entry that has fields.

    Raises:
        FaultError: It has none.
    """
    if not isinstance(entry, dict):
        raise FaultError("the entry is not an object")
    return entry
