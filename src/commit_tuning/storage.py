"""Files that are there whole or not at all, on disk and not only in memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from commit_tuning.errors import UserError

_TEMPORARY = ".commit-tuning.tmp"
_PART = 1 << 20  # bytes
_TICK = 2_000_000_000  # nanoseconds; no clock of a file system is coarser


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all; replaces what is there.

    Raises:
        UserError: The file cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; replaces what is there.

    Raises:
        UserError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made where it is missing; a process that is killed may leave a part.

    Raises:
        UserError: The file cannot be written.
    """
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; at the end it takes the place of `path`, synced to the disk.

    An exception removes the temporary file and leaves `path` as it was.

    Raises:
        UserError: The file cannot be written.
    """
    temporary = temporary_path(path)
    try:
        with explained(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says about a path that cannot be written into one line.

    Raises:
        UserError: An OSError was raised inside.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {path}: {reason}; make room or choose another place") from None


def temporary_path(path: Path) -> Path:
    """The path beside `path` that this process writes to first."""
    return path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")


def is_temporary(path: Path) -> bool:
    """Whether a path is one of `temporary_path`: a killed process may leave it."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder, which nobody else may be at work in."""
    for path in [path for path in folder.iterdir() if is_temporary(path)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's content, 64 hexadecimal digits; what has not changed since is not read again."""
    seen = path.stat()
    changed = max(seen.st_mtime_ns, seen.st_ctime_ns)
    settled = time.time_ns() - changed > _TICK  # a file that is written in the same tick of its clock looks the same
    read = _known_sha256 if settled else _known_sha256.__wrapped__
    return read(path, seen.st_size, seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns)


@lru_cache(maxsize=1 << 20)
def _known_sha256(path: Path, size: int, *seen: int) -> str:
    """Read a file in parts; `size` and `seen` tell one state of it from the next."""
    del seen
    digest, at_once = hashlib.sha256(), min(size + 1, _PART)  # room for more takes longer than to read a small file
    with path.open("rb") as file:
        while part := file.read(at_once):
            digest.update(part)
    return digest.hexdigest()
