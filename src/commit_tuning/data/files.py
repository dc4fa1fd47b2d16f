"""Reading of untrusted files: every failure becomes a :class:`FaultError`, and memory is bounded."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from commit_tuning.errors import UserError, one_line

Source = Path | bytes
"""A file, or its content."""

MAX_BYTES = 2**31
"""Largest file of annotations that is read."""

MAX_YAML = 2**25
"""Largest YAML file that is read; its nodes take some hundred times as much."""

MAX_LINE = 2**24
"""Longest line of a JSONL file, in bytes."""

MAX_DEPTH = 20
"""Deepest nesting of a YAML file; libyaml's own composer overflows the C stack on deeper ones."""

MAX_YAML_VALUES = 2**22
"""Most values of a YAML file, each counted as often as aliases repeat it."""

_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class FaultError(Exception):
    """Why a sample or a file cannot be read; the reader turns it into a skip or a UserError."""


def shown(source: Source | str) -> str:
    """Show a file's name, or any text of a dataset, as one short line, whatever it holds."""
    if isinstance(source, bytes):
        return "the file"
    return ascii((source if isinstance(source, str) else source.name)[:60])[1:-1]


def content_of(source: Source) -> io.BytesIO | Path:
    """Return a file, or its content as a file, for a library to open.

    Raises:
        FileNotFoundError: There is no such file; nor may it be a pipe, which would be waited for.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not source.is_file():
        raise FileNotFoundError
    return source


def not_whole(source: Source, what: str, error: Exception) -> FaultError:
    """Return the fault of a file that a library cannot read as what it should be."""
    if isinstance(error, FileNotFoundError):
        return FaultError(f"{shown(source)} is missing")
    return FaultError(f"{shown(source)} is not a whole {what} ({type(error).__name__})")


def check_inside(base: Path, path: Path) -> None:
    """Refuse a path that leads out of a resolved folder, by `..`, by being absolute, or through links.

    In a snapshot of the Hugging Face hub's cache, links to where that cache keeps its files are inside.

    Raises:
        FaultError: It does.
    """
    snapshot = next((parent for parent in (base, *base.parents) if parent.parent.name == "snapshots"), None)
    roots = (base, snapshot.parents[1] / "blobs") if snapshot else (base,)
    try:
        found = path.resolve()
        inside = any(found.is_relative_to(root) for root in roots)
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, a loop of links
        inside = False
    if not inside:
        raise FaultError(f"{shown(path)} lies outside the dataset folder {base}")


def member(base: Path, folder: Path, name: str) -> Path:
    """Return a file by its name in a dataset; `folder` must lie inside the resolved folder `base`.

    Raises:
        FaultError: As :func:`check_inside`.
    """
    path = folder / name
    if Path(name).name != name or "\0" in name or os.path.islink(path):  # noqa: PTH114 (it never raises)
        check_inside(base, path)
    return path


def located(base: Path, folder: Path, *names: str) -> Path:
    """Return the first of some names that is a file; `folder` must lie inside the resolved folder `base`.

    A name that is no file as it stands is looked for in other spellings: without the white space around it, with
    slashes for Windows' backslashes, and with accents composed (NFC) or apart (NFD, as macOS has them).

    Raises:
        FaultError: None is a file; or as :func:`check_inside`.
    """
    for name in names:
        for spelling in _spellings(name):
            path = member(base, folder, spelling)
            if os.path.isfile(path):  # noqa: PTH113 (it never raises)
                return path
    stem, ending = os.path.splitext(names[0])  # noqa: PTH122 (a name may be no path)
    others = (f"{stem}{it}" for it in (ending.lower(), ending.upper()))
    there = [f"; there is {shown(it)}" for it in others if os.path.isfile(folder / it)]  # noqa: PTH113
    raise FaultError(f"{shown(names[0])} is missing in {folder}{there[0] if there else ''}")


def _spellings(name: str) -> dict[str, None]:
    bare = (name, name.strip())
    local = (*bare, *(it.replace("\\", "/") for it in bare))
    return dict.fromkeys((*local, *(unicodedata.normalize(form, it) for form in ("NFC", "NFD") for it in local)))


def user_path(path: str | Path) -> Path:
    """Read a path as a user writes it: `~` is the home folder.

    Raises:
        UserError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{one_line(str(path))}: no home folder of that user; write the path out") from None


