"""One conversation about a picture or a sound, whatever tool its file was written for, in one form.

Keys that change the meaning of an entry are read or make it a fault: a video, places in the picture, calls of tools, a
preference, a part of a turn that alone is trained on. :attr:`Talk.unread` names the other keys.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from commit_tuning.data.files import FaultError, said, shown, words
from commit_tuning.data.readers.base import fields

_ROLES = {
    "user": ("human", "user"),
    "assistant": ("gpt", "assistant", "model", "bot", "chatbot"),
    "system": ("system", "developer"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_MEDIUM_OF = {
    **dict.fromkeys(("image", "images", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audios", "sound", "sounds", "speech", "audio_url", "input_audio"), "audio"),
}
_FILE_KEYS = ("image", "images", "audio", "audios", "sound", "sounds")
_TEXT_PARTS = ("text", "input_text", "output_text")
TURN_LISTS = ("conversations", "messages", "conversation")
ASKED, _SAID = ("instruction", "query", "prompt", "question"), ("output", "response", "completion", "answer")
_TRAINED = ("weight", "loss", "train", "training", "loss_scale")

_REFUSED = {
    **dict.fromkeys(("video", "videos"), "a video"),
    **dict.fromkeys(("objects", "bbox", "bboxes", "boxes", "points", "segmentation"), "places in the picture"),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call", "tool_call_id"), "calls of tools"),
    **dict.fromkeys(
        ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "kto_tag", "label"),
        "a preference or a label",
    ),
    **dict.fromkeys(("reasoning", "reasoning_content", "thinking"), "a train of thought beside the answer"),
    **dict.fromkeys(("train_detail", "mask"), "a mask over what is trained on"),
}
_KNOWN = {*_FILE_KEYS, *TURN_LISTS, *_REFUSED, "system"}
_PLAIN = {
    "id", "idx", "index", "uid", "uuid", "sample_id", "conversation_id", "question_id", "image_id", "item_id", "name",
    "source", "dataset", "data_source", "origin", "url", "license", "category", "categories", "type", "task", "topic",
    "tags", "lang", "language", "split", "model", "model_name", "width", "height", "image_size", "image_width",
    "image_height", "num_turns", "metadata", "meta", "timestamp", "date", "created_at", "score",
}  # fmt: skip
"""Keys that say who and whence an entry is."""

_MARK = re.compile(r"<(image|audio|sound|speech)>\n?")
_STRANGE = re.compile(
    r"(?i)<\|?(?:(?:image|img|audio|sound|speech|video)[\w-]*|bbox|box|quad|ref|ref-object|point|"
    r"(?:object_ref|box|quad|vision)_start)\|?>"
)


@dataclass(frozen=True)
class Turn:
    """What one side said.

    Attributes:
        role: user, assistant or system.
        text: Without the marks of pictures and sounds.
        trained: Whether an answer is trained on; others are only context.
        media: The medium of each mark, in their order.
        files: Names of files that stand in the turn, by medium.
    """

    role: str
    text: str
    trained: bool = True
    media: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Talk:
    """A conversation.

    Attributes:
        turns: In their order.
        files: (medium, name) of each file.
        unread: Keys that are not read.
    """

    turns: list[Turn]
    files: list[tuple[str, str]] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def talk_of(entry: object) -> Talk:
    """Read the conversation of an entry.

    Raises:
        FaultError: It is none, or it says something that cannot be learnt here.
    """
    item = {key: value for key, value in fields(entry).items() if value not in (None, [], {}, "")}
    if str(item.get("mask", "")).lower() in _ROLES["user"]:  # only answers are trained on, as it is everywhere
        del item["mask"]
    _refuse(item)
    unread: Counter[str] = Counter()
    turns, used = _turns(item, unread)
    if "system" in item:
        turns = _with_system(words(item["system"], "system"), turns)
    unread.update(set(item) - _KNOWN - _PLAIN - used)
    files = [*_files(item), *(file for turn in turns for file in turn.files)]
    _check_marks(turns, files)
    return Talk(turns, files, Counter(dict.fromkeys(unread, 1)))


def exchanges(turns: Iterable[Turn]) -> list[tuple[int, str, str]]:
    """Return, for each trained answer, its number from 0, everything said before it, and the answer.

    Raises:
        FaultError: There is none, or one has no question.
    """
    before: list[str] = []
    found = []
    answers = 0
    for turn in turns:
        if turn.role == "assistant":
            if not before:
                raise FaultError("an answer before any question")
            if turn.trained:
                found.append((answers, "\n".join(before), turn.text))
            answers += 1
        before.append(turn.text)
    if not found:
        raise FaultError(f"no answer that is trained on (of {answers})" if answers else "no answer of the assistant")
    return found


def _refuse(item: dict[str, object]) -> None:
    for key, value in item.items():
        if key in _REFUSED and value not in (None, [], {}, ""):
            raise FaultError(f"{_REFUSED[key]} (the key {key!r}), which cannot be learnt here")


def _turns(item: dict[str, object], unread: Counter[str]) -> tuple[list[Turn], set[str]]:
    """Return the turns, and the keys that they were made from."""
    lists = [key for key in TURN_LISTS if key in item]
    if len(lists) > 1:
        raise FaultError(f"both {' and '.join(lists)}: leave one")
    if lists:
        return _listed(item[lists[0]], unread), set(lists)
    asked, answers = [key for key in ASKED if key in item], [key for key in _SAID if key in item]
    if not asked and "input" in item:
        asked = ["input"]
    if len(asked) != 1 or len(answers) != 1:
        raise FaultError(
            f"no conversations, no messages and no question with its answer ({', '.join(ASKED)}; {', '.join(_SAID)}); "
            f"the entry has {shown(', '.join(item))}"
        )
    question, answer = item[asked[0]], item[answers[0]]
    if isinstance(question, list):  # of messages, which are only context
        before = [replace(turn, trained=False) for turn in _listed(question, unread)]
        after = _listed(answer, unread) if isinstance(answer, list) else [_turn("assistant", answer)]
        return [*before, *after], {asked[0], answers[0]}
    if "input" in item and asked != ["input"]:
        question = f"{said(question, asked[0])}\n{said(item['input'], 'input')}"
    turns = [*_history(item.get("history", [])), _turn("user", question), _turn("assistant", answer)]
    return turns, {asked[0], answers[0], "input", "history"}


def _listed(turns: object, unread: Counter[str]) -> list[Turn]:
    if not isinstance(turns, list) or not turns:
        raise FaultError("no conversations: the turns are no list")
    return [made for turn in map(fields, turns) for made in _of_list(turn, unread)]


def _of_list(turn: dict[str, object], unread: Counter[str]) -> list[Turn]:
    """Return the turn, or both turns of a pair such as ``{"human": ..., "assistant": ...}``."""
    pair = [key for key in turn if key in _ROLE_OF]
    if pair and not {"from", "role"} & set(turn):
        unread.update(set(turn) - set(pair))
        return [_turn(_ROLE_OF[key], turn[key]) for key in pair]
    given = turn.get("from", turn.get("role"))
    role = _ROLE_OF.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        raise FaultError(f"the role {shown(str(given))!r} is none of {', '.join(_ROLE_OF)}")
    _refuse(turn)
    known = {"from", "role", "value", "content", *_TRAINED, *_FILE_KEYS, *_REFUSED}
    unread.update(key for key in set(turn) - known - _PLAIN if turn[key] is not None)
    made = _turn(role, turn.get("value", turn.get("content")))
    return [replace(made, trained=_is_trained(role, turn), files=(*made.files, *_files(turn)))]


def _is_trained(role: str, turn: dict[str, object]) -> bool:
    """Tell whether a turn is trained on, by its own flags if it has any."""
    flags = {key: turn[key] for key in _TRAINED if turn.get(key) is not None}
    for key, value in flags.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise FaultError(f"{key} {shown(str(value))} of a turn, which is neither 0 nor 1")
        if value and role != "assistant":
            raise FaultError(f"a turn of the {role} that is to be trained on ({key}); only answers are")
    return all(flags.values())


def _history(pairs: object) -> list[Turn]:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise FaultError("a history that is no list of pairs of question and answer")
    return [_turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def _with_system(system: str, turns: list[Turn]) -> list[Turn]:
    inside = [turn.text for turn in turns if turn.role == "system"]
    if inside and inside != [system]:
        raise FaultError("two system texts that differ")
    return turns if inside else [Turn("system", system), *turns]


def _turn(role: str, content: object) -> Turn:
    """Make a turn from a text, or from parts that are texts and files."""
    texts, media, files = [], [], []
    for part in map(fields, content) if isinstance(content, list) else [{"text": content}]:
        kind = _part_type(part)
        if kind == "text":
            text = said(next((part[key] for key in _TEXT_PARTS if key in part), None), "text in a turn")
            media += [_MEDIUM_OF[mark] for mark in _MARK.findall(text)]
            texts.append(_without_marks(text))
        else:
            media.append(kind)
            files += _file_of_part(kind, part)
    return Turn(role, words("\n".join(texts), "text in a turn"), True, tuple(media), tuple(files))


def _part_type(part: dict[str, object]) -> str:
    """Return text, image or audio."""
    named = part.get("type", next((key for key in (*_TEXT_PARTS, *_FILE_KEYS) if key in part), None))
    if named in _TEXT_PARTS:
        return "text"
    if not isinstance(named, str) or named not in _MEDIUM_OF:
        raise FaultError(f"a part of type {shown(str(named))!r} that is neither text, picture nor sound")
    return _MEDIUM_OF[named]


def _file_of_part(kind: str, part: dict[str, object]) -> list[tuple[str, str]]:
    """Return a part's file, or nothing where the file stands beside the conversation."""
    keys = [key for key in part if key in ("path", "url") or _MEDIUM_OF.get(key) == kind]
    return [(kind, _local(part[key])) for key in keys if part[key]][:1]


