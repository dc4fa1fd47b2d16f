"""An experiment that takes seconds: a tiny untrained model, a few questions about drawings or tones, a few steps."""

from __future__ import annotations

import csv
import json
import wave
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from commit_tuning.cli.app import main

EXAMPLE = Path(__file__).with_name("example.yaml")
"""A recipe for tests that need some recipe, and no run of it."""

SIDE, PATCH = 24, 8  # pixels: nine patches
POSITIONS = 128
SHAPES, COLOURS, NUMBERS = ("circle", "square", "bar"), ("red", "green", "blue", "orange"), ("1", "2", "3", "4")
TONES = {"low": 220.0, "high": 1760.0}  # Hz
WORDS = (*SHAPES, *COLOURS, *NUMBERS, *TONES, "yes", "no", "top", "bottom", "left", "right", "tone", "heart")
WORDS += ("what", "is", "shown", "find", "the", "picture", "how", "many", "bars", "are", "there", "do", "you", "hear")
WORDS += ("a", "or", "b", "really", "user", "shopping", "cart", "icons", "key", "two", "it", "star", "with", "in")
WORDS += ("?", ":", ",", ".", "<", ">", "options", "answer")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<SpeechHere>")


def make_experiment(folder: Path) -> Path:
    """Write a recipe, its data and its model; returns the recipe's path."""
    write_llava(folder / "model")
    write_iconqa(folder / "data", train=24, val=6, test=9)
    return _write_recipe(folder, {"dataset": "iconqa"})


def make_audio_experiment(folder: Path) -> Path:
    """Do the same with sounds: a tiny SALMONN and questions about tones."""
    write_salmonn(folder / "model")
    write_clothoaqa(folder / "data", train=12, val=4, test=8)
    return _write_recipe(folder, {"dataset": "clothoaqa", "in_memory": True})


def _write_recipe(folder: Path, data: dict[str, object]) -> Path:
    recipe = {
        "model": {"name": str(folder / "model"), "lora": {"r": 2}},
        "data": data | {"root": str(folder / "data")},
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3},
        "commit": {"probe": {"interval": 1, "samples": 2}, "kappa_window": 3, "lr_update_interval": 1},
        "eval": {"batch_size": 16, "max_new_tokens": 2, "images": 3},
        "compare": {"methods": ["commit-clr"], "rates": [1e-3], "seeds": 2, "screen_seeds": 1},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def run(arguments: Sequence[str | Path], program: Callable[[list[str]], None] = main) -> int:
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as exited:
        program([str(argument) for argument in arguments])
    return int(exited.value.code or 0)


