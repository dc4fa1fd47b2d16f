"""The pre-training script at its smallest; the whole of it, for every model, in the wide runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "pretraining"))

import pretrain_nano
from nano_pretraining.subject import Nano
from nano_pretraining.towers import start_tower

from commit_lab.nano.models.build import BUILT, build_model, build_processor, build_tokenizer
from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_aokvqa import nano_aokvqa_vocabulary
from commit_lab.nano.pictures.nano_iconqa import nano_vocabulary
from commit_lab.nano.pictures.nano_textvqa import nano_textvqa_vocabulary
from commit_lab.nano.sounds.nano_clothoaqa import nano_clothoaqa_vocabulary
from commit_tuning.models.load import load_model

REPOSITORY = Path(__file__).parents[3]
WORDS = {
    "nano-blip2": nano_vocabulary(),
    "nano-internvl2": [*nano_vocabulary(), *nano_textvqa_vocabulary(), *nano_aokvqa_vocabulary()],
    "nano-salmonn": nano_clothoaqa_vocabulary(),
}


def few(name):
    return ["--clips", "4"] if name == "nano-salmonn" else ["--glyphs", "120"]


def record_of(folder):
    return json.loads((folder / "PRETRAINING.json").read_text("utf-8"))


@pytest.fixture
def pretrain():
    threads = torch.get_num_threads()
    yield lambda name, *options: pretrain_nano.main([name, "--scale", "0.0004", *few(name), *map(str, options)])
    torch.set_num_threads(threads)


def test_every_nano_model_has_its_stages():
    assert set(pretrain_nano.STAGES) == set(BUILT)


@pytest.mark.parametrize("name", ["nano-blip2", "nano-internvl2", "nano-salmonn"])
def test_first_stage_changes_the_language_model_alone(name, pretrain, tmp_path):
    pretrain(name, "--until", "language", "--output", tmp_path / "m")
    model, processor = load_model(tmp_path / "m")
    assert set(WORDS[name]) <= set(processor.tokenizer.get_vocab())
    fresh = build_model(name, len(processor.tokenizer)).state_dict()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, fresh[key])}
    assert changed
    assert all("language_model" in key or key == "lm_head.weight" for key in changed)
    assert list(record_of(tmp_path / "m")["stages"]) == ["language"]


def test_internvls_tower_starts_as_that_of_blip2():
    tokenizer = build_tokenizer(WORDS["nano-internvl2"])
    processor = build_processor("nano-internvl2", tokenizer)
    nano = Nano("nano-internvl2", build_model("nano-internvl2", len(tokenizer)), processor, None, 0)
    start_tower(nano)
    blip2 = load_nano("nano-blip2")[0].vision_model
    pixels = torch.randn(2, 3, 66, 66)
    with torch.no_grad():
        nano.tower.encoder.layer[-1].lambda_1.zero_()
        nano.tower.encoder.layer[-1].lambda_2.zero_()
        assert torch.equal(blip2.post_layernorm(nano.features(pixels)), blip2(pixels).last_hidden_state)


def test_later_stages_take_over_the_earlier_ones(pretrain, tmp_path):
    whole, part, rest = (tmp_path / name for name in ("whole", "part", "rest"))
    pretrain("nano-llava", "--until", "vision", "--output", whole)
    pretrain("nano-llava", "--until", "language", "--output", part)
    pretrain("nano-llava", "--until", "vision", "--resume", part, "--output", rest)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, part, rest)]
    assert weights[0] == weights[2] != weights[1]
    assert not list(tmp_path.glob(".*"))


def test_unknown_stage_error_lists_the_stages(capsys, tmp_path):
    with pytest.raises(SystemExit):
        pretrain_nano.main(["nano-salmonn", "--until", "vision", "--output", str(tmp_path / "m")])
    assert "nano-salmonn has the stages language, hearing, alignment" in capsys.readouterr().err


@pytest.mark.wide
@pytest.mark.parametrize("name", BUILT)
def test_pretraining_in_two_parts_makes_the_same_model(name, tmp_path):
    whole, part, rest = tmp_path / "whole", tmp_path / "part", tmp_path / "rest"
    until = "hearing" if name == "nano-salmonn" else "vision"
    command = [sys.executable, "lab/pretraining/pretrain_nano.py", name, "--scale", "0.001", *few(name), "--output"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    for options in ([whole], [part, "--until", until], [rest, "--resume", part]):
        subprocess.run([*command, *map(str, options)], cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, part, rest)]
    assert weights[0] == weights[2] != weights[1]
    assert not list(tmp_path.glob(".*"))
    model, processor = load_model(whole)
    built = build_model(name, len(processor.tokenizer))
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in built.state_dict().items()
    }
    record = record_of(whole)
    assert list(record["stages"]) == list(pretrain_nano.STAGES[name])
    assert ("texts_read" in record) == ({"sign", "labels", "plates"} <= set(record["data"]["layouts"]))
