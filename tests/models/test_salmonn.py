"""SALMONN, tiny and random: against hand-worked numbers, single windows, single sounds, and whole runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from families.contract import check_drifts, check_training
from tiny_salmonn import MELS, SECOND, processor, random_batch, sound, tiny, tiny_config
from torch import nn

from commit_tuning import partition_model
from commit_tuning.errors import BatchError
from commit_tuning.measure.displacement import moving, quadratic_drift
from commit_tuning.measure.divergence import token_kl
from commit_tuning.measure.forward import TransformersForward, forward_pass
from commit_tuning.measure.probe import DriftProbe
from commit_tuning.models.salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from commit_tuning.models.salmonn.processing import PROMPT_TEMPLATE
from commit_tuning.train.model_setup import checkpoint_gradients


@pytest.fixture
def model():
    return tiny()


# Windows


def test_official_sizes_make_88_embeddings_of_30_seconds():
    config = SalmonnConfig()
    assert config.window == (17, 17)  # round(1500 * 0.333333 / 30)
    assert config.num_audio_tokens == 88  # 87 strides after the first: 17 + 87 * 17 = 1496 of 1500 frames
    assert config.qformer_config.encoder_hidden_size == 1280 + 768
    assert (config.qformer_config.num_hidden_layers, config.qformer_config.cross_attention_frequency) == (2, 1)


def test_overlapping_windows_and_several_queries():
    config = tiny_config(seconds_per_window=0.5, seconds_stride=0.2, num_query_tokens=3)
    assert config.window == (25, 10)
    assert config.num_audio_tokens == 3 * 3  # windows at 0, 10 and 20 of 50 frames


@pytest.mark.parametrize("changes", [{}, {"seconds_per_window": 0.5, "seconds_stride": 0.2, "num_query_tokens": 3}])
def test_each_window_is_looked_at_alone(changes):
    model = tiny(**changes)
    batch = random_batch()
    sounds = {name: value for name, value in batch.items() if "features" in name}
    heard = model.get_audio_features(**sounds)
    base = model.model
    speech = base.audio_tower.whisper(batch["input_features"]).last_hidden_state
    expected = []
    for row, patches in enumerate((8, 4)):  # 70 and 40 frames hold 4 and 2 columns of 2 patches
        bank = batch["fbank_features"][row : row + 1, : patches * 8]
        audio = base.window_qformer.ln_audio(base.audio_tower.beats(bank).last_hidden_state[0])
        audio = torch.cat([audio, torch.zeros(50 - patches, 12)])
        frames = torch.cat([base.window_qformer.ln_speech(speech[row]), audio], dim=-1)
        length, stride = model.config.window
        for start in range(0, 50 - length + 1, stride):
            window = frames[None, start : start + length]
            query = base.window_qformer.query_tokens
            output = base.window_qformer.qformer(query_embeds=query, encoder_hidden_states=window)
            expected.append(base.speech_llama_proj(output.last_hidden_state[0]))
    assert heard.pooler_output.shape == (2 * model.config.num_audio_tokens, 16)
    torch.testing.assert_close(heard.pooler_output, torch.cat(expected), rtol=1e-4, atol=1e-5)


# The whole model


@pytest.mark.parametrize("beats", [True, False])
def test_it_hears_and_answers(beats):
    model, batch = tiny(beats), random_batch(beats)
    output = model(**batch)
    assert output.logits.shape == (2, 7, 20)
    shifted = output.logits[:, :-1].flatten(0, 1)
    loss = nn.functional.cross_entropy(shifted, batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(output.loss, loss)
    assert torch.equal(model(**batch, return_dict=False)[1], output.logits)
    del batch["labels"]
    torch.testing.assert_close(model(**batch, logits_to_keep=1).logits, output.logits[:, -1:])
    for name in ("input_features", "fbank_features") if beats else ("input_features",):
        other = {**batch, name: batch[name].roll(1, 0)}
        assert (model(**other).logits - output.logits).abs().max() > 1e-3, name


def test_features_can_be_given_for_sounds(model):
    batch = random_batch()
    sounds = {name: batch.pop(name) for name in list(batch) if "features" in name}
    heard = model.get_audio_features(**sounds)
    assert torch.equal(model(**batch, mm_encoder_outputs={"audio": heard}).logits, model(**batch, **sounds).logits)
    with pytest.raises(BatchError, match="not both"):
        model(**batch, **sounds, mm_encoder_outputs={"audio": heard})


def test_what_is_missing_is_said(model):
    batch = random_batch()
    with pytest.raises(BatchError, match=r"2 placeholders .* for 4 embeddings of sounds: a sound needs 2"):
        model(**{**batch, "input_ids": batch["input_ids"].roll(1, 1).index_fill(1, torch.tensor([2]), 5)})
    with pytest.raises(BatchError, match=r"fbank_features has 8 mel bins .* hears 32"):
        model(**{**batch, "fbank_features": batch["fbank_features"][..., :8]})
    del batch["fbank_features"]
    with pytest.raises(BatchError, match="which hears fbank_features"):
        model(**batch)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_its_samples_alone(model, side):
    prepare = processor(side)
    texts = [PROMPT_TEMPLATE.format(text) for text in ("what do you hear ?", "a bird .")]
    sounds = [sound(0.9, 1), sound(0.3, 2)]
    batch = prepare(text=texts, audio=sounds, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    assert batch["fbank_features_mask"].sum(1).tolist() == [88, 28]
    together = model(**batch).logits
    for row, (text, wave) in enumerate(zip(texts, sounds, strict=True)):
        alone = model(**prepare(text=[text], audio=[wave], return_tensors="pt")).logits[0]
        torch.testing.assert_close(together[row][batch["attention_mask"][row].bool()], alone, rtol=1e-4, atol=1e-4)


def test_generation_is_a_greedy_loop_without_cache(model):
    batch = random_batch()
    del batch["labels"]
    model.generation_config.eos_token_id = None
    tokens = model.generate(**batch, max_new_tokens=4, do_sample=False, suppress_tokens=[3])
    ids = batch.pop("input_ids")
    del batch["attention_mask"]
    for _ in range(4):
        logits = model(input_ids=ids, **batch).logits[:, -1:].index_fill(-1, torch.tensor([3]), -math.inf)
        ids = torch.cat([ids, logits.argmax(-1)], dim=1)
    assert torch.equal(tokens, ids)


@pytest.mark.parametrize("beats", [True, False])
def test_saved_and_loaded_it_is_the_same(beats, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM

    model, batch = tiny(beats), random_batch(beats)
    model.save_pretrained(tmp_path)
    for cls in (SalmonnForConditionalGeneration, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        loaded = cls.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
        assert (loaded.config.beats_config is not None) == beats


@pytest.mark.parametrize(("dtype", "qformer"), [("float16", torch.float32), ("bfloat16", torch.bfloat16)])
def test_in_half_precision(dtype, qformer, tmp_path, model):
    model.save_pretrained(tmp_path)
    half = SalmonnForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
    assert half.model.window_qformer.query_tokens.dtype == qformer
    assert half.model.audio_tower.beats.layer_norm.weight.dtype == half.dtype == getattr(torch, dtype)
    batch = random_batch()
    torch.testing.assert_close(half(**batch).logits.float(), model(**batch).logits, rtol=0.1, atol=0.15)


def test_tied_embeddings():
    config = tiny_config()
    config.text_config.tie_word_embeddings = True
    tied = SalmonnForConditionalGeneration(SalmonnConfig.from_dict(config.to_dict()))
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


def test_gradient_checkpointing_repeats_layers_and_keeps_gradients(model):
    batch = random_batch()
    other = copy.deepcopy(model).train()
    checkpoint_gradients(other)
    calls = dict.fromkeys(("whisper", "beats", "qformer", "language_model"), 0)
    for name, module in other.named_modules():
        if name.endswith(("0.fc1", "0.intermediate_query.dense", "0.mlp.up_proj")):
            part = next(part for part in reversed(calls) if part in name)
            module.register_forward_hook(lambda *_, part=part: calls.update({part: calls[part] + 1}))
    model.train()(**batch).loss.backward()
    other(**batch).loss.backward()
    assert set(calls.values()) == {2}
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


# CoMMIT on it


@pytest.mark.parametrize("beats", [True, False])
def test_partition_has_every_trainable_parameter_once(beats):
    model = tiny(beats)
    partition = partition_model(model)
    partition.check(model)
    assert set(partition) == {"language_model", "audio"}
    names = {module: {*partition.named_parameters(module)} for module in partition}
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in names["language_model"])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names["language_model"] | names["audio"] == trainable
    own = partition_model(model, projector="own")
    assert {*own.named_parameters("projector")} == {
        "model.speech_llama_proj.weight",
        "model.speech_llama_proj.bias",
    }


def test_drifts_equal_the_reference_and_full_forwards():
    model = tiny()
    assert check_drifts(model, partition_model(model), random_batch()), "the features of sounds are not reused"
    assert forward_pass(model).placeholder_tokens == (3,)


def test_reuse_runs_whisper_once_and_keeps_drifts():
    drifts, runs = {}, {}
    for reuse in (True, False):
        model, batch = tiny(), random_batch()
        partition = partition_model(model)
        optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2))
        model(**batch).loss.backward()
        forward = TransformersForward(model, reuse_features=reuse)
        probe = DriftProbe(forward, partition, [batch], forward.shifts_labels)
        optimizer.step()
        calls = []
        model.model.audio_tower.whisper.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        drifts[reuse], runs[reuse] = probe.measure().drift, len(calls)
    assert drifts[True] == pytest.approx(drifts[False], rel=1e-6)
    assert runs == {True: 1, False: 2}


@pytest.mark.parametrize("module", ["language_model", "audio"])
@torch.no_grad()
def test_a_forward_mode_derivative_passes(module):
    model, batch = tiny(), random_batch()
    forward, parameters = forward_pass(model), partition_model(model)[module]
    mask = batch["labels"] != -100
    velocities = {id(parameter): 1e-3 * torch.randn_like(parameter) for parameter in parameters}
    with moving(model, velocities):
        drift = quadratic_drift(forward.logits(batch, mask, forward.features(batch)))
    before = forward.logits(batch, mask, {})
    for parameter in parameters:
        parameter.add_(velocities[id(parameter)])
    assert drift.sum() == pytest.approx(token_kl(before, forward.logits(batch, mask, {})).sum().item(), rel=0.1)


def test_norms_of_what_is_heard():
    model, batch = tiny(), random_batch()
    forward = forward_pass(model)
    norms = forward.input_norms(batch, forward.features(batch))
    raw = batch["input_features"].square().sum() + batch["fbank_features"].square().sum()
    assert norms.raw == pytest.approx({"audio": raw.item()})


def test_a_coordinated_step_moves_both():
    check_training(tiny(), random_batch())


# Processor


def test_placeholders_and_official_prompt(tmp_path):
    prepare = processor()
    chat = [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "what do you hear ?"}]},
        {"role": "assistant", "content": "a bird ."},
    ]
    text = prepare.apply_chat_template(chat[:1], tokenize=False)
    assert text == "<s>" + PROMPT_TEMPLATE.format("what do you hear ?")
    assert text == "<s>USER: <Speech><SpeechHere></Speech> what do you hear ?\nASSISTANT:"
    assert prepare.apply_chat_template(chat, tokenize=False) == f"{text} a bird .</s>"
    prepare.save_pretrained(tmp_path)
    again = SalmonnProcessor.from_pretrained(tmp_path)
    first, second = (p(text=text, audio=[sound(0.5)], return_tensors="pt") for p in (prepare, again))
    assert first["input_ids"].tolist()[0].count(3) == 2
    assert first["input_features"].shape == (1, MELS, 100)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match=r"number of audio|placeholders"):  # of transformers, or else ours
        tiny()(**prepare(text=text, audio=[sound(0.5)] * 2, return_tensors="pt"))


def test_sounds_too_short_and_too_long():
    features = processor().feature_extractor([sound(0.05), sound(1.7)], sampling_rate=SECOND, return_tensors="pt")
    assert features["input_features"].shape == (2, MELS, 100)
    assert features["fbank_features_mask"].sum(1).tolist() == [18, 98]  # of 0.2 and 1 seconds


def test_without_beats_no_filter_bank():
    features = processor(beats=False).feature_extractor(sound(0.5), sampling_rate=SECOND, return_tensors="pt")
    assert set(features) == {"input_features"}
