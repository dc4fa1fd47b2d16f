"""BEATs and its filter banks against slow forms of what the papers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_salmonn import BINS, SECOND, sound, tiny_beats
from torch import nn
from torch.nn.functional import gelu

from commit_tuning.models.salmonn import BeatsConfig, BeatsModel
from commit_tuning.models.salmonn.processing import fbank


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


@torch.no_grad()
def test_beats_is_what_its_papers_say():
    beats, bank = tiny_beats(), torch.randn(2, 55, BINS)
    mask = torch.arange(55) < torch.tensor([[55], [40]])
    features = beats(bank, mask).last_hidden_state
    assert features.shape == (2, 6, 12)
    torch.testing.assert_close(features[0], slow_beats(beats, bank[0], 6), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[1, :4], slow_beats(beats, bank[1], 4)[:4], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_without_position_bias_equals_that_of_torch():
    attention, hidden = tiny_beats().encoder.layers[0].self_attn, torch.randn(2, 5, 12)
    torchs = nn.MultiheadAttention(12, 3, batch_first=True)
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    torchs.in_proj_weight.copy_(torch.cat([linear.weight for linear in linears]))
    torchs.in_proj_bias.copy_(torch.cat([linear.bias for linear in linears]))
    torchs.out_proj.load_state_dict(attention.out_proj.state_dict())
    expected = torchs(hidden, hidden, hidden, need_weights=False)[0]
    torch.testing.assert_close(attention(hidden, torch.zeros(3, 5, 5), None)[0], expected)


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
    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 40  # it refuses 128, some of which are empty
    banks, wave = kaldi.OnlineFbank(options), sound(0.2)
    banks.accept_waveform(SECOND, wave * 2**15)
    banks.input_finished()
    expected = np.stack([banks.get_frame(index) for index in range(banks.num_frames_ready)])
    np.testing.assert_allclose(fbank(wave, bins=40), (expected - 15.41663) / (2 * 6.55582), atol=1e-4)
