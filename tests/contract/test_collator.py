"""What the collator promises with every kind of real processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from commit_tuning.data.collate import VisionCollator, build_prompt, question_text
from commit_tuning.data.nano_questions import nano_vocabulary
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError

TEMPLATE = (
    "{% for message in messages %}user : {% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}answer :"
)


def word_tokenizer(*, appends_eos: bool = False) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *nano_vocabulary(["user"])]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if appends_eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return fast


def llava(template: str | None = None, **options: Any) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        images,
        word_tokenizer(**options),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def blip2(**options: Any) -> Any:
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return Blip2Processor(
        BlipImageProcessorPil(size={"height": 16, "width": 16}), word_tokenizer(**options), num_query_tokens=4
    )


PROCESSORS: dict[str, Callable[[], Any]] = {  # a new processor joins by one line
    "llava": llava,
    "llava with a chat template": lambda: llava(TEMPLATE),
    "blip2": blip2,
    "llava whose tokenizer appends eos": lambda: llava(appends_eos=True),
    "blip2 whose tokenizer appends eos": lambda: blip2(appends_eos=True),
}
IMAGE = Image.linear_gradient("L").convert("RGB")
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
