"""The official checkpoints of SALMONN, BEATs and Whisper, as tiny ones with their names, and what does not match."""

from __future__ import annotations

import os
import re

import pytest
import torch
from tiny_salmonn import BEATS, BINS, MELS, SECOND, WORDS, processor, sound, tiny, tiny_beats, tiny_config

from commit_tuning.errors import UserError
from commit_tuning.models.salmonn import (
    SalmonnConfig,
    SalmonnFeatureExtractor,
    SalmonnForConditionalGeneration,
    assemble,
    load_beats,
    load_trained,
)
from commit_tuning.models.salmonn.convert import LORA, beats_config, our_name
from commit_tuning.models.salmonn.processing import PROMPT_TEMPLATE


@pytest.fixture
def model():
    return tiny()


def official_name(name):
    """The inverse of the loader's renaming, written apart from it."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    name = re.sub(r"(attention)\.attention\.(query|key|value)", r"\1.self.\2", name)
    for ours, theirs in {
        "model.window_qformer.qformer.layernorm": "speech_Qformer.bert.embeddings.LayerNorm",
        "model.window_qformer.qformer": "speech_Qformer.bert",
        "model.window_qformer.query_tokens": "speech_query_tokens",
        "model.window_qformer.": "",
        "model.speech_llama_proj": "speech_llama_proj",
        "model.audio_tower.whisper": "speech_encoder",
        "model.audio_tower.beats": "beats",
        "model.language_model": "llama_model.base_model.model.model",
        "lm_head": "llama_model.base_model.model.lm_head",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


def trained_part(model):
    prefixes = ("model.window_qformer", "model.speech_llama_proj")
    named = model.named_parameters()
    return {official_name(n): p.detach().clone() for n, p in named if n.startswith(prefixes) or "lora_" in n}


def other_values(model):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_names_of_the_official_checkpoint():
    theirs = "speech_Qformer.bert.encoder.layer.1.crossattention.self.key.weight"
    assert our_name(theirs) == "model.window_qformer.qformer.encoder.layer.1.crossattention.attention.key.weight"
    theirs = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert our_name(theirs) == "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert all(our_name(official_name(name)) == name for name, _ in tiny().named_parameters())


def test_an_official_checkpoint_loads_whole(model, tmp_path):
    state = trained_part(other_values(tiny()))
    state["speech_Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state, "config": {}}, tmp_path / "salmonn.pth")
    report = load_trained(model, tmp_path / "salmonn.pth")
    assert report.complete, str(report)
    assert len(report.loaded) == len(state) - 1
    mine = trained_part(model)
    assert all(torch.equal(mine[name], state[name]) for name in mine)


def test_as_many_trained_parameters_as_the_paper_says():
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        wrapped = get_peft_model(SalmonnForConditionalGeneration(SalmonnConfig()), LoraConfig(**LORA))
    trained = re.compile("lora_|window_qformer|speech_llama_proj")
    sizes = {name: parameter.numel() for name, parameter in wrapped.named_parameters()}
    count = sum(size for name, size in sizes.items() if trained.search(name))
    assert round(count / 1e6) == 33
    assert round(100 * count / sum(sizes.values()), 2) == 0.24


def test_official_lora_loads_into_peft():
    from peft import LoraConfig, get_peft_model

    source, target = (get_peft_model(tiny(), LoraConfig(**LORA)) for _ in range(2))
    state = trained_part(other_values(source).get_base_model())
    assert sum("lora_" in name for name in state) == 2 * 2 * 2  # A and B of queries and values in two layers
    report = load_trained(target, {"model": state})
    assert report.complete, str(report)
    assert all(torch.equal(value, state[name]) for name, value in trained_part(target.get_base_model()).items())
    plain = load_trained(tiny(), {"model": state})
    assert len(plain.unexpected) == 8
    assert not plain.complete


def test_what_does_not_match_is_reported(model):
    state = trained_part(other_values(tiny()))
    before = model.model.speech_llama_proj.weight.detach().clone()
    del state["ln_speech.bias"]
    state["speech_llama_proj.weight"] = torch.zeros(16, 12)
    state["speech_Qformer.cls.bias"] = torch.zeros(3)
    report = load_trained(model, {"model": state})
    assert report.missing == ("model.window_qformer.ln_speech.bias",)
    assert report.unexpected == ("speech_Qformer.cls.bias",)
    assert report.wrong_shape == ("model.speech_llama_proj.weight: (16, 12), here (16, 16)",)
    assert str(report).splitlines()[1:] == [
        "missing: model.window_qformer.ln_speech.bias",
        "unexpected: speech_Qformer.cls.bias",
        "wrong shape: model.speech_llama_proj.weight: (16, 12), here (16, 16)",
    ]
    assert torch.equal(model.model.speech_llama_proj.weight, before)


def official_beats():
    """A checkpoint as released: weight norm's old names, the position bias in every layer, a classifier."""
    names = {"hidden_size": "encoder_embed_dim", "num_hidden_layers": "encoder_layers"}
    names |= {"num_attention_heads": "encoder_attention_heads", "intermediate_size": "encoder_ffn_embed_dim"}
    cfg = {
        names.get(key, key): value for key, value in BEATS.items() if key not in ("num_mel_bins", "initializer_range")
    }
    cfg |= {"deep_norm": True, "layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True}
    cfg |= {"input_patch_size": 16, "activation_fn": "gelu", "dropout": 0.0, "encoder_layerdrop": 0.05}
    cfg |= {"finetuned_model": True, "predictor_class": 5, "layer_wise_gradient_decay_ratio": 0.6}
    beats = tiny_beats()
    named = {f"model.audio_tower.beats.{name}": value for name, value in beats.named_parameters()}
    state = {official_name(name).removeprefix("beats."): value.detach().clone() for name, value in named.items()}
    shared = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    state[shared.format(1)] = state[shared.format(0)]
    state |= {"predictor.weight": torch.zeros(5, 12), "predictor.bias": torch.zeros(5)}
    return beats, {"cfg": cfg, "model": state}


def test_an_official_beats_checkpoint_loads_whole(model, tmp_path):
    beats, checkpoint = official_beats()
    assert "encoder.pos_conv.0.weight_g" in checkpoint["model"]
    torch.save(checkpoint, tmp_path / "beats.pt")
    config = beats_config(tmp_path / "beats.pt")
    expected = {key: value for key, value in BEATS.items() if key not in ("num_mel_bins", "initializer_range")}
    assert {key: getattr(config, key) for key in expected} == expected
    report = load_beats(model, tmp_path / "beats.pt")
    assert report.complete, str(report)
    bank = torch.randn(1, 40, BINS)
    ours = model.model.audio_tower.beats(bank).last_hidden_state
    assert torch.equal(ours, beats(bank).last_hidden_state)


@pytest.mark.parametrize("with_beats", [True, False])
def test_assembled_of_released_parts(with_beats, tmp_path):
    from transformers import AutoModelForCausalLM, WhisperFeatureExtractor, WhisperModel

    beats, checkpoint = official_beats()
    beats.config.num_mel_bins = 128  # as all released ones hear
    torch.save(checkpoint, tmp_path / "beats.pt")
    config = tiny_config()
    config.text_config.vocab_size = len(WORDS) + 3  # less than the tokenizer will have with the placeholder
    text, whisper = AutoModelForCausalLM.from_config(config.text_config), WhisperModel(config.whisper_config).eval()
    text.save_pretrained(tmp_path / "text")
    processor().tokenizer.save_pretrained(tmp_path / "text")
    whisper.save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=MELS, chunk_length=1).save_pretrained(tmp_path / "whisper")
    model, prepare, report = assemble(
        tmp_path / "text", tmp_path / "whisper", tmp_path / "beats.pt" if with_beats else None
    )
    assert (report is not None and report.complete) == with_beats
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.get_input_embeddings().weight[:18], text.get_input_embeddings().weight)
    assert torch.equal(model.get_output_embeddings().weight[:18], text.get_output_embeddings().weight)
    batch = prepare(text=[PROMPT_TEMPLATE.format("what do you hear ?")], audio=[sound(0.5)], return_tensors="pt")
    assert (batch["input_ids"] == model.config.audio_token_id).sum() == 2
    sounds = {name: value for name, value in batch.items() if "features" in name}
    speech, audio, _ = model.model.audio_tower(**{"fbank_features": None, "fbank_features_mask": None, **sounds})
    assert torch.equal(speech, whisper.encoder(sounds["input_features"]).last_hidden_state)
    if with_beats:
        assert torch.equal(audio, beats(sounds["fbank_features"]).last_hidden_state)
    logits = model(**batch).logits
    model.save_pretrained(tmp_path / "salmonn")
    assert torch.equal(SalmonnForConditionalGeneration.from_pretrained(tmp_path / "salmonn")(**batch).logits, logits)


