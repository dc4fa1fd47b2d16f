"""Records on the disk, added by one process and read by any, none of which is ever read back wrong."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

KEY = hashlib.sha256().digest_size
"""Bytes of a key."""

ENDING = ".commit-tuning-rows"
"""Of the files, which no other program has: the oldest are removed where room is needed."""


class Shelf:
    """Records of one size in one file, which only grows: each is its key, its content, and the SHA-256 of both.

    The file is read and not mapped: a file that another process cuts short would end this one with a bus error. The
    system keeps what is read often in memory all the same. Whatever is wrong with the file, a record that is not whole
    is one that is not there.

    Args:
        path: The file; made with the first record. Its folder holds shelves only.
        size: Bytes of a record's content.
        limit: Most bytes of all files in the folder. Where a record has no room, the shelf that was opened longest ago
            is removed, if nobody writes to it; if there is none, the record is not kept.
    """

    def __init__(self, path: Path, size: int, limit: int) -> None:
        self._path, self._size, self._limit = path, size, limit
        self._record = KEY + size + KEY
        self._places: dict[bytes, int] = {}
        self._seen = 0
        self._lock: object = None
        self._closed = False
        with suppress(OSError):
            os.utime(path)  # the others were opened before

    def get(self, key: bytes) -> bytes | None:
        """The content of a record; None where there is none that is whole."""
        if key not in self._places:
            self._look()
        place = self._places.get(key)
        if place is None:
            return None
        record = self._read(place * self._record, self._record)
        content = record[KEY:-KEY]
        if record[:KEY] == key and len(content) == self._size and _checksum(key, content) == record[-KEY:]:
            return content
        del self._places[key]
        self._warn(f"{self._path} is damaged at record {place + 1}")
        return None

    def add(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep records, as far as there is room and no other process writes; what cannot be kept is computed again."""
        if self._closed or not self._begin():
            return
        for key, content in records:
            try:
                if key in self._places:
                    continue
                if not self._make_room():
                    return
                self._append(key + content + _checksum(key, content))
            except OSError as error:
                self._warn(f"cannot write {self._path}: {(error.strerror or str(error)).lower()}")
                self._closed = True
                return
            self._places[key] = self._seen
            self._seen += 1

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.release()  # type: ignore[attr-defined]
        self._lock, self._closed = None, True

    def _look(self) -> None:
        """Find the records that are there since the last look; of two with one key the later one counts."""
        stat = _stat(self._path)
        whole = stat.st_size // self._record if stat else 0
        for place in range(self._seen, whole):
            key = self._read(place * self._record, KEY)
            if len(key) == KEY:
                self._places[key] = place
        self._seen = max(self._seen, whole)

    def _read(self, at: int, size: int) -> bytes:
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(at)
                return file.read(size)
        except OSError:
            return b""

    def _append(self, record: bytes) -> None:
        """Write a record behind the whole ones; of one that cannot be written no part stays."""
        end = self._seen * self._record
        try:
            _write(self._path, end, record)
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, end)
            raise

    def _begin(self) -> bool:
        """Become the one that writes, if there is none."""
        if self._lock is None:
            from filelock import FileLock, Timeout

            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self._path.with_suffix(".lock"), timeout=0, thread_local=False)
                lock.acquire()
            except Timeout:
                return False
            except OSError as error:
                self._warn(f"cannot write to {self._path.parent}: {(error.strerror or str(error)).lower()}")
                self._closed = True
                return False
            self._lock = lock
            self._look()
        return True

    def _make_room(self) -> bool:
        shelves = [
            (stat.st_mtime, path, stat.st_size)
            for path in self._path.parent.glob(f"*{ENDING}")
            if (stat := _stat(path))
        ]
        taken = sum(size for *_, size in shelves) + self._record
        for _, path, size in sorted(shelves) if taken > self._limit else ():
            if path != self._path and _remove(path):
                taken -= size
            if taken <= self._limit:
                break
        return taken <= self._limit

    def _warn(self, fault: str) -> None:
        warnings.warn(f"{fault}; what is missing there is computed again", stacklevel=2)


def _checksum(key: bytes, content: bytes) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return digest.digest()


def _write(path: Path, at: int, content: bytes) -> None:
    """Write to a place of a file, and cut off what is behind it."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(at)
        file.seek(at)
        file.write(content)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # somebody has removed it
        return None


def _remove(path: Path) -> bool:
    """Remove a shelf to which nobody writes."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False):
            path.unlink()
    except (OSError, Timeout):
        return False
    return True