def words(value: object, what: str) -> str:
    """Return a text without the white space around it.

    Raises:
        FaultError: It is no text, is blank, or holds what was not UTF-8.
    """
    if not isinstance(value, str) or not value.strip():
        raise FaultError(f"no {what}")
    if _SURROGATE.search(value):
        raise FaultError(f"the {what} is not UTF-8; save a file in cp1252 or another code page as UTF-8")
    return value.strip()


def file_name(value: object, what: str) -> str:
    """Return a file's name unchanged; its white space counts.

    Raises:
        FaultError: As :func:`words`.
    """
    words(value, what)
    return str(value)


def identity(value: object, what: str) -> str:
    """Return an id: a text, or a number from 0.

    Raises:
        FaultError: As :func:`words` or :func:`number`.
    """
    return words(value, what) if isinstance(value, str) else str(number(value, what))


def said(value: object, what: str) -> str:
    """Return a text as :func:`words`; a number becomes its text.

    Raises:
        FaultError: As :func:`words`; or it is true or false, whose text nobody has chosen.
    """
    if isinstance(value, bool):
        raise FaultError(f"the {what} is {str(value).lower()} and no text: write what is to be said, such as yes or no")
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return words(str(value) if number else value, what)


def western(text: str) -> str:
    """Decode a text of :func:`csv_rows`; bytes that are not UTF-8 are cp1252, or Latin-1 where that has no letter."""
    if not _SURROGATE.search(text):
        return text
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def texts(value: object, what: str, *, blank: bool = False) -> tuple[str, ...]:
    """Return a list of texts or numbers as texts; blank ones are omitted or, with `blank`, empty texts.

    Raises:
        FaultError: It is no list, an entry of it is neither, or none is left.
    """
    if not isinstance(value, list):
        raise FaultError(f"no {what}" if value is None else f"no {what}: {type(value).__name__} instead of a list")
    strange = next((one for one in value if not isinstance(one, (str, int, float))), None)
    if strange is not None:
        raise FaultError(f"no {what}: one is a {type(strange).__name__}, not a text")
    kept = tuple("" if isinstance(one, str) and not one.strip() else said(one, what) for one in value)
    if not any(kept):
        raise FaultError(f"no {what}")
    return kept if blank else tuple(filter(None, kept))


def number(value: object, what: str, below: int = 10**12) -> int:
    """Return an integer from 0 to below `below`.

    Raises:
        FaultError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise FaultError(f"no {what}" if value is None else f"the {what} {shown(str(value))} is none below {below}")
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FaultError: The file is missing, too large, not UTF-8, not JSON, or nested too deep.
    """
    return parse_json(_content(path), path)


def parse_json(text: bytes, path: Path) -> Any:
    """Parse a JSON text; see :func:`read_json`."""
    try:
        return json.loads(utf8(text, shown(path)))
    except (ValueError, RecursionError):  # not JSON, or nested too deep
        raise FaultError(f"{shown(path)} is not valid JSON") from None


def utf8(text: bytes, name: str) -> str:
    """Decode bytes, without a byte order mark.

    Raises:
        FaultError: They are UTF-16 or UTF-32, or else not UTF-8.
    """
    _refuse_utf16(text[:4], name)
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FaultError(
            f"{name} is not UTF-8 at byte {error.start} (perhaps cp1252 or another code page); save it as UTF-8"
        ) from None


def json_list(path: Path) -> Iterator[Any]:
    """Yield the entries of a list in a JSON file, one at a time, so that a large file is no large tree.

    Raises:
        FaultError: As :func:`read_json`, perhaps after the first entries; or it is no list.
    """
    try:
        text, entry = utf8(_content(path), shown(path)), json.JSONDecoder().raw_decode
        at = _after_space(text, 0)
        if text[at : at + 1] != "[":
            json.loads(text)
            raise FaultError(f"{shown(path)} holds no list")
        at = _after_space(text, at + 1)
        more = text[at : at + 1] != "]"
        while more:
            value, at = entry(text, at)
            yield value
            at = _after_space(text, at)
            more = text[at : at + 1] == ","
            at = _after_space(text, at + 1) if more else at
        if text[at : at + 1] != "]" or _after_space(text, at + 1) != len(text):
            raise ValueError
    except (ValueError, RecursionError):
        raise FaultError(f"{shown(path)} is not valid JSON") from None


