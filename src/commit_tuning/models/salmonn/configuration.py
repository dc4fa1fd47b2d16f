"""The sizes of SALMONN and of its BEATs encoder, by default those of the official 13B model."""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar

from transformers import AutoConfig, Blip2QFormerConfig, PreTrainedConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec

FRAMES_PER_SECOND = 50
"""Of Whisper's encoder: 100 mel frames a second, every two made one."""


class BeatsConfig(PreTrainedConfig):  # type: ignore[misc]
    """BEATs (Chen et al. 2022, arXiv 2212.09058) as released: deep norm, gated relative position bias.

    The defaults are those of the BEATs_iter3 checkpoints, 90 million parameters. Their decay of gradients from layer to
    layer and their layer drop, which are matters of pre-training, are left out.

    Attributes:
        num_mel_bins: Of a filter bank frame; a multiple of `patch_size`.
        patch_size: Bins and frames of a square patch.
        embed_dim: Width of a patch before it is projected to `hidden_size`.
        conv_bias: Whether the patch embedding has a bias.
        conv_pos: Kernel of the convolution that tells positions, in patches.
        conv_pos_groups: Its groups.
        num_buckets: Of the relative position bias, both directions together.
        max_distance: From which on all distances share a bucket, in patches.
    """

    model_type = "beats"
    base_config_key = "beats_config"
    attribute_map: ClassVar[dict[str, str]] = {
        "encoder_layers": "num_hidden_layers",
        "encoder_embed_dim": "hidden_size",
        "encoder_ffn_embed_dim": "intermediate_size",
        "encoder_attention_heads": "num_attention_heads",
        "activation_fn": "hidden_act",
        "dropout": "hidden_dropout",
        "input_patch_size": "patch_size",
    }

    num_mel_bins: int = 128
    patch_size: int = 16
    embed_dim: int = 512
    conv_bias: bool = False
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    initializer_range: float = 0.02


class SalmonnConfig(PreTrainedConfig):  # type: ignore[misc]
    """SALMONN: Whisper and BEATs, a window-level Q-Former, a projector, a language model of the Llama family.

    The official values: Whisper-large-v2, BEATs, two layers of a BERT-sized Q-Former with one query for each window of
    a third of a second, Vicuna-13B with two more tokens, `[PAD]` and the placeholder.

    Attributes:
        whisper_config: Of a whole Whisper, of which the encoder is taken.
        beats_config: None for a model that has Whisper alone.
        qformer_config: Its `encoder_hidden_size` follows from the two encoders.
        text_config: Of any causal language model that transformers has.
        audio_token_id: The placeholder `<SpeechHere>`; `num_audio_tokens` of them stand for one sound.
        num_query_tokens: Of the Q-Former, for each window.
        seconds_per_window: Length of a window; official `second_per_window`.
        seconds_stride: From the start of a window to the next; official `second_stride`.
    """

    model_type = "salmonn"
    attribute_map: ClassVar[dict[str, str]] = {"audio_token_index": "audio_token_id"}
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "whisper_config": SubConfigSpec(
            WhisperConfig,
            init_kwargs={
                "d_model": 1280,
                "encoder_layers": 32,
                "encoder_attention_heads": 20,
                "encoder_ffn_dim": 5120,
                "decoder_layers": 32,
                "decoder_attention_heads": 20,
                "decoder_ffn_dim": 5120,
            },
        ),
        "beats_config": SubConfigSpec(BeatsConfig, optional=True),
        "qformer_config": SubConfigSpec(
            Blip2QFormerConfig, init_kwargs={"num_hidden_layers": 2, "cross_attention_frequency": 1}
        ),
        "text_config": SubConfigSpec(
            AutoConfig,
            model_type="llama",
            init_kwargs={
                "vocab_size": 32002,
                "hidden_size": 5120,
                "intermediate_size": 13824,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
            },
        ),
    }

    whisper_config: Any = None
    beats_config: Any = field(default_factory=dict)
    qformer_config: Any = None
    text_config: Any = None
    audio_token_id: int = 32001
    num_query_tokens: int = 1
    seconds_per_window: float = 0.333333
    seconds_stride: float = 0.333333
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Make configs of dicts, and what follows from them."""
        super().__post_init__(**kwargs)
        beats_width = self.beats_config.hidden_size if self.beats_config is not None else 0
        self.qformer_config.encoder_hidden_size = self.whisper_config.d_model + beats_width
        self.tie_word_embeddings = getattr(self.text_config, "tie_word_embeddings", False)

    @property
    def window(self) -> tuple[int, int]:
        """Length and stride of the Q-Former's windows, in frames of Whisper's encoder; official 17 and 17."""
        return round(FRAMES_PER_SECOND * self.seconds_per_window), round(FRAMES_PER_SECOND * self.seconds_stride)

    @property
    def num_audio_tokens(self) -> int:
        """Placeholders for one sound, which is always as long as Whisper hears: official 88 for 30 seconds."""
        length, stride = self.window
        frames: int = self.whisper_config.max_source_positions
        return ((frames - length) // stride + 1) * self.num_query_tokens
