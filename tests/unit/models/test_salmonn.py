"""SALMONN, tiny and random: against hand-worked numbers, slow forms, single sounds, and the official names."""

from __future__ import annotations

import copy
import math
import os
import re

import numpy as np
import pytest
import torch
from families.contract import check_drifts, check_training
from torch import nn
from torch.nn.functional import gelu

from commit_tuning import partition_model
from commit_tuning.core.divergence import token_kl
from commit_tuning.core.probe import DriftProbe
from commit_tuning.core.tangent import moving, quadratic_drift
from commit_tuning.errors import BatchError, UserError
from commit_tuning.models.forward import TransformersForward, forward_pass
from commit_tuning.models.salmonn import (
    BeatsConfig,
    BeatsModel,
    SalmonnConfig,
    SalmonnFeatureExtractor,
    SalmonnForConditionalGeneration,
    SalmonnProcessor,
    assemble,
    load_beats,
    load_trained,
)
from commit_tuning.models.salmonn.convert import LORA, beats_config, our_name
from commit_tuning.models.salmonn.processing import PROMPT_TEMPLATE, fbank

BINS, MELS, SECOND = 32, 8, 16000
WORDS = ["USER", ":", "ASSISTANT", "<", ">", "</", "Speech", "what", "do", "you", "hear", "?", "a", "bird", "."]
SPECIAL = ["<pad>", "<s>", "</s>", "<SpeechHere>", "<unk>"]
BEATS = {
    "num_mel_bins": BINS, "embed_dim": 8, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "conv_pos": 4, "conv_pos_groups": 3, "num_buckets": 16, "max_distance": 20,
    "initializer_range": 0.3,
}  # fmt: skip


def tiny_config(beats=True, **changes):
    """Hears one second, 50 frames, in windows of 17: two embeddings and 16 frames left over."""
    whisper = {
        "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": MELS,
        "max_source_positions": 50, "init_std": 0.3, "decoder_layers": 1, "decoder_attention_heads": 2,
    }  # fmt: skip
    qformer = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 1,
        "cross_attention_frequency": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,
    }  # fmt: skip
    text = {
        "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.3,
    }  # fmt: skip
    return SalmonnConfig(
        whisper_config=whisper, beats_config=dict(BEATS) if beats else None, qformer_config=qformer, text_config=text,
        audio_token_id=3, initializer_range=0.3, **changes,
    )  # fmt: skip


def tiny(beats=True, **changes):
    torch.manual_seed(0)
    model = SalmonnForConditionalGeneration(tiny_config(beats, **changes)).eval()
    for name, parameter in model.model.window_qformer.named_parameters():
        if name.startswith("ln_"):  # as they begin they would hide that they are there
            nn.init.normal_(parameter, mean=1.0, std=0.5)
    return model


@pytest.fixture
def model():
    return tiny()


def random_batch(beats=True, tokens=2):
    """Two samples, one sound each; the second sound's filter bank ends after 40 of 70 frames."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[1, *[3] * tokens, 5, 6, 7, 8], [1, *[3] * tokens, 9, 10, 11, 12]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["labels"][:, : tokens + 2] = -100
    batch["input_features"] = torch.randn(2, MELS, 100, generator=generator)
    if beats:
        batch["fbank_features"] = torch.randn(2, 70, BINS, generator=generator)
        batch["fbank_features_mask"] = torch.arange(70) < torch.tensor([[70], [40]])
    return batch


def processor(side="right", beats=True):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side=side, extra_special_tokens=[AddedToken("<SpeechHere>", special=True, normalized=False)],
    )  # fmt: skip
    extractor = SalmonnFeatureExtractor(
        feature_size=MELS, chunk_length=1, fbank_bins=BINS if beats else 0, min_seconds=0.2
    )
    return SalmonnProcessor(extractor, tokenizer, num_audio_tokens=2)


def sound(seconds, seed=0):
    wave = np.random.default_rng(seed).standard_normal(int(seconds * SECOND)).cumsum()
    return (wave / abs(wave).max()).astype(np.float32)


# Windows


def test_the_official_sizes_make_88_embeddings_of_30_seconds():
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


# BEATs


def bucket(distance, buckets=16, farthest=20):
    """T5's rule for one number."""
    half = buckets // 2
    start, far, exact = half * (distance > 0), abs(distance), half // 2
    if far < exact:
        return start + far
    return start + min(half - 1, exact + int(math.log(far / exact) / math.log(farthest / exact) * (half - exact)))


