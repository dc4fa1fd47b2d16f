"""What the questions of a run promise with any model: checks that the tests of both distributions share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experiment import write_iconqa

from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.errors import UserError
from commit_tuning.train.dataset import StoredQuestions, StreamedQuestions
from commit_tuning.train.recipe.schema import Eval
from commit_tuning.train.scoring import generate

KEPT = (StreamedQuestions, StoredQuestions)
Kept = type[StreamedQuestions | StoredQuestions]


def train_split(root: Path, count: int) -> IconQA:
    """So many training questions."""
    return IconQA(write_iconqa(root, train=count, val=3, test=3), "train")


def odd(root: Path, question: str, answer: str = "3") -> Path:
    """Five training questions, of which the third is another."""
    folder = train_split(root, 5).record(2).place.path
    kind = {"question": question, "answer": answer} if folder.parent.name == "fill_in_blank" else {"question": question}
    data = json.loads((folder / "data.json").read_text("utf-8")) | kind
    (folder / "data.json").write_text(json.dumps(data), "utf-8")
    return root


def check_stored_as_streamed(collator: VisionCollator, samples: IconQA) -> None:
    """Nine questions in memory give the very batches of questions read each time."""
    streamed, stored = StreamedQuestions(samples, collator), StoredQuestions(samples, collator)
    assert len(streamed) == len(stored) == 9
    for indices in ([0, 1, 2, 3], [8, 4]):
        for ours, theirs in (
            (stored.training(indices), streamed.training(indices)),
            (stored.prompts(indices)[1], streamed.prompts(indices)[1]),
        ):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert stored[5].question == streamed[5].question


def check_long_question_is_skipped(processor: Any, kept: Kept, root: Path) -> None:
    """One question that is too long is skipped and listed, and the next one stands in for it."""
    samples = IconQA(odd(root, "heart " * 66_667), "train")
    collator = VisionCollator(processor)
    good = [samples[index] for index in (0, 1, 3, 4)]
    with pytest.raises(UserError, match="tokens, and the model reads 128"):
        kept(samples, collator, strict=True).prompts([0, 1, 2, 3, 4])
    assert samples.skipped == []
    questions = kept(samples, collator)
    asked, batch = questions.prompts(list(range(len(questions))))
    assert [sample.id for sample in asked] == [sample.id for sample in good]
    assert len(batch["input_ids"]) == 4
    for index, sample in ((2, good[2]), (len(questions) - 1, good[3])):  # streamed, the next one stands in
        assert torch.equal(questions.training([index])["labels"], collator([sample])["labels"])
    assert [(skip.path, skip.reason) for skip in questions.skipped] == [
        (samples.record(2).place.path, questions.skipped[0].reason)
    ]
    assert "tokens, and the model reads 128" in questions.skipped[0].reason


def check_special_tokens_are_text(model: Any, processor: Any, kept: Kept, root: Path) -> None:
    """Special tokens that a question spells are trained as text."""
    questions = kept(IconQA(odd(root, "is <image> </s> or <img>?"), "train"), VisionCollator(processor))
    batch = questions.training(list(range(5)))
    assert torch.isfinite(model(**batch).loss)
    assert questions.skipped == []
    assert len(questions.prompts(list(range(5)))[0]) == 5


def check_answer_ends_with_positions(model: Any, processor: Any, root: Path, patch: pytest.MonkeyPatch) -> None:
    """An answer that never stops by itself ends where the positions do."""
    _, prompts = StreamedQuestions(train_split(root, 5), VisionCollator(processor)).prompts([0, 1])
    for part in (one for one in model.modules() if hasattr(one, "generation_config")):
        patch.setattr(part.generation_config, "eos_token_id", None)
    written: list[torch.Tensor] = []
    make = model.generate
    patch.setattr(model, "generate", lambda **given: written.append(make(**given)) or written[0])
    short = generate(model, processor, prompts, Eval(max_new_tokens=3))
    assert len(short) == 2
    assert written.pop().shape[1] == prompts["input_ids"].shape[1] + 3
    generate(model, processor, prompts, Eval(max_new_tokens=1000))
    assert written[0].shape[1] == 128


def check_cutting_encodes_twice(processor: Any, root: Path, patch: pytest.MonkeyPatch) -> None:
    """Cutting a long question encodes no picture more than twice, and leaves as much as fits."""
    samples = IconQA(odd(root, "heart star " * 200), "train")
    batch = [samples[index] for index in range(5)]
    collator = VisionCollator(processor, max_tokens=100, cut=True)
    seen: list[int] = []
    pictures = type(processor.image_processor).__call__
    patch.setattr(
        type(processor.image_processor),
        "__call__",
        lambda self, images, **given: seen.append(len(images)) or pictures(self, images, **given),
    )
    prompts, answers, _ = collator.encode(batch)
    assert sum(seen) == 10
    longest = VisionCollator(processor, max_tokens=10**6)
    fitting = []
    for letters in range(len(batch[2].question)):
        (prompt,), (answer,), _ = longest.encode([replace(batch[2], question=batch[2].question[:letters])])
        if len(prompt) + len(answer) > 100:
            break
        fitting.append((prompt, answer))
    assert fitting[-1] == (prompts[2], answers[2])
