"""Processors of several kinds with one small vocabulary, and what the collator promises with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_experiment import tokenizer_of

from commit_tuning.data.collate import RefusedError, VisionCollator, build_prompt
from commit_tuning.data.sample import Audio, Sample
from commit_tuning.data.tokens import PlainTokens

TEMPLATE = (
    "{% for message in messages %}user : {% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}answer :"
)
TEMPLATE_OF_SOUNDS = TEMPLATE.replace("'image'", "'audio'").replace("<image>", "<|AUDIO|>")


def llava(template: str | None = None, **options: Any) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        images,
        tokenizer_of(**options),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def blip2(**options: Any) -> Any:
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return Blip2Processor(
        BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer_of(**options), num_query_tokens=4
    )


def hearing() -> Any:
    from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

    tokenizer = tokenizer_of()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|AUDIO|>"]})
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=2), tokenizer, TEMPLATE_OF_SOUNDS)


PROCESSORS: dict[str, Callable[[], Any]] = {  # a new processor joins by one line
    "llava": llava,
    "llava with a chat template": lambda: llava(TEMPLATE),
    "blip2": blip2,
    "llava whose tokenizer appends eos": lambda: llava(appends_eos=True),
    "blip2 whose tokenizer appends eos": lambda: blip2(appends_eos=True),
}
IMAGE = Image.linear_gradient("L").convert("RGB")
SOUND = Audio(np.sin(np.arange(8000) / 9).astype(np.float32), 16_000)
SPELT = ("<image>", "</s>", "<s>", "<pad>", "<img>", "<video>", "<SpeechHere>", "<|AUDIO|>")


def asked(processor: Any, question: str, answer: str = "heart", choices: tuple[str, ...] | None = None) -> Sample:
    """A question about a picture or a sound, as the processor takes it."""
    media = {"image": IMAGE} if getattr(processor, "image_processor", None) else {"audio": SOUND}
    return Sample("1", "direct_answer", question, choices, (answer,), **media)  # type: ignore[arg-type]


def special_ids(processor: Any) -> set[int]:
    """All but the unknown word's."""
    tokens = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    return tokens - {processor.tokenizer.unk_token_id}


def specials(processor: Any, row: torch.Tensor) -> list[int]:
    return [token for token in row.tolist() if token in special_ids(processor)]


def check_spelt_tokens(processor: Any, prompt: str) -> None:
    """Special tokens that a question, a choice or an answer spells stay text."""
    collator = VisionCollator(processor, prompt=prompt)
    plain = collator([asked(processor, "What is it?", "heart", ("heart", "star"))])
    for token in SPELT:
        sample = asked(processor, f"Is it {token} or{token}?{token}", f"a {token}", (f"a {token}", f"{token} star"))
        batch, generated = collator([sample]), collator.prompts([sample])
        assert specials(processor, batch["input_ids"][0]) == specials(processor, plain["input_ids"][0])
        answer = batch["labels"][0][batch["labels"][0] != -100]
        assert specials(processor, answer) == [processor.tokenizer.eos_token_id] == answer[-1:].tolist()
        assert generated["input_ids"][0].tolist() == batch["input_ids"][0].tolist()[: -len(answer)]


def check_plain_text(processor: Any) -> None:
    """Text without special tokens goes to the tokenizer as it is."""
    plain = PlainTokens(processor)
    for text in ("Is 3 < 4 > 2?", "a < image >", "half a tag <imag", "Answer: heart"):
        assert plain.question(text) == text
        assert plain.ids(text) == processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "{question} < image> Answer:" in build_prompt(processor, asked(processor, "{question} <image>"))


def check_long_question_is_refused(processor: Any) -> None:
    """A question that the model cannot read is refused by name, and the others are taken."""
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


def check_long_question_is_cut(processor: Any, kind: str) -> None:
    """Of a long question its end goes, and of a long conversation its beginning."""
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
