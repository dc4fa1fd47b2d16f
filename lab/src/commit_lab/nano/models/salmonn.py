"""The nano SALMONN: tokenizer, processor and untrained model, in the sizes of the other nano models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from commit_lab.nano.models.build import INIT, LANGUAGE_MODEL, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from commit_tuning.models.salmonn import SalmonnForConditionalGeneration, SalmonnProcessor

SECONDS = 4
"""What it hears of a sound; the nano datasets' clips last three or four seconds."""

_FRAMES = 50 * SECONDS  # of Whisper's encoder
_WINDOW = 0.2  # seconds: 20 embeddings a sound
_MELS, _FBANK, _PATCH = 40, 32, 8  # four patches every 80 ms: 50 features a second, in step with Whisper's


def build_salmonn_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build the nano tokenizer with the placeholder of a sound."""
    from tokenizers import AddedToken

    from commit_tuning.models.salmonn.processing import AUDIO_TOKEN

    tokenizer = build_tokenizer(words)
    tokenizer.add_tokens([AddedToken(AUDIO_TOKEN, normalized=False, special=True)], special_tokens=True)
    return tokenizer


def build_salmonn_processor(tokenizer: PreTrainedTokenizerFast) -> SalmonnProcessor:
    """Build a processor with log-mel spectrograms and filter banks of `SECONDS` and the nano models' plain prompt.

    Args:
        tokenizer: Of :func:`build_salmonn_tokenizer`.
    """
    from commit_tuning.models.salmonn import SalmonnFeatureExtractor, SalmonnProcessor
    from commit_tuning.models.salmonn.processing import AUDIO_TOKEN

    extractor = SalmonnFeatureExtractor(
        feature_size=_MELS, chunk_length=SECONDS, fbank_bins=_FBANK, min_seconds=float(SECONDS)
    )
    plain = (  # the tokenizer adds a third, the collator drops one: all runs of these weights began with two
        "{{ bos_token }}{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'audio' %}" + AUDIO_TOKEN + " {% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    windows = round(SECONDS / _WINDOW)
    return SalmonnProcessor(extractor, tokenizer, chat_template=plain, num_audio_tokens=windows)


def build_salmonn(vocab_size: int) -> SalmonnForConditionalGeneration:
    """Build Whisper's and BEATs' encoders, a window-level Q-Former, a projection and a Llama, untrained.

    Args:
        vocab_size: Number of tokens; the placeholder of a sound is the last one.
    """
    from commit_tuning.models.salmonn import SalmonnConfig, SalmonnForConditionalGeneration

    config = SalmonnConfig(
        whisper_config={
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 192,
            "decoder_layers": 1,
            "num_mel_bins": _MELS,
            "max_source_positions": _FRAMES,
            "init_std": INIT,
        },
        beats_config={
            "num_mel_bins": _FBANK,
            "patch_size": _PATCH,
            "embed_dim": 48,
            "hidden_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 144,
            "conv_pos": 16,
            "conv_pos_groups": 8,
            "initializer_range": INIT,
        },
        qformer_config={
            "vocab_size": 1,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": INIT,
        },
        text_config={"vocab_size": vocab_size, **LANGUAGE_MODEL},
        audio_token_id=vocab_size - 1,
        seconds_per_window=_WINDOW,
        seconds_stride=_WINDOW,
        initializer_range=INIT,
    )
    return SalmonnForConditionalGeneration(config)
