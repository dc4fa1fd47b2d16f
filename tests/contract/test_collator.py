"""What the collator promises with every kind of real processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from processors import IMAGE, PROCESSORS, TEMPLATE, hearing, llava

from commit_tuning.data.collate import VisionCollator, build_prompt, question_text
from commit_tuning.data.sample import Audio, Sample
from commit_tuning.errors import UserError

SAMPLES = [
    Sample("1", "choose_txt", "What is shown in the picture?", ("heart", "shopping cart"), ("shopping cart",), IMAGE),
    Sample("2", "choose_img", "Find the picture with the key.", ("A", "B"), ("B",), IMAGE.rotate(90)),
    Sample("3", "fill_in_blank", "How many icons are there?", None, ("3",), IMAGE),
]


@pytest.fixture(params=list(PROCESSORS))
def processor(request: pytest.FixtureRequest) -> Any:
    return PROCESSORS[request.param]()


def test_only_answer_and_end_are_predicted(processor: Any) -> None:
    batch = VisionCollator(processor)(SAMPLES)
    for row, sample in enumerate(SAMPLES):
        predicted = batch["labels"][row][batch["labels"][row] != -100]
        assert processor.tokenizer.decode(predicted) == f"{sample.answer.lower()} </s>"
        places = (batch["labels"][row] != -100).nonzero().flatten().tolist()
        real = int(batch["attention_mask"][row].sum())
        assert places == list(range(real - len(predicted), real))
        assert torch.equal(batch["input_ids"][row, places], predicted)


def test_shapes_types_and_image_tokens(processor: Any) -> None:
    batch = VisionCollator(processor)(SAMPLES)
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert batch["pixel_values"].is_floating_point()
    assert {name: value.dtype for name, value in batch.items() if name != "pixel_values"} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), torch.int64
    )
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == image_token).sum(1).tolist() == [4, 4, 4]
    padded = batch["attention_mask"] == 0
    assert padded.any()
    assert (batch["input_ids"][padded] == processor.tokenizer.pad_token_id).all()


def test_prompts_are_the_training_rows_without_answers(processor: Any) -> None:
    collator = VisionCollator(processor)
    batch, prompts = collator(SAMPLES), collator.prompts(SAMPLES)
    assert "labels" not in prompts
    assert torch.equal(prompts["pixel_values"], batch["pixel_values"])
    for row in range(len(SAMPLES)):
        mask = prompts["attention_mask"][row]
        assert mask.tolist() == sorted(mask.tolist())  # padding on the left
        prompt = prompts["input_ids"][row][mask == 1]
        before = (batch["labels"][row] == -100) & (batch["attention_mask"][row] == 1)
        assert torch.equal(batch["input_ids"][row][before], prompt)
        assert prompt[-1] != processor.tokenizer.eos_token_id


def test_a_row_does_not_depend_on_its_neighbours(processor: Any) -> None:
    collator = VisionCollator(processor)
    together, alone = collator(SAMPLES), collator(SAMPLES[2:])
    length = alone["input_ids"].shape[1]
    assert torch.equal(together["input_ids"][2, :length], alone["input_ids"][0])
    assert torch.equal(together["pixel_values"][2], alone["pixel_values"][0])


def test_the_prompt_holds_question_and_options(processor: Any) -> None:
    assert question_text(SAMPLES[0]) == "What is shown in the picture? Options: heart, shopping cart. Answer:"
    assert question_text(SAMPLES[2]) == "How many icons are there? Answer:"
    assert all(question_text(sample) in build_prompt(processor, sample) for sample in SAMPLES)


def test_device_and_faults() -> None:
    processor = llava()
    assert VisionCollator(processor, device="cpu")(SAMPLES)["input_ids"].device.type == "cpu"
    with pytest.raises(UserError, match="at least one sample"):
        VisionCollator(processor)([])
    with pytest.raises(UserError, match="no vision-language processor"):
        VisionCollator(processor.tokenizer)
    with pytest.raises(UserError, match="cannot write the answer"):
        VisionCollator(processor)([Sample("1", "fill_in_blank", "How many?", None, (" ",), IMAGE)])
    processor.tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        VisionCollator(processor)


def heard(identity: str, frames: int, answer: str, rate: int = 16_000) -> Sample:
    wave = np.sin(np.arange(frames) / 9).astype(np.float32)
    return Sample(identity, "single_word", "How many icons are there?", None, (answer,), audio=Audio(wave, rate))


SOUNDS = [heard("1", 8000, "two"), heard("2", 30_000, "shopping cart")]


def test_a_batch_of_sounds() -> None:
    processor = hearing()
    collator = VisionCollator(processor)
    batch, prompts = collator(SOUNDS), collator.prompts(SOUNDS)
    assert batch["input_features"].shape == (2, 8, 200)
    assert batch["feature_attention_mask"].sum(1).tolist() == [50, 188]
    assert torch.equal(prompts["input_features"], batch["input_features"])
    marks = batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert marks.sum(1).tolist() == [12, 47]  # one for four frames
    for row, sample in enumerate(SOUNDS):
        predicted = batch["labels"][row][batch["labels"][row] != -100]
        assert processor.tokenizer.decode(predicted) == f"{sample.answer} </s>"
    alone = collator(SOUNDS[:1])
    assert torch.equal(alone["input_features"][0], batch["input_features"][0])


def test_faults_of_sounds() -> None:
    with pytest.raises(UserError, match=r"takes sounds at 16000 Hz, not \[8000\]: open the dataset with rate=16000"):
        VisionCollator(hearing())([heard("1", 8000, "two", 8000)])
    with pytest.raises(UserError, match="a picture in every sample, or a sound in every sample"):
        VisionCollator(hearing())([*SOUNDS, *SAMPLES])
    with pytest.raises(UserError, match="takes sounds, and the samples have pictures"):
        VisionCollator(hearing())(SAMPLES)
    with pytest.raises(UserError, match="takes no sounds"):
        VisionCollator(llava())(SOUNDS)


def test_another_prompt_asks_for_the_letter(processor: Any) -> None:
    collator = VisionCollator(processor, prompt="llava-1.5")
    batch = collator(SAMPLES)
    spoken = [row[row != -100] for row in batch["labels"]]
    assert [processor.tokenizer.decode(row) for row in spoken] == ["b </s>", "b </s>", "3 </s>"]
    with pytest.raises(UserError, match="no prompt 'other'"):
        VisionCollator(processor, prompt="other")


def test_few_answers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commit_tuning.data.collate._KEPT_ANSWERS", 2)
    collator = VisionCollator(llava())
    ids = [collator.answer_ids(answer) for answer in ("heart", "star", "key", "heart")]
    assert ids[0] == ids[3]
    assert len(collator._answers) <= 2


def test_template_and_tokenizer_write_one_beginning() -> None:
    collators = [VisionCollator(llava(template)) for template in (TEMPLATE, "{{ '<s>' }}" + TEMPLATE)]
    plain, doubled = (collator.encode(SAMPLES)[0] for collator in collators)
    assert plain == doubled
    assert [row[:2].count(1) for row in plain] == [1, 1, 1]


SETTING = "return_mm_token_type_ids"


@pytest.mark.parametrize("left", [False, True])
def test_types_of_tokens_go_with_answers_and_padding(left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = llava()
    if hasattr(processor, SETTING):
        monkeypatch.setattr(type(processor), SETTING, True)
    else:  # older transformers
        monkeypatch.setitem(processor.valid_processor_kwargs._defaults["text_kwargs"], SETTING, True)
    collator = VisionCollator(processor)
    batch = collator.prompts(SAMPLES) if left else collator(SAMPLES)
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == image_token).long())
