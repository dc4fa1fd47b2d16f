"""SALMONN as a transformers model: two audio encoders, a window-level Q-Former, a projector, a language model.

Sounds pass Whisper's encoder and BEATs side by side, 50 features a second each; both are normed and concatenated. The
Q-Former looks at one window after another and makes its queries' outputs of each, which a linear layer brings to the
width of the language model (Tang et al. 2023, Section 3.1; the official `models/salmonn.py`). PEFT adds the LoRA;
`convert.LORA` is the official configuration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import slice_logits_to_keep

from commit_tuning.errors import BatchError
from commit_tuning.models.salmonn.audio import SalmonnAudioTower, SalmonnWindowQFormer
from commit_tuning.models.salmonn.configuration import SalmonnConfig


class SalmonnPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The common base of both models."""

    config_class = SalmonnConfig
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("WhisperEncoderLayer", "BeatsLayer", "SalmonnWindowQFormer")  # and those of the language model
    _skip_keys_device_placement = ("past_key_values", "cache")
    _keep_in_fp32_modules = ("window_qformer",)  # as in BLIP-2
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SalmonnWindowQFormer):
            initialization.normal_(module.query_tokens, std=self.config.qformer_config.initializer_range)


class SalmonnModel(SalmonnPreTrainedModel):
    """SALMONN without the language model's head."""

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__(config)
        self.audio_tower = SalmonnAudioTower(config)
        self.window_qformer = SalmonnWindowQFormer(config)
        self.speech_llama_proj = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_audio_features(
        self,
        input_features: Tensor,
        fbank_features: Tensor | None = None,
        fbank_features_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Return what the language model hears of sounds.

        Args:
            input_features: Whisper's log-mel spectrograms, [sounds, mel bins, frames]; two frames for each source
                position of Whisper, 3000 in 30 seconds.
            fbank_features: BEATs' filter banks, [sounds, frames, mel bins]; not read by a model without BEATs.
            fbank_features_mask: [sounds, frames], true where a frame is not padding; None for all.
            kwargs: Not read.

        Returns:
            `last_hidden_state` [sounds, audio tokens, width of the Q-Former], and `pooler_output` [sounds * audio
            tokens, width of the language model], the embeddings in the order of their placeholders.
        """
        del kwargs
        features = self.audio_tower(input_features, fbank_features, fbank_features_mask)
        hidden = self.window_qformer(*features)
        embeddings = self.speech_llama_proj(hidden.to(self.speech_llama_proj.weight.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=embeddings.flatten(0, 1))

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        fbank_features: Tensor | None = None,
        fbank_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run it; see `SalmonnForConditionalGeneration.forward`."""
        if input_features is not None and mm_encoder_outputs is not None:
            raise BatchError("give input_features or mm_encoder_outputs, not both")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        heard = None if mm_encoder_outputs is None else mm_encoder_outputs.get("audio")
        if input_features is not None and input_ids is not None:
            heard = self.get_audio_features(input_features, fbank_features, fbank_features_mask)
        if heard is not None and input_ids is not None:
            inputs_embeds = self._placed(heard.pooler_output, input_ids, inputs_embeds)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )

    def _placed(self, heard: Tensor, input_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Put the sounds' embeddings into the text's [samples, length, width] at their placeholders."""
        places = input_ids == self.config.audio_token_id
        count = int(places.sum())
        if count != len(heard):
            raise BatchError(
                f"input_ids has {count} placeholders (token {self.config.audio_token_id}) for {len(heard)} embeddings "
                f"of sounds: a sound needs {self.config.num_audio_tokens}, which SalmonnProcessor puts in"
            )
        heard = heard.to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(places.unsqueeze(-1).to(embeddings.device), heard)


class SalmonnForConditionalGeneration(SalmonnPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """SALMONN: text in answer to text and sounds."""

    mm_encoder_modalities = ("audio",)  # what `mm_encoder_outputs` is read for
    _tied_weights_keys: dict[str, str] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SalmonnConfig) -> None:
        super().__init__(config)
        self.model = SalmonnModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_audio_features(self, input_features: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return what the language model hears of sounds: see `SalmonnModel.get_audio_features`."""
        return self.model.get_audio_features(input_features, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        fbank_features: Tensor | None = None,
        fbank_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Run it.

        Args:
            input_ids: [samples, length], with `num_audio_tokens` placeholders for each sound, in order.
            input_features: Log-mel spectrograms of the sounds: see `SalmonnModel.get_audio_features`.
            fbank_features: Filter banks of the sounds.
            fbank_features_mask: Which of their frames are no padding.
            attention_mask: [samples, length].
            position_ids: [samples, length].
            inputs_embeds: [samples, length, width], in the place of tokens; sounds are not put into it.
            mm_encoder_outputs: `{"audio": output of get_audio_features}`, in the place of sounds.
            labels: [samples, length]; -100 counts for nothing.
            use_cache: Whether to return what later calls can go on from.
            logits_to_keep: How many of the last positions, or which, get logits; 0 for all.
            return_dict: False for a tuple.
            kwargs: Of the language model, such as its cache, and of the loss.

        Raises:
            BatchError: Placeholders and sounds do not match, or BEATs has nothing to hear.
        """
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            fbank_features=fbank_features,
            fbank_features_mask=fbank_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
        cache = outputs["cache"] if "cache" in outputs else outputs.get("past_key_values")  # the same by its old name
        output = CausalLMOutputWithPast(loss, logits, cache, outputs.hidden_states, outputs.attentions)
        return output.to_tuple() if return_dict is False else output
