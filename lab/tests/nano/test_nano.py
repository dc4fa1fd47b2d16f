"""The nano models: built, loaded, saved, asked."""

from __future__ import annotations

import copy
import hashlib
import json
import socket

import numpy as np
import pytest
import reference
import torch
from PIL import Image

from commit_lab.nano.models.build import NANO_MODELS, WEIGHTS_FOLDER, build_model, build_processor, build_tokenizer
from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_iconqa import nano_vocabulary
from commit_lab.nano.pictures.nano_questions import word_samples
from commit_lab.nano.sounds.nano_clothoaqa import nano_clothoaqa_vocabulary
from commit_lab.nano.sounds.nano_macs import nano_macs_vocabulary
from commit_lab.nano.sounds.nano_songdescriber import nano_songdescriber_vocabulary
from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import PROJECTOR_PLACES, Probe
from commit_tuning.data.collate import VisionCollator
from commit_tuning.errors import UserError
from commit_tuning.measure.forward import TransformersForward
from commit_tuning.models.load import load_model

PROMPT = "Which icon do you see? Options: heart, star, key, bus. Answer:"

each_model = pytest.mark.parametrize("name", NANO_MODELS)


@pytest.fixture(scope="module", params=NANO_MODELS)
def loaded(request):
    return (request.param, *load_nano(request.param))


@pytest.fixture(scope="module")
def internvl():
    tokenizer = build_tokenizer(nano_vocabulary())
    processor = build_processor("nano-internvl2", tokenizer)
    return build_model("nano-internvl2", len(tokenizer)), processor


def words(name):
    if name == "nano-salmonn":
        return {*nano_clothoaqa_vocabulary(), *nano_macs_vocabulary(), *nano_songdescriber_vocabulary()}
    return set(nano_vocabulary())


def batch_of(name, processor, media):
    """The same question about every picture or sound."""
    if name == "nano-salmonn":
        text = ["<SpeechHere> Which instrument do you hear? Answer:"] * len(media)
        return processor(audio=media, text=text, sampling_rate=16_000, return_tensors="pt")
    text = [PROMPT if "blip2" in name else f"<image>\n{PROMPT}"] * len(media)
    return processor(images=media, text=text, return_tensors="pt")


def plain_and_noise(name):
    if name == "nano-salmonn":
        noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
        return [np.sin(np.arange(48_000, dtype=np.float32) / 8) / 10, noise]
    return [Image.new("RGB", (64, 64), (240, 250, 255)), Image.effect_noise((64, 64), 90).convert("RGB")]


def ask(name, model, processor, **options):
    batch = batch_of(name, processor, plain_and_noise(name)[:1])
    tokens = model.generate(**batch, do_sample=False, max_new_tokens=4, **options)
    return processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def test_nano_models_have_a_million_parameters(loaded):
    name, model, _ = loaded
    assert 0.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.3e6
    assert (WEIGHTS_FOLDER / name / "model.safetensors").stat().st_size <= 6_000_000


def test_answers_with_words_of_the_vocabulary(loaded):
    answer = ask(*loaded)
    assert answer
    assert set(answer.split()) <= set(loaded[2].tokenizer.get_vocab())


def test_every_word_survives_the_tokenizer(loaded):
    tokenizer = loaded[2].tokenizer
    for word in words(loaded[0]):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids, word
        assert tokenizer.decode(ids) == word


def test_tokenizer_marks_only_the_beginning(loaded):
    tokenizer = loaded[2].tokenizer
    ids = tokenizer("How many icons?")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4


def test_saved_and_loaded_again_it_says_the_same(loaded, tmp_path):
    name, model, processor = loaded
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load_model(tmp_path)
    for (key, before), (_, after) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(before, after), key
    assert ask(name, again, processor_again) == ask(name, model, processor)


def test_what_is_seen_or_heard_changes_the_prediction(loaded):
    name, model, processor = loaded
    with torch.no_grad():
        plain, noise = model(**batch_of(name, processor, plain_and_noise(name))).logits[:, -1]
    assert not torch.allclose(plain, noise, atol=1e-3)


