"""What an entry of a file of conversations may say, and what makes it a fault; every key of other tools by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from commit_tuning.data.files import FaultError
from commit_tuning.data.readers.conversations import Conversations
from commit_tuning.data.readers.talk import exchanges, talk_of

USER, BOT = {"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}
GOOD: dict[str, Any] = {"messages": [USER, BOT], "image": "a.png"}


def spoken(*texts: Any) -> dict[str, Any]:
    """A conversation whose sides speak in turn."""
    roles = ("user", "assistant")
    return {"image": "a.png", "messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]}


FAULTS: dict[str, tuple[dict[str, Any], str]] = {  # a new fault joins by one line
    "two marks": (spoken("<image><image>Which?", "A cat."), "1 pictures and 2 marks for them"),
    "marks in two turns": (spoken("<image>Which?", "A cat.", "<image>And?", "A dog."), "1 pictures and 2 marks"),
    "a mark of a sound": (spoken("<audio>Which?", "A cat."), "0 sounds and 1 marks"),
    "two parts": (spoken([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}], "A."), "2 marks"),
    "two files": (GOOD | {"image": ["a.png", "b.png"]}, "2 pictures and 1 marks"),
    "a mark in an answer": (spoken("What?", "<image>A cat."), "comes in or after an answer"),
    "a late picture": (spoken("Hello?", "Hi.", "<image>What?", "A cat."), "comes in or after an answer"),
    "a mark of a video": (spoken("<video>What?", "A cat."), "the mark '<video>', which is not read"),
    "a box": (spoken("Where?", "At <bbox>."), "the mark '<bbox>'"),
    "a reference": (spoken("Where is <ref-object>?", "There."), "the mark '<ref-object>'"),
    "a box of Qwen": (spoken("Where?", "<|box_start|>(1,2),(3,4)<|box_end|>"), "the mark '<|box_start|>'"),
    "a numbered mark": (spoken("<image_1> What?", "A cat."), "the mark '<image_1>'"),
    "a mark of Phi": (spoken("<|image_1|> What?", "A cat."), "the mark '<|image_1|>'"),
    "another spelling": (spoken("<Image> What?", "A cat."), "the mark '<Image>'"),
    "a video": (GOOD | {"videos": ["a.mp4"]}, "a video (the key 'videos')"),
    "objects": (GOOD | {"objects": {"bbox": [[1, 2, 3, 4]]}}, "places in the picture (the key 'objects')"),
    "tools": (GOOD | {"tools": [{"name": "f"}]}, "calls of tools (the key 'tools')"),
    "a rejected answer": (
        GOOD | {"rejected_response": "A dog."},
        "a preference or a label (the key 'rejected_response')",
    ),
    "a label": (GOOD | {"label": False}, "a preference or a label (the key 'label')"),
    "a mask": (GOOD | {"mask": "assistant"}, "a mask over what is trained on (the key 'mask')"),
    "a mask of a turn": ({"image": "a.png", "messages": [USER, BOT | {"mask": 1}]}, "a mask"),
    "parts of an answer": (
        {"image": "a.png", "messages": [USER, BOT | {"train_detail": [{"begin_offset": 0}]}]},
        "the key 'train_detail'",
    ),
    "a call of a tool": ({"image": "a.png", "messages": [USER, BOT | {"tool_calls": [{"id": 1}]}]}, "calls of tools"),
    "thoughts": ({"image": "a.png", "messages": [USER, BOT | {"reasoning_content": "Hm."}]}, "a train of thought"),
    "half a weight": ({"image": "a.png", "messages": [USER, BOT | {"weight": 0.5}]}, "weight 0.5 of a turn"),
    "a weight in words": ({"image": "a.png", "messages": [USER, BOT | {"loss": "no"}]}, "loss no of a turn"),
    "a trained question": (
        {"image": "a.png", "messages": [USER | {"train": True}, BOT]},
        "a turn of the user that is to",
    ),
    "nothing trained": (
        {"image": "a.png", "messages": [USER, BOT | {"weight": 0}]},
        "no answer that is trained on (of 1)",
    ),
    "two systems": (
        {"image": "a.png", "system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, USER, BOT]},
        "two system texts that differ",
    ),
    "a system that is no text": (GOOD | {"system": {"a": 1}}, "no system"),
    "a role of a tool": (
        {"image": "a.png", "messages": [USER, BOT | {"role": "observation"}]},
        "the role 'observation'",
    ),
    "no role": ({"image": "a.png", "messages": [{"content": "What?"}, BOT]}, "the role 'None' is none of human"),
    "two lists": (GOOD | {"conversations": [USER, BOT]}, "both conversations and messages: leave one"),
    "other columns": ({"image": "a.png", "Q": "What?", "A": "A cat."}, "the entry has image, Q, A"),
    "two questions": (
        {"image": "a.png", "query": "?", "prompt": "?", "answer": "A cat."},
        "the entry has image, query",
    ),
    "two answers": ({"image": "a.png", "query": "?", "output": "?", "answer": "A cat."}, "the entry has image, query"),
    "a history of texts": ({"query": "?", "response": "!", "history": ["a"]}, "a history that is no list of pairs"),
    "a drive of Windows": (GOOD | {"image": "C:\\data\\a.png"}, "is a path of Windows"),
    "an address": (GOOD | {"image": " https://example.org/a.png"}, "download it first"),
    "an answer that is a list": ({"question": "?", "answer": ["A cat."], "image": "a.png"}, "not an object"),
    "not a number": (spoken("What?", float("nan")), "no text in a turn"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_change_the_meaning_is_a_fault(fault: str) -> None:
    entry, reason = FAULTS[fault]
    with pytest.raises(FaultError) as error:
        exchanges(talk_of(entry).turns)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_good_entry_of_the_faults_is_good() -> None:
    talk = talk_of(GOOD | {"mask": "User", "weights": 1})
    assert exchanges(talk.turns) == [(0, "What is it?", "A cat.")]
    assert (talk.files, dict(talk.unread)) == ([("image", "a.png")], {"weights": 1})


def test_numbers_are_read_as_their_text() -> None:
    assert exchanges(talk_of(spoken("How many?", 3, 1.5, 2)).turns) == [
        (0, "How many?", "3"),
        (1, "How many?\n3\n1.5", "2"),
    ]


def test_a_number_of_any_size_is_its_text() -> None:
    assert exchanges(talk_of(spoken("What?", 10**400)).turns) == [(0, "What?", str(10**400))]


def test_context_of_a_prompt_is_not_trained_on() -> None:
    prompt = [USER, BOT, {"role": "user", "content": "Sure?"}]
    talk = talk_of({"image": "a.png", "prompt": prompt, "completion": [BOT]})
    assert exchanges(talk.turns) == [(1, "What is it?\nA cat.\nSure?", "A cat.")]


def test_roles_are_read_in_any_case() -> None:
    turns = [{"from": "User", "value": "What?"}, {"from": "Assistant", "value": "A cat."}]
    assert exchanges(talk_of({"conversations": turns}).turns) == [(0, "What?", "A cat.")]


def test_entries_of_one_id_are_all_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    asked, plain = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}
    context_first = [asked, plain | {"weight": 0}, asked, plain]
    entries = [
        {"id": "x", "image": "a.png", "messages": said}
        for said in (context_first, context_first, [asked, plain], [asked, plain])
    ]
    (tmp_path / "all.json").write_text(json.dumps(entries))
    read = Conversations(tmp_path / "all.json")
    assert not read.skipped
    assert [sample.id for sample in read] == ["x#1", "x@2#1", "x", "x@4"]
