"""The small models, of tiny random parts: towers and language model unchanged, stored and loaded, asked and tuned."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "pretraining"))

import assemble_small as script

from commit_lab.small.models import SMALL_MODELS, assemble_small
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.sample import Audio, Sample
from commit_tuning.errors import UserError
from commit_tuning.models.load import load_model, load_processor
from commit_tuning.train.compare.comparison import Comparison
from commit_tuning.train.model_setup import prepare
from commit_tuning.train.recipe.load import load_recipe

WORDS = [
    "Answer", ":", "?", "What", "is", "shown", "heart", "star", "USER", "ASSISTANT", "<", ">", "</", "Speech", ".",
]  # fmt: skip
PICTURES = [Image.effect_noise((64, 50), 90).convert("RGB"), Image.new("RGB", (66, 66), "red")]
each_model = pytest.mark.parametrize("name", SMALL_MODELS)


def randomize(model):
    """Norms, biases and layer scales as well, which begin alike and would hide mistakes."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    template = "{{ messages[0]['content'] + 'the language model alone' }}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        LlamaConfig,
        LlamaForCausalLM,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("parts")
    dinov2 = Dinov2Config(hidden_size=8, num_hidden_layers=12, num_attention_heads=2, image_size=70, patch_size=14)
    randomize(Dinov2Model(dinov2)).save_pretrained(root / "vision")
    pixels = {"image_processor_type": "BitImageProcessor", "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (root / "vision" / "preprocessor_config.json").write_text(json.dumps(pixels), "utf-8")
    whisper = WhisperConfig(
        d_model=8, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=12, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=12, num_mel_bins=8, vocab_size=30, max_target_positions=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    randomize(WhisperModel(whisper)).save_pretrained(root / "audio")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(root / "audio")
    llama = LlamaConfig(
        vocab_size=3 + len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    randomize(LlamaForCausalLM(llama)).bfloat16().save_pretrained(root / "language")
    make_tokenizer().save_pretrained(root / "language")
    return {kind: root / kind for kind in ("vision", "audio", "language")}


@pytest.fixture(scope="module")
def small(parts):
    made = {}

    def make(name):
        made[name] = made[name] if name in made else assemble_small(name, parts)
        return made[name]

    return make


def samples(name):
    if name == "small-salmonn":
        noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
        media = [{"audio": Audio(noise, 16_000)}, {"audio": Audio(noise[:20_000] ** 2, 16_000)}]
    else:
        media = [{"image": picture} for picture in PICTURES]
    asked = [("What is shown ?", "heart"), ("What is ?", "star")]
    return [
        Sample(str(number), "direct_answer", question, None, (answer,), **medium)
        for number, ((question, answer), medium) in enumerate(zip(asked, media, strict=True))
    ]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL_MODELS[:3])
def test_pictures_are_seen_as_dinov2_sees_them(name, parts, small):
    from transformers import Dinov2Model

    model = small(name)[0]
    tower = model.vision_model if name == "small-blip2" else model.model.vision_tower
    pixels = torch.randn(2, 3, 112, 112)
    trained = Dinov2Model.from_pretrained(parts["vision"]).eval()(pixels, output_hidden_states=True)
    found = tower(pixels, output_hidden_states=True)
    torch.testing.assert_close(found.last_hidden_state, trained.last_hidden_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.hidden_states[-2], trained.hidden_states[-2], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sounds_are_heard_as_whisper_hears_them(parts, small):
    from transformers import WhisperModel

    model, processor = small("small-salmonn")
    trained = WhisperModel.from_pretrained(parts["audio"]).encoder.eval()
    features = processor.feature_extractor(samples("small-salmonn")[0].audio.samples, 16_000, return_tensors="pt")
    assert features["input_features"].shape == (1, 8, 400)  # four seconds
    hidden = torch.nn.functional.gelu(trained.conv1(features["input_features"]))
    hidden = torch.nn.functional.gelu(trained.conv2(hidden)).transpose(1, 2) + trained.embed_positions.weight[:200]
    for layer in trained.layers:
        hidden = layer(hidden, None)
    found = model.model.audio_tower.whisper(features["input_features"]).last_hidden_state
    torch.testing.assert_close(found, trained.layer_norm(hidden), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@each_model
def test_the_language_model_says_what_it_said(name, parts, small):
    from transformers import AutoModelForCausalLM

    model = small(name)[0]
    ids = torch.tensor([[1, 5, 9, 4, 7]])
    trained = AutoModelForCausalLM.from_pretrained(parts["language"], dtype=torch.float32).eval()(ids).logits
    hidden = model.get_decoder()(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    found = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(found[..., : trained.shape[-1]], trained, rtol=1e-5, atol=1e-5)


@each_model
def test_small_model_answers_the_same_after_loading(name, small, tmp_path):
    model, processor = small(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, processor_again = load_model(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    batch = VisionCollator(processor)(samples(name))
    again = VisionCollator(processor_again)(samples(name))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    torch.testing.assert_close(logits(loaded, again), logits(model, batch), rtol=1e-5, atol=1e-5)
    prompts = VisionCollator(processor_again).prompts(samples(name))
    answers = loaded.generate(**prompts, do_sample=False, max_new_tokens=3)
    assert answers.shape[0] == 2
    assert prompts["input_ids"].shape[1] < answers.shape[1] <= prompts["input_ids"].shape[1] + 3


@each_model
def test_the_picture_or_sound_changes_the_answer(name, small):
    model, processor = small(name)
    batch = VisionCollator(processor)(samples(name))
    medium = "input_features" if name == "small-salmonn" else "pixel_values"
    assert not torch.allclose(logits(model, batch), logits(model, batch | {medium: batch[medium].flip(0)}))
    tokens = int((batch["input_ids"][0] == model.config.image_token_id).sum()) if medium == "pixel_values" else None
    assert tokens == {"small-llava": 64, "small-internvl2": 16, "small-blip2": 32}.get(name)


@each_model
def test_its_recipe_trains_what_the_loss_reaches(name, parts):
    model, processor = assemble_small(name, parts)
    model = prepare(model, load_recipe(name, ["model.dtype=float32"]).model).train()
    model(**VisionCollator(processor)(samples(name))).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, p in trained.items() if p.grad is None]
    assert any("lora_A" in n for n in trained)
    tower = any(".vision_tower." in n for n in trained)
    assert tower == (name in {"small-llava", "small-internvl2"})


def test_seed_fixes_fresh_weights_without_global_randomness(parts):
    before = torch.random.get_rng_state()
    projectors = [
        assemble_small("small-llava", parts, seed)[0].model.multi_modal_projector.linear_1.weight for seed in (0, 0, 1)
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(projectors[0], projectors[1])
    assert not torch.equal(projectors[0], projectors[2])


def test_the_script_writes_what_the_recipe_names(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = load_recipe("small-llava").model.name
    for load in (load_model, load_processor):
        with pytest.raises(UserError, match=r"python lab/pretraining/assemble_small\.py small-llava"):
            load(named)
    script.main(["small-llava", "--vision", str(parts["vision"]), "--language", str(parts["language"])])
    assert "wrote models/small-llava" in capsys.readouterr().out
    assert load_model(named)[0].config.image_seq_length == 64


def test_other_parts_are_refused_in_one_line(parts, tmp_path):
    with pytest.raises(UserError, match="unknown small model 'small-gpt'"):
        assemble_small("small-gpt", parts)
    with pytest.raises(UserError, match="is no DINOv2"):
        assemble_small("small-blip2", {**parts, "vision": parts["audio"]})
    with pytest.raises(SystemExit, match=r"^error: [^\n]+$"):
        script.main(["small-llava", "--vision", str(tmp_path), "--language", str(parts["language"])])


def test_missing_small_model_stops_comparison_before_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"make it with `python lab/pretraining/assemble_small.py small-llava`"):
        Comparison(load_recipe("small-llava"), tmp_path / "runs").run()
    assert not (tmp_path / "runs").exists()
