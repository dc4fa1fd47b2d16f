"""Sounds and text to the inputs of SALMONN."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from transformers import BatchFeature, ProcessorMixin, WhisperFeatureExtractor

from commit_tuning.errors import UserError

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
    "{% endfor %}{% endif %}\nASSISTANT:{% else %} "
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

    def __call__(self, raw_speech: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Features of sounds.

        Args:
            raw_speech: A sound or a list of them, each [samples], mono, from -1 to 1.
            return_tensors: `"pt"` or `"np"`.
            kwargs: Of `WhisperFeatureExtractor.__call__`, such as `sampling_rate`, which must be the extractor's.

        Returns:
            `input_features` [sounds, mel bins, frames]; with BEATs, `fbank_features` [sounds, frames, `fbank_bins`] and
            `fbank_features_mask` [sounds, frames], as long as the longest sound.
        """
        sounds = [raw_speech] if np.ndim(raw_speech[0]) == 0 else raw_speech
        shortest = int(self.min_seconds * self.sampling_rate)
        waves = [np.asarray(sound, dtype=np.float32)[: self.n_samples] for sound in sounds]
        waves = [np.pad(wave, (0, max(0, shortest - len(wave)))) for wave in waves]
        features = super().__call__(waves, return_tensors="np", **kwargs)
        data = {"input_features": features["input_features"]}
        if self.fbank_bins:
            banks = [fbank(wave, self.sampling_rate, self.fbank_bins) for wave in waves]
            longest = max(map(len, banks))
            data["fbank_features"] = np.stack([np.pad(bank, ((0, longest - len(bank)), (0, 0))) for bank in banks])
            data["fbank_features_mask"] = np.stack([np.arange(longest) < len(bank) for bank in banks])
        return BatchFeature(data, tensor_type=return_tensors)


def fbank(wave: np.ndarray[Any, Any], sampling_rate: int = 16000, bins: int = 128) -> np.ndarray[Any, Any]:
    """BEATs' filter bank of a sound, normed.

    Args:
        wave: [samples], from -1 to 1.
        sampling_rate: Samples a second.
        bins: Mel bins.

    Returns:
        float32 [frames, bins]; a frame of 25 ms begins every 10 ms, and all are whole.

    Raises:
        UserError: kaldi-native-fbank is not installed.
    """
    try:
        import kaldi_native_fbank as kaldi  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise UserError("BEATs' filter banks need kaldi-native-fbank: pip install kaldi-native-fbank") from None
    options = kaldi.FbankOptions(
        frame_opts=kaldi.FrameExtractionOptions(samp_freq=sampling_rate, dither=0.0),
        mel_opts=kaldi.MelBanksOptions(num_bins=bins),
    )
    banks = kaldi.OnlineFbank(options)
    banks.accept_waveform(sampling_rate, wave * 2.0**15)
    banks.input_finished()
    frames = [banks.get_frame(index) for index in range(banks.num_frames_ready)]
    energies = np.stack(frames) if frames else np.zeros((0, bins), dtype=np.float32)
    normed: np.ndarray[Any, Any] = ((energies - FBANK_MEAN) / (2 * FBANK_STD)).astype(np.float32)
    return normed


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
        """The placeholders of a sound; all sounds have as many, since Whisper hears the silence after them, too."""
        del audio_inputs, audio_idx, kwargs
        return str(self.audio_token) * self.num_audio_tokens
