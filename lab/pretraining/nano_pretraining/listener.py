"""The nano SALMONN in training: its parts, its inputs, and what a perfect encoder would put in each window's slot."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from commit_lab.nano.models.build import SPECIAL_TOKENS
from commit_tuning.models.salmonn.processing import AUDIO_TOKEN, FBANK_MEAN, FBANK_STD, _filters
from nano_pretraining.forms import Pair
from nano_pretraining.sound_scenes import Scene, SoundBook, mix, windows_of
from nano_pretraining.subject import embeddings_of, encode_texts

QUALITIES = ("high", "low", "loud", "quiet")
_QUALITY_SHARE = 0.4
_ONSET_SCALE, _HEIGHT_SCALE, _NOISE = 0.5, 0.5, 0.03
_FRAME, _HOP, _FFT = 400, 160, 512  # of the filter bank, in samples


@dataclass
class Listener:
    """A nano SALMONN with what its stages need."""

    model: Any
    processor: Any
    book: SoundBook
    seed: int

    @property
    def tower(self) -> nn.Module:
        """Both encoders."""
        return self.model.model.audio_tower

    @property
    def words(self) -> list[str]:
        """The vocabulary, sorted, without the special tokens."""
        return sorted(set(self.processor.tokenizer.get_vocab()) - {*SPECIAL_TOKENS, AUDIO_TOKEN})

    @property
    def windows(self) -> int:
        """Slots of a sound in the language model."""
        return int(self.processor.num_audio_tokens)

    def describe(self) -> dict[str, object]:
        """Describe, for the record, what it is trained on."""
        phrases = sum(map(len, self.book.phrases.values()))
        return {
            "family": "TimGM6mb (pretty_midi), the split of pre-training",
            "concepts": len(self.book.names),
            "clips": self.book.count * len(self.book.names),
            "phrases": phrases,
            "layouts": ["row", "together", "phrase"],
        }

    def encode(self, texts: list[list[Pair]]) -> dict[str, torch.Tensor]:
        """Return token ids, mask and labels of a batch: a sound's slots, prompts and answers; answers are labels."""
        tokenizer = self.processor.tokenizer
        sound = [tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)] * self.windows
        return encode_texts(tokenizer, [tokenizer.bos_token_id, *sound], texts)

    def embeddings_of(self, names: list[str]) -> torch.Tensor:
        """Return the word embedding of every name, with its gradient: (names, width)."""
        return embeddings_of(self.model, self.processor.tokenizer, names)

    def language_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the decoder; its output layer is tied."""
        return list(self.model.model.language_model.parameters())

    def hear(self, scenes: list[Scene], chance: random.Random) -> dict[str, torch.Tensor]:
        """Return the model's inputs of a batch of scenes, as the processor makes them."""
        extractor = self.processor.feature_extractor
        sounds = mix(scenes, self.book, chance)
        waves = np.pad(sounds, ((0, 0), (0, extractor.n_samples - sounds.shape[1])))
        return {
            "input_features": torch.from_numpy(extractor._torch_extract_fbank_features(waves)),
            "fbank_features": _banks(torch.from_numpy(waves), self._transform, self._filters),
        }

    @cached_property
    def _transform(self) -> torch.Tensor:
        return _frame_transform()

    @cached_property
    def _filters(self) -> torch.Tensor:
        return torch.from_numpy(_filters(16000, self.processor.feature_extractor.fbank_bins)).float()

    def symbols(self, scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what sounds in each window.

        Returns:
            Share of each concept and quality, (batch, windows, concepts + 4), and notes that begin and height of the
            melody, (batch, windows, 2).
        """
        seconds = self.model.config.seconds_per_window
        shares = torch.zeros(len(scenes), self.windows, len(self.book.names) + len(QUALITIES))
        notes = torch.zeros(len(scenes), self.windows, 2)
        for row, scene in enumerate(scenes):
            for event in scene.events:
                spot = [window for window in windows_of(event.start, event.seconds, seconds) if window < self.windows]
                shares[row, spot, self.book.names.index(event.name)] = 1.0
                if (phrase := scene.phrase) is not None:
                    for quality in (phrase.pitch, event.level):
                        shares[row, spot, len(self.book.names) + QUALITIES.index(quality)] = 1.0
                    for start, key in phrase.notes:
                        window = min(self.windows - 1, int((event.start + start) / seconds))
                        notes[row, window, 0] += 1
                        notes[row, window:, 1] = (key - 64) / 20
                    notes[row, spot[-1] + 1 :, 1] = 0
        return shares, notes

    def vectors(self, shares: torch.Tensor, notes: torch.Tensor) -> torch.Tensor:
        """Return slot vectors, with gradients to the embeddings, of the :meth:`symbols`: (batch, windows, width)."""
        weight = torch.ones(shares.shape[-1])
        weight[-len(QUALITIES) :] = _QUALITY_SHARE
        return (shares * weight) @ self.embeddings_of([*self.book.names, *QUALITIES]) + notes @ self._codes

    @cached_property
    def _codes(self) -> torch.Tensor:
        """Fixed directions for the beginning of a note and the height of the melody: (2, width)."""
        rng = torch.Generator().manual_seed(7)
        width = self.model.get_input_embeddings().embedding_dim
        codes = functional.normalize(torch.randn(2, width, generator=rng), dim=-1)
        return codes * torch.tensor([[_ONSET_SCALE], [_HEIGHT_SCALE]])

    def inputs(self, input_ids: torch.Tensor, vectors: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return input embeddings of a batch with its sounds as symbols: (batch, length, width)."""
        embedded = self.model.get_input_embeddings()(input_ids).clone()
        embedded[:, 1 : 1 + self.windows] = vectors + _NOISE * torch.randn(vectors.shape, generator=rng)
        return embedded


def _banks(waves: torch.Tensor, transform: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Compute :func:`commit_tuning.models.salmonn.processing.fbank` of a batch: (batch, frames, bins)."""
    real, imaginary = ((waves * 2.0**15).unfold(1, _FRAME, _HOP) @ transform).chunk(2, dim=-1)
    energies = (real.square() + imaginary.square()) @ filters
    return (energies.clamp(min=torch.finfo(torch.float32).eps).log() - FBANK_MEAN) / (2 * FBANK_STD)


def _frame_transform() -> torch.Tensor:
    """Return one matrix from a frame to its spectrum: no mean, pre-emphasis, window, Fourier transform."""
    frame = torch.eye(_FRAME, dtype=torch.float64)
    frame = frame - frame.mean(1, keepdim=True)
    frame = frame - 0.97 * torch.cat([frame[:, :1], frame[:, :-1]], 1)
    spectrum = torch.fft.rfft(frame * torch.hann_window(_FRAME, periodic=False, dtype=torch.float64) ** 0.85, _FFT)
    return torch.cat([spectrum.real, spectrum.imag], 1).float()