def test_checkpoints_that_are_none(tmp_path):
    _, checkpoint = official_beats()
    checkpoint["cfg"]["layer_norm_first"] = True
    with pytest.raises(UserError, match="layer_norm_first=True"):
        beats_config(checkpoint)
    (tmp_path / "beats.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"beats\.pt cannot be read as a checkpoint"):
        load_beats(tiny(), tmp_path / "beats.pt")
    with pytest.raises(UserError, match="not a checkpoint with model"):
        load_beats(tiny(), {"cfg": {}})


@pytest.mark.skipif("COMMIT_TUNING_WHISPER" not in os.environ, reason="COMMIT_TUNING_WHISPER names no Whisper folder")
@torch.no_grad()
def test_a_real_whisper_hears_the_same_in_here():
    from transformers import WhisperFeatureExtractor, WhisperModel

    folder = os.environ["COMMIT_TUNING_WHISPER"]
    whisper = WhisperModel.from_pretrained(folder).eval()
    config = tiny_config().to_dict() | {"whisper_config": whisper.config.to_dict()}
    model = SalmonnForConditionalGeneration(SalmonnConfig.from_dict(config)).eval()
    state = {f"speech_encoder.{name}": value for name, value in whisper.encoder.state_dict().items()}
    report = load_trained(model, state)
    assert not report.unexpected
    assert not report.wrong_shape
    assert len(report.loaded) == len(state)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    ours = SalmonnFeatureExtractor.from_pretrained(folder)
    ours.fbank_bins = BINS
    wave = sound(2.0)
    mels = extractor(wave, sampling_rate=SECOND, return_tensors="pt")["input_features"]
    features = ours(wave, sampling_rate=SECOND, return_tensors="pt")
    assert torch.equal(features["input_features"], mels)
    speech, audio, mask = model.model.audio_tower(**features)
    assert torch.equal(speech, whisper.encoder(mels).last_hidden_state)
    assert (audio.shape[:2], mask.sum().item()) == ((1, 24), 24)  # 198 frames, 12 columns of 2 patches
    assert model.get_audio_features(**features).pooler_output.shape == (88, 16)