def _without_marks(text: str) -> str:
    left = _MARK.sub("", text)
    strange = _STRANGE.search(left)
    if strange:
        raise FaultError(f"the mark {strange[0]!r}, which is not read: <image> and <audio> are")
    return left


def _files(item: dict[str, object]) -> list[tuple[str, str]]:
    """Return the files that an entry or a turn names beside its text."""
    found = []
    for key in _FILE_KEYS:
        names = item.get(key)
        for name in names if isinstance(names, list) else [] if names is None else [names]:
            found.append((_MEDIUM_OF[key], _local(name)))
    return found


def _local(value: object) -> str:
    """Return a local file's name, given as such or as an object's path or url."""
    if isinstance(value, dict):
        value = value.get("path") or value.get("url")
    words(value, "name of a picture or sound")
    name = str(value).removeprefix("file://")
    if re.match(r"(?i)\s*(https?|data|s3|gs|hf):", name):
        raise FaultError("a picture or sound that is no local file: download it first")
    if re.match(r"[A-Za-z]:[\\/]", name):
        raise FaultError(f"{shown(name)} is a path of Windows: name the file from the folder of pictures and sounds")
    return name


def _check_marks(turns: list[Turn], files: list[tuple[str, str]]) -> None:
    """Refuse marks that are not one for each file, or that come after an answer.

    Raises:
        FaultError: As told.
    """
    for medium, what in (("image", "picture"), ("audio", "sound")):
        marks, count = sum(turn.media.count(medium) for turn in turns), sum(kind == medium for kind, _ in files)
        if marks not in (0, count):
            raise FaultError(f"{count} {what}s and {marks} marks for them: each mark needs its file")
    answered = False
    for turn in turns:
        answered = answered or turn.role == "assistant"
        if answered and (turn.media or turn.files):
            raise FaultError("a picture or sound that comes in or after an answer, not with the first question")
