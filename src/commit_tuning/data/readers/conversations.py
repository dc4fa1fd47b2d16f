"""Reader of conversations about pictures and sounds, as users bring them, with local files.

- LLaVA: ``{"id", "image", "conversations": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", ...}]}``.
- ShareGPT, as LLaMA-Factory, ms-swift and Axolotl have it: the same with ``images`` or ``audios`` (lists), ``system``,
  ``messages`` with roles and texts, or ``conversation`` of pairs.
- messages (OpenAI, TRL): ``{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"},
  {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A cat."}]}``.
- One exchange: ``instruction`` (and ``input``), ``query``, ``prompt`` or ``question`` with ``output``, ``response``,
  ``completion`` or ``answer``, and ``history``.

One list in a JSON file, or one object a line (JSONL). :mod:`commit_tuning.data.readers.talk` reads one entry.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from commit_tuning.data.files import MAX_LINE, FaultError, json_lines, read_json, shown, user_path, words
from commit_tuning.data.readers.base import Place, Reader, Record, check_option, fields, json_entries
from commit_tuning.data.readers.talk import ASKED, TURN_LISTS, exchanges, talk_of
from commit_tuning.data.sample import CONVERSATION
from commit_tuning.errors import UserError

_LOG = logging.getLogger(__name__)


class Conversations(Reader[object]):
    """The answers of the assistant in a file of conversations, in the file's order; see :class:`Reader`.

    A conversation is about one picture or one sound. Each answer is a sample of its own: its question is what came
    before it, the system's text first, the turns on lines of their own, without the marks for the medium. An answer
    whose turn has ``"weight": 0``, ``"loss": false`` or ``"train": false`` is context and no sample. Ids are the
    conversation's (its `id`, or its line or number), for later answers with ``#1`` and so on.

    Args:
        path: The JSON or JSONL file.
        media: Folder that the files' names start from; None for the file's own. Nothing outside it is read.
        turns: all, or first for the first answer alone.
        limit: Read at most this many samples.
        strict: Raise on the first broken entry instead of skipping it.
        rate: Sampling rate of the sounds, in Hz.
        max_seconds: Cut sounds to their first so many seconds; None for all.

    Attributes:
        unread: Keys that no reader here knows, with the number of entries that have them. They are logged as a warning.
    """

    layout = (
        "a JSON list or JSONL of {image(s) or audio(s), conversations: [{from, value}]}, {..., messages: [...]} or "
        "{..., question, answer}"
    )

    def __init__(
        self,
        path: str | Path,
        media: str | Path | None = None,
        turns: str = "all",
        *,
        limit: int | None = None,
        strict: bool = False,
        rate: int = 16_000,
        max_seconds: float | None = None,
    ) -> None:
        check_option(turns, "value of turns", ("all", "first"))
        path = user_path(path)
        self._media = (path.parent if media is None else user_path(media)).resolve()
        self._turns = None if turns == "all" else 1
        self.unread: Counter[str] = Counter()
        if not path.is_file():
            raise UserError(f"no file {path}: expected {self.layout}")
        if not self._media.is_dir():
            raise UserError(f"no folder {self._media}, where the pictures and sounds should lie: give media=")
        super().__init__(path, _entries(path), limit=limit, strict=strict, rate=rate, max_seconds=max_seconds)
        if self.unread:
            told = ", ".join(f"{key!r} ({count} entries)" for key, count in self.unread.most_common(10))
            _LOG.warning("%s has keys that are not read: %s; does none of them change what is learnt?", path, told)

    def _read(self, place: Place, entry: object) -> Iterator[Record]:
        talk = talk_of(entry)
        self.unread += talk.unread
        if len(talk.files) != 1:
            raise FaultError(_not_one(len(talk.files), fields(entry)))
        kind, name = talk.files[0]
        pictures = (self._picture(self._media, name),) if kind == "image" else ()
        sound = self._sound(self._media, name) if kind == "audio" else None
        answered = exchanges(talk.turns)[: self._turns]
        base = self._base(place, fields(entry).get("id"), [number for number, _, _ in answered])
        for number, question, answer in answered:
            yield Record(place, _name(base, number), CONVERSATION, question, None, (answer,), pictures, sound)

    def _base(self, place: Place, given: object, numbers: Sequence[int]) -> str:
        """Return a conversation's id: the given one, unless an answer has it already; for LLaVA the picture's."""
        base = str(given) if isinstance(given, (str, int)) and str(given).strip() else str(place.line)
        taken = base in self._ids or any(_name(base, number) in self._ids for number in numbers)
        return f"{base}@{place.line}" if taken else base


def _name(base: str, number: int) -> str:
    return words(f"{base}#{number}" if number else base, "id")


def _not_one(count: int, entry: dict[str, object]) -> str:
    told = f"{count} pictures and sounds; a sample has one"
    return told if count else f"{told}, under image, images, audio or audios; the entry has {', '.join(entry)[:100]}"


def _entries(path: Path) -> Iterator[tuple[Place, object]]:
    with path.open("rb") as file:
        start = file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from json_entries(path)
    else:
        _check_lines(path)
        yield from ((Place(path, line), entry) for line, entry in json_lines(path))


def _check_lines(path: Path) -> None:
    """Refuse one JSON object that holds the entries under a key, or that stands on several lines.

    Raises:
        FaultError: It is one.
    """
    with path.open("rb") as file:
        first, several = file.readline(MAX_LINE), False
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        found, several = _whole(path), True
    if not isinstance(found, dict):
        return
    key = next((key for key, value in found.items() if _holds_entries(value)), None)
    if key is not None:
        raise FaultError(
            f"{shown(path)} is one JSON object with its entries under {shown(key)!r}: save that list alone"
        )
    if several:
        raise FaultError(f"{shown(path)} is one JSON object on several lines: put it into a list, [...]")


def _whole(path: Path) -> object:
    """Return the value of a file with one JSON value; None for any other file."""
    try:
        return read_json(path)
    except FaultError:
        return None


def _holds_entries(value: object) -> bool:
    entry = value[0] if isinstance(value, list) and value else None
    return isinstance(entry, dict) and not {*TURN_LISTS, *ASKED}.isdisjoint(entry)