def test_every_number_is_finite_and_32_bit(loaded):
    for key, parameter in loaded[1].named_parameters():
        assert parameter.dtype == torch.float32, key
        assert parameter.isfinite().all(), key


def test_nano_internvl_reads_nine_tokens_of_a_picture(internvl):
    model, processor = internvl
    assert 0.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.3e6
    batch = VisionCollator(processor)(word_samples(2))
    rows = [
        [t for t in row if t != "<pad>"] for row in map(processor.tokenizer.convert_ids_to_tokens, batch["input_ids"])
    ]
    assert [row[:12] for row in rows] == [["<s>", "<img>", *["<image>"] * 9, "</img>"]] * 2
    assert model(**batch).loss.isfinite()


def test_internvl_saved_and_loaded_again_says_the_same(internvl, tmp_path):
    model, processor = internvl
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load_model(tmp_path)
    assert type(processor_again) is type(processor)
    assert ask("nano-internvl2", again, processor_again) == ask("nano-internvl2", model, processor)


def test_reused_internvl_features_give_the_same_logits(internvl):
    model, processor = internvl
    batch = VisionCollator(processor)(word_samples(3))
    mask = batch["labels"] != -100
    probe = TransformersForward(model)
    with torch.no_grad():
        features = probe.features(batch)
        assert set(features) == {"vision"}
        fast, slow = probe.logits(batch, mask, features), TransformersForward(model, False).logits(batch, mask, {})
    assert torch.allclose(fast, slow, atol=1e-5)


@pytest.mark.parametrize("projector", PROJECTOR_PLACES)
def test_internvl_drifts_are_those_of_the_reference(internvl, projector):
    model = copy.deepcopy(internvl[0]).double()
    batch = VisionCollator(internvl[1])(word_samples(2))
    batch["pixel_values"] = batch["pixel_values"].double()
    partition = partition_model(model, projector)
    config = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))
    coordinator = Coordinator(model, torch.optim.AdamW(partition.param_groups(lr=1e-3)), config, partition)
    model(**batch).loss.backward()
    before = copy.deepcopy(model)
    coordinator.step(batch)
    modules = {module: list(partition.named_parameters(module)) for module in partition}
    assert coordinator.drift == pytest.approx(reference.module_drifts(before, model, modules, batch), rel=1e-6)


@each_model
def test_loads_without_a_network(name, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a nano model asked for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_nano(name)


@each_model
def test_untrained_weights_are_fixed_without_global_randomness(name):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = load_nano(name, pretrained=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second, _ = load_nano(name, pretrained=False)
    for (key, one), (_, two) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, two), key
    trained, processor = load_nano(name)
    assert {key: value.shape for key, value in first.state_dict().items()} == {
        key: value.shape for key, value in trained.state_dict().items()
    }
    other = build_model(name, len(processor.tokenizer), seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@each_model
def test_record_says_how_the_weights_were_made(name):
    record = json.loads((WEIGHTS_FOLDER / name / "PRETRAINING.json").read_text("utf-8"))
    assert f"pretrain_nano.py {name} " in record["command"]
    assert record["data"]["family"].startswith("TimGM6mb" if name == "nano-salmonn" else "mdi")
    assert record["vocabulary"] == len(load_nano(name)[1].tokenizer)
    weights = (WEIGHTS_FOLDER / name / "model.safetensors").read_bytes()
    assert record["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert 0.5 < record["answers_right_on_new_scenes"]["all"] <= 1


@pytest.mark.parametrize("load", [load_nano, build_model], ids=["load_nano", "build_model"])
def test_unknown_name_is_told_the_known_ones(load):
    with pytest.raises(UserError, match=r"nano-flamingo.*nano-llava, nano-blip2"):
        load("nano-flamingo", 300)


def test_folder_without_a_model_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)


def test_nano_salmonn_hears_as_often_through_both_encoders():
    model = build_model("nano-salmonn", 150)
    with torch.no_grad():
        speech, audio, _ = model.model.audio_tower(torch.zeros(1, 40, 400), torch.zeros(1, 398, 32), None)
    assert 0 <= speech.shape[1] - audio.shape[1] <= 4  # so a window's features of both are of the same time
    assert 0.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.3e6