def tokenizer_of(words: Iterable[str] = WORDS, *, appends_eos: bool = False) -> Any:
    """A tokenizer of lower-case words, with the placeholders of a picture and of a sound."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries = (*SPECIAL, *sorted(set(words)))
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(entries)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if appends_eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=POSITIONS, clean_up_tokenization_spaces=False, **named
    )
    media = [AddedToken(token, normalized=False, special=True) for token in SPECIAL[4:]]
    tokenizer.add_tokens(media, special_tokens=True)
    return tokenizer


def llava_processor() -> Any:
    """A processor of LLaVA for pictures of nine patches."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        images,
        tokenizer_of(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def write_llava(folder: Path, seed: int = 0) -> None:
    """Write a tiny random LLaVA, and its processor."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    processor = llava_processor()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH, initializer_range=0.2)
    config = LlavaConfig(
        vision_config=vision,
        text_config=_language_model(len(processor.tokenizer), LlamaConfig, sizes),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_salmonn(folder: Path) -> None:
    """Write the SALMONN of `tiny_salmonn` with the words of the tones, and its processor."""
    import tiny_salmonn
    import torch

    from commit_tuning.models.salmonn import SalmonnForConditionalGeneration, SalmonnProcessor

    tokenizer, config = tokenizer_of(), tiny_salmonn.tiny_config(num_query_tokens=2)
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(tokenizer), POSITIONS
    config.audio_token_id = tokenizer.convert_tokens_to_ids("<SpeechHere>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SalmonnForConditionalGeneration(config).save_pretrained(folder)
    extractor = tiny_salmonn.processor().feature_extractor
    SalmonnProcessor(extractor, tokenizer, num_audio_tokens=config.num_audio_tokens).save_pretrained(folder)


def _language_model(words: int, config: Any, sizes: dict[str, int]) -> Any:
    return config(
        **sizes, vocab_size=words, num_key_value_heads=2, max_position_embeddings=POSITIONS, initializer_range=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def write_iconqa(root: Path, **counts: int) -> Path:
    """Write questions about drawings in IconQA's layout: so many of each split, the three kinds in turn."""
    number = 0
    for split, count in counts.items():
        for at in range(count):
            number += 1
            kind = ("choose_txt", "choose_img", "fill_in_blank")[at % 3]
            folder = root / "iconqa" / split / kind / str(number)
            folder.mkdir(parents=True)
            data = {"choose_txt": _shape, "choose_img": _colour, "fill_in_blank": _count}[kind](folder, number)
            (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    return root


def _draw(path: Path, shape: str, colour: str, number: int) -> None:
    """Draw a shape at a place that the number decides, on a ground of its own."""
    picture = Image.new("RGB", (SIDE, SIDE), (200 + number % 50, 240, 255 - number // 50))
    left, top = number % 7, number // 7 % 7
    box = {"bar": (left, top, left + 4, top + 14)}.get(shape, (left, top, left + 12, top + 12))
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    picture.save(path)


def _shape(folder: Path, number: int) -> dict[str, Any]:
    answer = number // 3 % len(SHAPES)
    _draw(folder / "image.png", SHAPES[answer], COLOURS[number % len(COLOURS)], number)
    return {"question": "What is shown?", "choices": list(SHAPES), "answer": answer}


def _colour(folder: Path, number: int) -> dict[str, Any]:
    """A question without a picture of its own, whose choices are pictures."""
    answer = number // 3 % len(COLOURS)
    Image.new("RGB", (SIDE, SIDE), (255, 255, 255 - number)).save(folder / "image.png")
    names = [f"choice_{index}.png" for index in range(len(COLOURS))]
    for name, colour in zip(names, COLOURS, strict=True):
        _draw(folder / name, "square", colour, number)
    return {"question": f"Find the {COLOURS[answer]} picture.", "choices": names, "answer": answer}


def _count(folder: Path, number: int) -> dict[str, Any]:
    answer = number // 3 % len(NUMBERS)
    picture = Image.new("RGB", (SIDE, SIDE), (255, 255 - number, 255))
    for place in range(answer + 1):
        ImageDraw.Draw(picture).rectangle((5 * place + 2, 4, 5 * place + 4, 20), fill=COLOURS[number % len(COLOURS)])
    picture.save(folder / "image.png")
    return {"question": "How many bars are there?", "answer": NUMBERS[answer]}


def write_clothoaqa(root: Path, **counts: int) -> Path:
    """Write questions about tones in Clotho-AQA's layout: so many of each split, two about each sound."""
    (root / "audio_files").mkdir(parents=True)
    for split, count in counts.items():
        rows = [row for number in range(count) for row in _questions_about(root / "audio_files", split, number)]
        with (root / f"clotho_aqa_{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "QuestionText", "answer", "confidence"])
            writer.writerows(rows)
    return root


def _questions_about(folder: Path, split: str, number: int) -> list[tuple[str, str, str, str]]:
    """Three rows, one for each answer, about a tone that lasts a second."""
    name, pitch = f"{split}-{number // 2}.wav", list(TONES)[number // 2 % 2]
    time = np.arange(16_000) / 16_000
    with wave.open(str(folder / name), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.sin(2 * np.pi * (TONES[pitch] + 10 * number) * time) * 20_000).astype("<i2").tobytes())
    asked = "Is the tone high or low?" if number % 2 else "Do you hear a high tone?"
    answer = pitch if number % 2 else ("yes" if pitch == "high" else "no")
    return [(name, asked, answer, "yes")] * 3
