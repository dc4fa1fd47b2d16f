"""Assembly of SALMONN from its parts: a language model, a Whisper and a BEATs, each as it was released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from commit_tuning.errors import UserError
from commit_tuning.models.salmonn.audio import SalmonnWindowQFormer
from commit_tuning.models.salmonn.beats import BeatsModel
from commit_tuning.models.salmonn.configuration import FRAMES_PER_SECOND, SalmonnConfig
from commit_tuning.models.salmonn.convert import LoadReport, beats_config, load_beats
from commit_tuning.models.salmonn.modeling import SalmonnForConditionalGeneration
from commit_tuning.models.salmonn.processing import AUDIO_TOKEN, SalmonnFeatureExtractor, SalmonnProcessor


def assemble(
    language_model: str | Path,
    whisper: str | Path,
    beats: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    seconds: int | None = None,
    **config: Any,
) -> tuple[SalmonnForConditionalGeneration, SalmonnProcessor, LoadReport | None]:
    """Assemble SALMONN before its training: the parts as released; Q-Former, norms and projector fresh.

    What SALMONN's own checkpoint holds comes on top: `load_trained(get_peft_model(model, LoraConfig(**LORA)), file)`.

    Args:
        language_model: Folder or hub name of a causal language model; officially Vicuna-13B-v1.1,
            and Vicuna-7B-v1.5 for the smaller release.
        whisper: Folder or hub name of a Whisper; officially whisper-large-v2.
        beats: An official BEATs checkpoint; officially BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2. None for none.
        dtype: Of all but the Q-Former with its norms, which stays in float32.
        seconds: What is heard of a sound; None for all that Whisper was trained on, officially 30.
        config: Keys of `SalmonnConfig`, such as `seconds_per_window`.

    Returns:
        The model in evaluation mode, nothing frozen (officially Whisper, BEATs and the language model are, under LoRA);
        its processor; what came of loading BEATs.

    Raises:
        UserError: `beats` is no BEATs checkpoint that can be loaded, or Whisper hears no `seconds`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperModel

    tokenizer = _with_placeholder(AutoTokenizer.from_pretrained(language_model, trust_remote_code=False))
    text = AutoModelForCausalLM.from_pretrained(language_model, trust_remote_code=False, dtype=dtype)
    if len(tokenizer) > text.get_input_embeddings().num_embeddings:
        text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder = WhisperModel.from_pretrained(whisper, dtype=dtype).encoder
    extractor = SalmonnFeatureExtractor.from_pretrained(whisper)
    if seconds is not None:
        _shorten(encoder, seconds)
        extractor = SalmonnFeatureExtractor.from_pretrained(whisper, chunk_length=seconds)
    salmonn = SalmonnConfig(
        whisper_config=encoder.config.to_dict(),
        beats_config=None if beats is None else beats_config(beats),
        text_config=text.config.to_dict(),
        audio_token_id=tokenizer.convert_tokens_to_ids(AUDIO_TOKEN),
        **config,
    )
    model = _joined(salmonn, text, encoder, dtype).eval()
    report = None if beats is None else load_beats(model, beats)
    extractor.fbank_bins = 0 if beats is None else salmonn.beats_config.num_mel_bins
    return model, SalmonnProcessor(extractor, tokenizer, num_audio_tokens=salmonn.num_audio_tokens), report


def _with_placeholder(tokenizer: Any) -> Any:
    from tokenizers import AddedToken

    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # the official one
    tokenizer.add_tokens([AddedToken(AUDIO_TOKEN, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def _shorten(encoder: Any, seconds: int) -> None:
    """Let Whisper's encoder hear the first seconds alone: the positions after them go."""
    frames, table = FRAMES_PER_SECOND * seconds, encoder.embed_positions.weight.detach()
    if not 0 < frames <= len(table):
        raise UserError(f"seconds={seconds}: this Whisper hears 1 to {len(table) // FRAMES_PER_SECOND}")
    encoder.config.max_source_positions = encoder.max_source_positions = frames
    encoder.embed_positions = nn.Embedding.from_pretrained(table[:frames].clone())  # type: ignore[no-untyped-call]


def _joined(config: SalmonnConfig, text: Any, encoder: nn.Module, dtype: torch.dtype) -> Any:
    """Build the model around existing parts; only fresh parts are allocated."""
    with torch.device("meta"):
        model = SalmonnForConditionalGeneration(config)
    base, width = model.model, config.text_config.hidden_size
    base.language_model, model.lm_head = text.base_model, text.get_output_embeddings()
    base.audio_tower.whisper = encoder
    if config.beats_config is not None:
        base.audio_tower.beats = BeatsModel(config.beats_config).to(dtype)
    base.window_qformer = SalmonnWindowQFormer(config)
    base.speech_llama_proj = nn.Linear(config.qformer_config.hidden_size, width, dtype=dtype)
    model.generation_config = text.generation_config
    return model
