"""What the collator promises holds with the processors of the nano models."""

from __future__ import annotations

from typing import Any

import pytest
from processors import (
    check_long_question_is_cut,
    check_long_question_is_refused,
    check_plain_text,
    check_spelt_tokens,
)

from commit_lab.nano.models.build import NANO_MODELS
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.prompts import PROMPTS
from commit_tuning.models.load import load_processor


@pytest.fixture(params=NANO_MODELS)
def processor(request: pytest.FixtureRequest) -> Any:
    return load_processor(request.param)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_spelt_special_tokens_stay_text(processor: Any, prompt: str) -> None:
    check_spelt_tokens(processor, prompt)


def test_plain_text_reaches_the_tokenizer_unchanged(processor: Any) -> None:
    check_plain_text(processor)


def test_the_spelling_of_an_answer_is_written_whole() -> None:
    processor = load_processor("nano-llava-v2")
    ids = VisionCollator(processor).answer_ids("it is <image>")
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["it", "is", "<unk>", "image", "<unk>", "</s>"]


def test_a_long_question_is_refused_by_name(processor: Any) -> None:
    check_long_question_is_refused(processor)


@pytest.mark.parametrize("kind", ["direct_answer", "conversation"])
def test_a_long_question_is_cut_to_what_fits(processor: Any, kind: str) -> None:
    check_long_question_is_cut(processor, kind)
