"""Reader of conversations about pictures and sounds, as users bring them: LLaVA, ShareGPT and messages files.

- LLaVA: ``{"id", "image", "conversations": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", ...}]}``.
- ShareGPT: the same with ``images`` or ``audios`` (lists), or ``messages`` with roles and texts in which ``<image>``
  or ``<audio>`` marks the place.
- messages (OpenAI, TRL): ``{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"},
  {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A cat."}]}``.

One list in a JSON file, or one object a line (JSONL). Files are local; addresses and embedded data are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from commit_tuning.data.files import FaultError, file_name, json_lines, user_path, words
from commit_tuning.data.reading import Place, Reader, Record, check_option, fields, json_entries
from commit_tuning.data.sample import CONVERSATION
from commit_tuning.errors import UserError

_MARKS = re.compile(r"<(?:image|audio|sound|speech)>\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_MEDIA = {"image": "image", "images": "image", "audio": "audio", "audios": "audio", "sound": "audio"}
_PART_TYPES = {"image": "image", "image_url": "image", "audio": "audio", "audio_url": "audio", "input_audio": "audio"}


@dataclass
class _Talk:
    """A conversation in one form: its turns, and the files it is about by medium."""

    turns: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=lambda: {"image": [], "audio": []})


class Conversations(Reader[object]):
    """The answers of the assistant in a file of conversations, in the file's order; see :class:`Reader`.

    A conversation is about one picture or one sound. Each answer is a sample of its own: its question is what came
    before it, the turns on lines of their own, without the marks for the medium. Ids are the conversation's (its
    `id`, or its line or number), for later answers with ``#1`` and so on.

    Args:
        path: The JSON or JSONL file.
        media: Folder that the files' names start from; None for the file's own. Nothing outside it is read.
        turns: all, or first for the first answer alone.
        limit: Read at most this many samples.
        strict: Raise on the first broken entry instead of skipping it.
        rate: Sampling rate of the sounds, in Hz.
        max_seconds: Cut sounds to their first so many seconds; None for all.
    """

    layout = "a JSON list or JSONL of {image(s) or audio(s), conversations: [{from, value}]} or {messages: [...]}"

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
        if not path.is_file() or not self._media.is_dir():
            raise UserError(f"no {path} or no folder {self._media}: expected {self.layout}")
        super().__init__(path, _entries(path), limit=limit, strict=strict, rate=rate, max_seconds=max_seconds)

    def _read(self, place: Place, entry: object) -> Iterator[Record]:
        item = fields(entry)
        talk = _talk(item)
        files = [(kind, name) for kind, names in talk.files.items() for name in names]
        if len(files) != 1:
            raise FaultError(f"{len(files)} pictures and sounds; a sample has one")
        kind, name = files[0]
        pictures = (self._picture(self._media, name),) if kind == "image" else ()
        sound = self._sound(self._media, name) if kind == "audio" else None
        given = item.get("id")
        base = str(given) if isinstance(given, (str, int)) and str(given).strip() else str(place.line)
        if base in self._ids:  # of LLaVA's own files it is the picture's
            base = f"{base}@{place.line}"
        for turn, (question, answer) in enumerate(_exchanges(talk.turns)[: self._turns]):
            name = words(f"{base}#{turn}" if turn else base, "id")
            yield Record(place, name, CONVERSATION, question, None, (answer,), pictures, sound)


def _entries(path: Path) -> Iterator[tuple[Place, object]]:
    with path.open("rb") as file:
        start = file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return json_entries(path)
    return ((Place(path, line), entry) for line, entry in json_lines(path))


def _talk(item: dict[str, object]) -> _Talk:
    talk = _Talk()
    for key, kind in _MEDIA.items():
        names = item.get(key)
        for name in names if isinstance(names, list) else [] if names is None else [names]:
            talk.files[kind].append(_local(name))
    turns = item.get("conversations") or item.get("messages")
    if not isinstance(turns, list) or not turns:
        raise FaultError("no conversations and no messages")
    for turn in map(fields, turns):
        role = turn.get("from", turn.get("role"))
        if not isinstance(role, str) or role not in _ROLES:
            raise FaultError("a turn that is neither the user's nor the assistant's")
        talk.turns.append((_ROLES[role], _text(turn.get("value", turn.get("content")), talk)))
    return talk


def _text(content: object, talk: _Talk) -> str:
    """The text of a turn; the files among its parts go to the conversation's."""
    if isinstance(content, str):
        return words(_MARKS.sub("", content), "text in a turn")
    if not isinstance(content, list):
        raise FaultError("no text in a turn")
    said = []
    for part in map(fields, content):
        kind = part.get("type")
        if kind == "text":
            said.append(words(part.get("text"), "text in a part of a turn"))
        elif isinstance(kind, str) and kind in _PART_TYPES:
            value = next((part[key] for key in (kind, "path", "url", "audio_url") if part.get(key)), None)
            if value is not None:  # else its file stands beside the conversation
                talk.files[_PART_TYPES[kind]].append(_local(value))
        else:
            raise FaultError("a part that is neither text, picture nor sound")
    return words("\n".join(said), "text in a turn")


def _local(value: object) -> str:
    """A local file's name, given as such or as an object's path or url."""
    if isinstance(value, dict):
        value = value.get("path") or value.get("url")
    name = file_name(value, "name of a picture or sound").removeprefix("file://")
    if re.match(r"(?i)(https?|data|s3|gs|hf):", name):
        raise FaultError("a picture or sound that is no local file: download it first")
    return name


def _exchanges(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """For each answer of the assistant, all that was said before it, and it."""
    before: list[str] = []
    found = []
    for role, text in turns:
        if role == "assistant":
            if not before:
                raise FaultError("an answer before any question")
            found.append(("\n".join(before), text))
        before.append(text)
    if not found:
        raise FaultError("no answer of the assistant")
    return found
