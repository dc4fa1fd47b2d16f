"""Sounds and text to the inputs of SALMONN."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from transformers import BatchFeature, ProcessorMixin, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

Array = NDArray[Any]

FBANK_MEAN, FBANK_STD = 15.41663, 6.55582
"""Of BEATs' filter banks over AudioSet; they are divided by twice the deviation (official `BEATs.preprocess`)."""

AUDIO_TOKEN = "<SpeechHere>"
"""The placeholder. The marks around it in the official prompts, `<Speech>` and `</Speech>`, are plain text."""

PROMPT_TEMPLATE = f"USER: <Speech>{AUDIO_TOKEN}</Speech> {{}}\nASSISTANT:"
"""The official prompt of one sound, of `configs/config.yaml` and `prompts/train_prompt.json`."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<Speech>" + AUDIO_TOKEN + "</Speech> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '\\nASSISTANT:' }}{% else %} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{{ message['content'][0]['text'] }}"
    "{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The same as a chat template; an answer ends with the end token, as in the official targets."""


class SalmonnFeatureExtractor(WhisperFeatureExtractor):  # type: ignore[misc]
    """Whisper's log-mel spectrogram and BEATs' filter bank of each sound.

    Args:
        fbank_bins: Mel bins of the filter bank; 0 for a model without BEATs.
        min_seconds: Shorter sounds are filled up with silence (official `dataset.py`).
        kwargs: Of `WhisperFeatureExtractor`; `chunk_length` is what of a sound is heard, in seconds.
    """

    model_input_names: ClassVar[list[str]] = ["input_features", "fbank_features", "fbank_features_mask"]

    def __init__(self, fbank_bins: int = 128, min_seconds: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fbank_bins, self.min_seconds = fbank_bins, min_seconds

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Compute features of sounds.

        Args:
            raw_speech: A sound or a list of them, each [samples], mono, from -1 to 1.
            sampling_rate: That of the sounds, which must be the extractor's.
            return_tensors: `"pt"` or `"np"`.
            kwargs: Not read: Whisper's spectrogram always has the length of `chunk_length`.

        Returns:
            `input_features` [sounds, mel bins, frames]; with BEATs, `fbank_features` [sounds, frames, `fbank_bins`] and
            `fbank_features_mask` [sounds, frames], as long as the longest sound.
        """
        del kwargs
        sounds = [raw_speech] if np.ndim(raw_speech[0]) == 0 else raw_speech
        shortest = int(self.min_seconds * self.sampling_rate)
        waves = [np.asarray(sound, dtype=np.float32)[: self.n_samples] for sound in sounds]
        waves = [np.pad(wave, (0, max(0, shortest - len(wave)))) for wave in waves]
        mels = super().__call__(waves, sampling_rate=sampling_rate, return_tensors="np")
        data = {"input_features": mels["input_features"]}
        if self.fbank_bins:
            banks = [fbank(wave, self.sampling_rate, self.fbank_bins) for wave in waves]
            longest = max(map(len, banks))
            data["fbank_features"] = np.stack([np.pad(bank, ((0, longest - len(bank)), (0, 0))) for bank in banks])
            data["fbank_features_mask"] = np.stack([np.arange(longest) < len(bank) for bank in banks])
        return BatchFeature(data, tensor_type=return_tensors)


def fbank(wave: Array, sampling_rate: int = 16000, bins: int = 128) -> Array:
    """Compute BEATs' filter bank of a sound, normed: Kaldi's, as torchaudio computes it.

    With 128 bins the lowest ones are narrower than a bin of the spectrum, and some hold nothing.

    Args:
        wave: [samples], from -1 to 1.
        sampling_rate: Samples a second.
        bins: Mel bins.

    Returns:
        float32 [frames, bins]; a frame of 25 ms begins every 10 ms, and all are whole.
    """
    length, step = sampling_rate * 25 // 1000, sampling_rate * 10 // 1000
    energies = spectrogram(
        wave * 2.0**15,
        window_function(length, "povey", periodic=False),
        frame_length=length,
        hop_length=step,
        fft_length=_fft_length(length),
        power=2.0,
        center=False,
        preemphasis=0.97,
        remove_dc_offset=True,
        mel_filters=_filters(sampling_rate, bins),
        mel_floor=float(np.finfo(np.float32).eps),
        log_mel="log",
    )
    normed: Array = ((energies.T - FBANK_MEAN) / (2 * FBANK_STD)).astype(np.float32)
    return normed


def _fft_length(length: int) -> int:
    """Return the power of two that a frame fits into."""
    return 1 << (length - 1).bit_length()


@cache
def _filters(sampling_rate: int, bins: int) -> Array:
    """Return triangles in mel from 20 Hz to half the sampling rate: [bins of the spectrum, mel bins]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        filters: Array = mel_filter_bank(
            num_frequency_bins=_fft_length(sampling_rate * 25 // 1000) // 2 + 1,
            num_mel_filters=bins,
            min_frequency=20,
            max_frequency=sampling_rate // 2,
            sampling_rate=sampling_rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    return filters


class SalmonnProcessor(ProcessorMixin):  # type: ignore[misc]
    """Feature extractor and tokenizer: each placeholder in a text becomes as many as its sound has embeddings.

    The official code tokenizes what stands before and after the sound apart, as a tokenizer does at a special token.

    Args:
        feature_extractor: A `SalmonnFeatureExtractor`.
        tokenizer: Of the language model, with `audio_token` as a special token.
        chat_template: None for `CHAT_TEMPLATE`.
        audio_token: The placeholder.
        num_audio_tokens: Embeddings of a sound: `SalmonnConfig.num_audio_tokens`.
    """

    audio_kwargs: ClassVar[dict[str, Any]] = {"sampling_rate": 16000}

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        audio_token: str = AUDIO_TOKEN,
        num_audio_tokens: int = 88,
    ) -> None:
        self.audio_token, self.num_audio_tokens = audio_token, num_audio_tokens
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def replace_audio_token(self, audio_inputs: dict[str, Any], audio_idx: int, **kwargs: Any) -> str:
        """Return a sound's placeholders; all sounds have equally many, as Whisper also hears the silence after them."""
        del audio_inputs, audio_idx, kwargs
        return str(self.audio_token) * self.num_audio_tokens
