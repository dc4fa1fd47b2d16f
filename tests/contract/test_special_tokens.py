"""Special tokens that a dataset spells stay text, and odd samples are refused by name, with every processor."""

from __future__ import annotations

from typing import Any

import pytest
from processors import (
    PROCESSORS,
    asked,
    check_long_question_is_cut,
    check_long_question_is_refused,
    check_plain_text,
    check_spelt_tokens,
    hearing,
)

from commit_tuning.data.collate import RefusedError, VisionCollator
from commit_tuning.data.prompts import PROMPTS

ALL = PROCESSORS | {"qwen2-audio": hearing}


@pytest.fixture(params=list(ALL))
def processor(request: pytest.FixtureRequest) -> Any:
    return ALL[request.param]()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_spelt_special_tokens_stay_text(processor: Any, prompt: str) -> None:
    check_spelt_tokens(processor, prompt)


def test_plain_text_reaches_the_tokenizer_unchanged(processor: Any) -> None:
    check_plain_text(processor)


def test_the_spelling_of_an_answer_is_written_whole() -> None:
    processor = PROCESSORS["llava"]()
    ids = VisionCollator(processor).answer_ids("find the <image>")
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["find", "the", "<", "<unk>", ">", "</s>"]


def test_unsplittable_special_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = PROCESSORS["llava"]()
    collator, whole = VisionCollator(processor), [processor.tokenizer.eos_token_id]
    monkeypatch.setattr(collator._plain, "_tokenizer", lambda text, **_: {"input_ids": whole})
    with pytest.raises(RefusedError, match=r"sample '1': the tokenizer reads '</s>' as a special token, not as text"):
        collator.prompts([asked(processor, "What </s>?")])
    with pytest.raises(RefusedError, match="not as text"):
        collator([asked(processor, "What?", "</s>")])


def test_a_long_question_is_refused_by_name(processor: Any) -> None:
    check_long_question_is_refused(processor)


@pytest.mark.parametrize("kind", ["direct_answer", "conversation"])
def test_a_long_question_is_cut_to_what_fits(processor: Any, kind: str) -> None:
    check_long_question_is_cut(processor, kind)


def test_prompt_too_long_without_its_question_is_refused() -> None:
    processor = PROCESSORS["llava"]()
    with pytest.raises(RefusedError, match=r"without its question it is \d+ tokens, and the model reads 6"):
        VisionCollator(processor, max_tokens=6, cut=True)([asked(processor, "What is it?")])


def test_a_question_of_400000_letters_is_refused() -> None:
    processor = PROCESSORS["llava"]()
    with pytest.raises(RefusedError, match="and the model reads 128"):
        VisionCollator(processor)([asked(processor, "heart? " * 57_143)])
