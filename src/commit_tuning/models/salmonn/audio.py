"""The path from sounds to the Q-Former's outputs: the two encoders, and the Q-Former that reads them by windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Blip2QFormerModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from commit_tuning.errors import BatchError
from commit_tuning.models.salmonn.beats import BeatsModel
from commit_tuning.models.salmonn.configuration import SalmonnConfig


class SalmonnAudioTower(nn.Module):
    """Whisper's encoder and BEATs, side by side."""

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__()
        self.whisper = WhisperEncoder._from_config(config.whisper_config)
        self.beats = BeatsModel._from_config(config.beats_config) if config.beats_config is not None else None

    def forward(
        self, input_features: Tensor, fbank_features: Tensor | None, fbank_features_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return features of both: [sounds, frames, width], [sounds, patches, width], and the mask of the patches.

        The arguments are those of `SalmonnModel.get_audio_features`.

        Raises:
            BatchError: There is BEATs and nothing for it to hear.
        """
        speech = self.whisper(input_features.to(self.whisper.conv1.weight.dtype)).last_hidden_state
        if self.beats is None:
            return speech, None, None
        if fbank_features is None:
            raise BatchError("this SALMONN has BEATs, which hears fbank_features: take them from SalmonnProcessor")
        audio = self.beats(fbank_features, fbank_features_mask).last_hidden_state
        mask = None if fbank_features_mask is None else self.beats.patch_mask(fbank_features_mask)
        return speech, audio, mask


class SalmonnWindowQFormer(nn.Module):
    """Norms and joins the features of the two encoders, and makes query outputs of each window of them."""

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__()
        self.length, self.stride = config.window
        self.ln_speech = nn.LayerNorm(config.whisper_config.d_model)
        self.ln_audio = nn.LayerNorm(config.beats_config.hidden_size) if config.beats_config is not None else None
        queries = torch.empty(1, config.num_query_tokens, config.qformer_config.hidden_size)
        self.query_tokens = nn.Parameter(nn.init.normal_(queries, std=config.qformer_config.initializer_range))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)

    def forward(self, speech: Tensor, audio: Tensor | None, audio_mask: Tensor | None) -> Tensor:
        """Return features of both: [sounds, frames, width], [sounds, patches, width], and the mask of the patches.

        Args:
            speech: Of Whisper, [sounds, frames, width].
            audio: Of BEATs, [sounds, patches, width].
            audio_mask: [sounds, patches], true where a patch is not padding.

        Returns:
            [sounds, windows * queries, width of the Q-Former].
        """
        features = self._join(speech, audio, audio_mask)
        windows = features.unfold(1, self.length, self.stride).transpose(2, 3)  # [sounds, windows, frames, width]
        queries = self.query_tokens.expand(windows.shape[0] * windows.shape[1], -1, -1)
        outputs = self.qformer(query_embeds=queries, encoder_hidden_states=windows.flatten(0, 1)).last_hidden_state
        joined: Tensor = outputs.reshape(len(speech), -1, outputs.shape[-1])
        return joined

    def _join(self, speech: Tensor, audio: Tensor | None, audio_mask: Tensor | None) -> Tensor:
        """Norm both, fill the shorter one up with zeros, and join them side by side in one feature.

        Patches of padding become zeros, too. So a sound's features are those that the official code gives to it alone;
        in a batch, that leaves there what BEATs makes of padding.
        """
        speech = self.ln_speech(speech.to(self.ln_speech.weight.dtype))
        if audio is None or self.ln_audio is None:
            return speech
        audio = self.ln_audio(audio.to(self.ln_audio.weight.dtype))
        if audio_mask is not None:
            audio = audio.masked_fill(~audio_mask.unsqueeze(-1), 0)
        longest = max(speech.shape[1], audio.shape[1])
        return torch.cat([pad(part, (0, 0, 0, longest - part.shape[1])) for part in (speech, audio)], dim=-1)
