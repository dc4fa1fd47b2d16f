"""Special tokens that a dataset spells stay text, and odd samples are refused by name, with every processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_collator import PROCESSORS, hearing

from commit_lab.nano.models.build import NANO_MODELS
from commit_tuning.data.collate import RefusedError, VisionCollator, build_prompt
from commit_tuning.data.prompts import PROMPTS
from commit_tuning.data.sample import Audio, Sample
from commit_tuning.data.tokens import PlainTokens
from commit_tuning.models.load import load_processor

ALL: dict[str, Callable[[], Any]] = (
    PROCESSORS
    | {"qwen2-audio": hearing}
    | {
        name: (lambda name=name: load_processor(name))
        for name in NANO_MODELS  # type: ignore[misc]
    }
)
IMAGE = Image.linear_gradient("L").convert("RGB")
SOUND = Audio(np.sin(np.arange(8000) / 9).astype(np.float32), 16_000)
SPELT = ("<image>", "</s>", "<s>", "<pad>", "<img>", "<video>", "<SpeechHere>", "<|AUDIO|>")


@pytest.fixture(params=list(ALL))
def processor(request: pytest.FixtureRequest) -> Any:
    return ALL[request.param]()


def asked(processor: Any, question: str, answer: str = "heart", choices: tuple[str, ...] | None = None) -> Sample:
    media = {"image": IMAGE} if getattr(processor, "image_processor", None) else {"audio": SOUND}
    return Sample("1", "direct_answer", question, choices, (answer,), **media)  # type: ignore[arg-type]


def special_ids(processor: Any) -> set[int]:
    """All but the unknown word's."""
    tokens = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    return tokens - {processor.tokenizer.unk_token_id}


def specials(processor: Any, row: torch.Tensor) -> list[int]:
    return [token for token in row.tolist() if token in special_ids(processor)]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_spelt_special_tokens_stay_text(processor: Any, prompt: str) -> None:
    collator = VisionCollator(processor, prompt=prompt)
    plain = collator([asked(processor, "What is it?", "heart", ("heart", "star"))])
    for token in SPELT:
        sample = asked(processor, f"Is it {token} or{token}?{token}", f"a {token}", (f"a {token}", f"{token} star"))
        batch, generated = collator([sample]), collator.prompts([sample])
        assert specials(processor, batch["input_ids"][0]) == specials(processor, plain["input_ids"][0])
        answer = batch["labels"][0][batch["labels"][0] != -100]
        assert specials(processor, answer) == [processor.tokenizer.eos_token_id] == answer[-1:].tolist()
        assert generated["input_ids"][0].tolist() == batch["input_ids"][0].tolist()[: -len(answer)]


def test_the_spelling_of_an_answer_is_written_whole() -> None:
    processor = load_processor("nano-llava-v2")
    ids = VisionCollator(processor).answer_ids("it is <image>")
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["it", "is", "<unk>", "image", "<unk>", "</s>"]


def test_plain_text_goes_to_the_tokenizer_as_it_is(processor: Any) -> None:
    plain = PlainTokens(processor)
    for text in ("Is 3 < 4 > 2?", "a < image >", "half a tag <imag", "Answer: heart"):
        assert plain.question(text) == text
        assert plain.ids(text) == processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "{question} < image> Answer:" in build_prompt(processor, asked(processor, "{question} <image>"))


def test_a_special_token_that_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = PROCESSORS["llava"]()
    collator, whole = VisionCollator(processor), [processor.tokenizer.eos_token_id]
    monkeypatch.setattr(collator._plain, "_tokenizer", lambda text, **_: {"input_ids": whole})
    with pytest.raises(RefusedError, match=r"sample '1': the tokenizer reads '</s>' as a special token, not as text"):
        collator.prompts([asked(processor, "What </s>?")])
    with pytest.raises(RefusedError, match="not as text"):
        collator([asked(processor, "What?", "</s>")])


def test_a_long_question_is_refused_by_name(processor: Any) -> None:
    processor.tokenizer.model_max_length = 128
    collator, words = VisionCollator(processor), ["heart star " * n for n in (1, 200, 3, 2000)]
    samples = [asked(processor, text) for text in words]
    for make in (collator, collator.prompts):
        with pytest.raises(
            RefusedError, match=r"sample '1': question and answer are \d+ tokens, and the model reads 128"
        ) as error:
            make(samples)
        assert list(error.value.reasons) == [1, 3]
        assert "\n" not in str(error.value)
        make([samples[0], samples[2]])


@pytest.mark.parametrize("kind", ["direct_answer", "conversation"])
def test_a_long_question_is_cut_to_what_fits(processor: Any, kind: str) -> None:
    sample = asked(processor, "is " + "heart " * 2000 + "the", "heart key")
    sample = Sample(sample.id, kind, sample.question, None, sample.answers, sample.image, sample.audio)
    collator = VisionCollator(processor, max_tokens=100, cut=True)
    batch, short = collator([sample, asked(processor, "heart")]), collator([asked(processor, "heart")])
    length = int(batch["attention_mask"][0].sum())
    assert 98 <= length <= 100
    answer = batch["labels"][0][batch["labels"][0] != -100]
    assert answer.tolist() == collator.answer_ids("heart key")
    ids = batch["input_ids"][0].tolist()
    first, last = processor.tokenizer.convert_tokens_to_ids(["is", "the"])
    kept = ids[: length - len(answer)]
    assert (first in kept, last in kept) == ((False, True) if kind == "conversation" else (True, False))
    width = int(short["attention_mask"].sum())
    assert torch.equal(batch["input_ids"][1, :width], short["input_ids"][0])


def test_what_does_not_fit_without_its_question_is_refused() -> None:
    processor = PROCESSORS["llava"]()
    with pytest.raises(RefusedError, match=r"without its question it is \d+ tokens, and the model reads 6"):
        VisionCollator(processor, max_tokens=6, cut=True)([asked(processor, "What is it?")])


def test_a_question_of_400000_letters_is_refused() -> None:
    processor = load_processor("nano-llava")
    with pytest.raises(RefusedError, match="and the model reads 128"):
        VisionCollator(processor)([asked(processor, "heart? " * 57_143)])