def slow_attention(attention, bias, hidden, valid):
    """One score at a time, of one sound [patches, width]."""
    length, width = hidden.shape
    size = width // attention.heads
    query, key, value = (linear(hidden) for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
    out = torch.zeros_like(hidden)
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(length):
            own = query[i, part]
            gates = attention.grep_linear(own)
            update, reset = torch.sigmoid(gates[:4].sum()), torch.sigmoid(gates[4:].sum())
            gate = update * (reset * attention.grep_a[0, head, 0, 0] - 1) + 2
            scores = [
                own @ key[j, part] / math.sqrt(size) + gate * bias[bucket(j - i), head] if j < valid else -math.inf
                for j in range(length)
            ]
            out[i, part] = torch.tensor(scores).softmax(0) @ value[:, part]
    return attention.out_proj(out)


def slow_beats(beats, bank, valid):
    """One sound's filter bank [frames, bins], by the papers; `valid` of its patches are no padding."""
    kernel = beats.patch_embedding.weight[:, 0]
    patches = [
        (kernel * bank[16 * t : 16 * t + 16, 16 * f : 16 * f + 16]).sum((1, 2))
        for t in range(len(bank) // 16)
        for f in range(BINS // 16)
    ]
    hidden = beats.post_extract_proj(beats.layer_norm(torch.stack(patches)))
    hidden[valid:] = 0
    encoder = beats.encoder
    direction, size = encoder.pos_conv[0].parametrizations.weight.original1, encoder.pos_conv[0].parametrizations.weight
    weight = size.original0 * direction / direction.square().sum((0, 1), keepdim=True).sqrt()
    padded = torch.cat([torch.zeros(2, 12), hidden, torch.zeros(2, 12)])  # a kernel of 4 reads 2 before and 1 after
    positions = torch.zeros_like(hidden)
    for place in range(len(hidden)):
        for channel in range(12):
            group = slice(channel // 4 * 4, channel // 4 * 4 + 4)
            positions[place, channel] = (weight[channel] * padded[place : place + 4, group].T).sum()
    hidden = encoder.layer_norm(hidden + gelu(positions + encoder.pos_conv[0].bias))
    bias, scale = encoder.layers[0].self_attn.relative_attention_bias.weight, (2 * 2) ** 0.25
    for layer in encoder.layers:
        hidden = layer.self_attn_layer_norm(scale * hidden + slow_attention(layer.self_attn, bias, hidden, valid))
        hidden = layer.final_layer_norm(scale * hidden + layer.fc2(gelu(layer.fc1(hidden))))
    return hidden


def tiny_beats():
    torch.manual_seed(0)
    beats = BeatsModel(BeatsConfig(**BEATS)).eval()
    for parameter in beats.parameters():  # gains of one and biases of zero would hide mistakes
        nn.init.normal_(parameter, std=0.4)
    return beats


@torch.no_grad()
def test_beats_is_what_its_papers_say():
    beats, bank = tiny_beats(), torch.randn(2, 55, BINS)
    mask = torch.arange(55) < torch.tensor([[55], [40]])
    features = beats(bank, mask).last_hidden_state
    assert features.shape == (2, 6, 12)
    torch.testing.assert_close(features[0], slow_beats(beats, bank[0], 6), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[1, :4], slow_beats(beats, bank[1], 4)[:4], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_position_bias_it_is_the_attention_of_torch():
    attention, hidden = tiny_beats().encoder.layers[0].self_attn, torch.randn(2, 5, 12)
    torchs = nn.MultiheadAttention(12, 3, batch_first=True)
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    torchs.in_proj_weight.copy_(torch.cat([linear.weight for linear in linears]))
    torchs.in_proj_bias.copy_(torch.cat([linear.bias for linear in linears]))
    torchs.out_proj.load_state_dict(attention.out_proj.state_dict())
    expected = torchs(hidden, hidden, hidden, need_weights=False)[0]
    torch.testing.assert_close(attention(hidden, torch.zeros(3, 5, 5), None), expected)


def test_buckets_of_the_released_sizes():
    config = BeatsConfig(num_hidden_layers=1)
    with torch.device("meta"):
        attention = BeatsModel(config).encoder.layers[0].self_attn
    distances = torch.tensor([0, -1, 1, -79, 79, -80, -81, 80, -252, 799, 5000])
    # 80 * ln(252 / 80) / ln(10) = 39.86; 80 * ln(799 / 80) / ln(10) = 79.96
    assert attention._bucket(distances).tolist() == [0, 1, 161, 79, 239, 80, 80, 240, 119, 319, 319]


def test_first_weights_follow_deep_norm():
    layer = BeatsModel(BeatsConfig(num_hidden_layers=2, hidden_size=192, intermediate_size=384)).encoder.layers[1]
    gain = (8 * 2) ** -0.25
    assert layer.fc1.weight.std().item() == pytest.approx(gain * math.sqrt(2 / (192 + 384)), rel=0.02)
    assert layer.self_attn.v_proj.weight.std().item() == pytest.approx(gain * math.sqrt(2 / 384), rel=0.02)
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(math.sqrt(2 / 384), rel=0.02)


def numpy_fbank(wave, bins):
    """Kaldi's filter bank: offset, pre-emphasis, Povey window, power spectrum, mel triangles, logarithm."""
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), bins + 2)
    mel = 1127 * np.log(1 + np.arange(257) * 16000 / 512 / 700)
    filters = np.minimum(
        (mel - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None],
        (edges[2:, None] - mel) / (edges[2:] - edges[1:-1])[:, None],
    ).clip(0)
    window = np.hanning(400) ** 0.85
    frames = []
    for start in range(0, len(wave) - 399, 160):
        frame = wave[start : start + 400].astype(np.float64) * 2**15
        frame -= frame.mean()
        frame -= 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = abs(np.fft.rfft(frame * window, 512)) ** 2
        frames.append(np.log(np.maximum(filters @ power, np.finfo(np.float32).eps)))
    return (np.stack(frames) - 15.41663) / (2 * 6.55582)


def test_filter_bank_is_kaldis():
    wave = sound(0.2)
    bank = fbank(wave)
    assert bank.shape == (18, 128)  # 1 + (3200 - 400) // 160
    assert bank.dtype == np.float32
    np.testing.assert_allclose(bank, numpy_fbank(wave, 128), atol=1e-4)


def test_filter_bank_is_that_of_kaldis_own_code():
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions(  # which refuses 128 bins, some of which are empty
        frame_opts=kaldi.FrameExtractionOptions(dither=0.0), mel_opts=kaldi.MelBanksOptions(num_bins=40)
    )
    banks, wave = kaldi.OnlineFbank(options), sound(0.2)
    banks.accept_waveform(SECOND, wave * 2**15)
    banks.input_finished()
    expected = np.stack([banks.get_frame(index) for index in range(banks.num_frames_ready)])
    np.testing.assert_allclose(fbank(wave, bins=40), (expected - 15.41663) / (2 * 6.55582), atol=1e-4)


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
def test_a_padded_batch_is_its_samples_one_by_one(model, side):
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


def test_gradient_checkpointing_runs_each_layer_twice_to_the_same_gradients(model):
    batch = random_batch()
    other = copy.deepcopy(model).train()
    other.activation_checkpointing_enable()
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


def test_drifts_are_those_of_the_reference_and_of_whole_runs():
    model = tiny()
    assert check_drifts(model, partition_model(model), random_batch()), "the features of sounds are not reused"
    assert forward_pass(model).placeholder_tokens == (3,)


def test_a_measurement_with_reuse_runs_whisper_once_and_finds_the_same():
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
    with pytest.raises(ValueError, match="number of audio"):
        prepare(text=text, audio=[sound(0.5)] * 2, return_tensors="pt")


def test_sounds_too_short_and_too_long():
    features = processor().feature_extractor([sound(0.05), sound(1.7)], sampling_rate=SECOND, return_tensors="pt")
    assert features["input_features"].shape == (2, MELS, 100)
    assert features["fbank_features_mask"].sum(1).tolist() == [18, 98]  # of 0.2 and 1 seconds


def test_without_beats_no_filter_bank():
    features = processor(beats=False).feature_extractor(sound(0.5), sampling_rate=SECOND, return_tensors="pt")
    assert set(features) == {"input_features"}


# Official checkpoints


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
