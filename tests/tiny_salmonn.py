"""A tiny random SALMONN, a batch for it, its processor, sounds."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from commit_tuning.models.salmonn import (
    BeatsConfig,
    BeatsModel,
    SalmonnConfig,
    SalmonnFeatureExtractor,
    SalmonnForConditionalGeneration,
    SalmonnProcessor,
)

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


def tiny_beats():
    torch.manual_seed(0)
    beats = BeatsModel(BeatsConfig(**BEATS)).eval()
    for parameter in beats.parameters():  # gains of one and biases of zero would hide mistakes
        nn.init.normal_(parameter, std=0.4)
    return beats