def _after_space(text: str, at: int) -> int:
    """Return the place of the next character that JSON counts."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def read_yaml(path: Path) -> Any:
    """Read a YAML file, with every scalar as its text.

    Raises:
        FaultError: The file is missing, too large, not UTF-8, not YAML, nested too deep, or has too many values.
    """
    import yaml

    from commit_tuning.data.readers.yaml_size import sizes

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        text = utf8(_content(path, MAX_YAML), shown(path))
        for depth, values in sizes(yaml.parse(text, Loader=loader), MAX_YAML_VALUES):
            if depth > MAX_DEPTH:
                raise FaultError(f"{shown(path)} is nested too deep")
            if values > MAX_YAML_VALUES:
                raise FaultError(f"{shown(path)} holds more than {MAX_YAML_VALUES:,} values, its aliases written out")
        return yaml.load(text, Loader=loader)  # a BaseLoader builds texts, lists and mappings of them, nothing else
    except (ValueError, RecursionError, yaml.YAMLError):
        raise FaultError(f"{shown(path)} is not valid YAML") from None


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | FaultError]]:
    """Yield the rows of a CSV file with a header, each with its line (1-based); a broken row is a fault.

    Bytes that are not UTF-8 are kept as surrogates, which :func:`words` refuses.

    Raises:
        FaultError: The file is missing, too large or UTF-16, or has not the columns.
    """
    _check_size(path, MAX_BYTES)
    _check_start(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
        except csv.Error:
            header = []
        absent = [name for name in columns if name not in header]
        if absent:
            there = shown(", ".join(header)) or "none"
            raise FaultError(f"{shown(path)} has no column {', '.join(absent)}; it has {there}")
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, FaultError(f"lines {line} to {rows.line_num} are not CSV ({error})")
                continue
            if row:
                wrong = FaultError(f"{len(row)} columns instead of {len(header)}")
                yield line, dict(zip(header, row, strict=True)) if len(row) == len(header) else wrong


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the value of each line of a JSONL file with its line (1-based); a broken line is a fault.

    Raises:
        FaultError: The file is missing or UTF-16.
    """
    _check_size(path, sys.maxsize)
    _check_start(path)
    with path.open("rb") as file:
        number, whole = 0, True
        while text := file.readline(MAX_LINE):
            starts, whole = whole, text.endswith(b"\n") or len(text) < MAX_LINE
            number += starts
            if starts and text.strip():
                yield number, _line(text) if whole else FaultError(f"longer than {MAX_LINE} bytes")


def _line(text: bytes) -> Any:
    try:
        return json.loads(utf8(text, "the line"))
    except FaultError as fault:
        return fault
    except (ValueError, RecursionError):
        return FaultError("the line is not valid JSON")


def _check_size(path: Path, most: int) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        size = None
    if size is None:
        raise FaultError(f"{shown(path)} is missing or unreadable")
    if size > most:
        raise FaultError(f"{shown(path)} is too large: {size >> 20} MiB")


def _check_start(path: Path) -> None:
    """Refuse a file that begins as UTF-16 or UTF-32 does."""
    try:
        with path.open("rb") as file:
            _refuse_utf16(file.read(4), shown(path))
    except OSError:
        raise FaultError(f"{shown(path)} is missing or unreadable") from None


def _refuse_utf16(start: bytes, name: str) -> None:
    """Refuse UTF-16 and UTF-32 by their mark, or by the zeros among their first four bytes."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 0 < start.count(0) < len(start):
        raise FaultError(f"{name} is UTF-16 or UTF-32; save it as UTF-8")


def _content(path: Path, most: int | None = None) -> bytes:
    _check_size(path, most or MAX_BYTES)
    try:
        return path.read_bytes()
    except OSError:
        raise FaultError(f"{shown(path)} is missing or unreadable") from None
