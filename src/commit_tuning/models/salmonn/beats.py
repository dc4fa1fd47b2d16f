"""BEATs: a transformer over patches of a filter bank, with the parameter names of the official checkpoints.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", 2022 (arXiv 2212.09058). Layers are normed after the
residual, which deep norm scales (Wang et al. 2022, arXiv 2203.00555); attention has the gated relative position bias of
WavLM (Chen et al. 2021, arXiv 2110.13900).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.nn.utils.parametrize import register_parametrization
from transformers import PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from commit_tuning.errors import BatchError
from commit_tuning.models.salmonn.configuration import BeatsConfig


class BeatsModel(PreTrainedModel):  # type: ignore[misc]
    """Filter banks to features of patches, in time before frequency."""

    config_class = BeatsConfig
    main_input_name = "fbank_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("BeatsLayer",)
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        size, width = config.patch_size, config.embed_dim
        self.patch_embedding = nn.Conv2d(1, width, size, stride=size, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(width)
        self.post_extract_proj = nn.Linear(width, config.hidden_size) if width != config.hidden_size else None
        self.encoder = BeatsEncoder(config)
        self.post_init()

    def forward(self, fbank_features: Tensor, fbank_features_mask: Tensor | None = None) -> BaseModelOutput:
        """Return the weight [outputs, inputs, kernel] from [1, 1, kernel] and a direction of its own shape.

        Args:
            fbank_features: [sounds, frames, mel bins], normed; frames that fill no patch are left out.
            fbank_features_mask: [sounds, frames], true where a frame is not padding.

        Returns:
            `last_hidden_state` [sounds, patches, width]; what stands at patches of padding means nothing.

        Raises:
            BatchError: The filter banks have another number of bins.
        """
        bins, expected = fbank_features.shape[-1], self.config.num_mel_bins
        if bins != expected:
            raise BatchError(f"fbank_features has {bins} mel bins and this BEATs hears {expected}: set fbank_bins")
        patches = self.patch_embedding(fbank_features.to(self.patch_embedding.weight.dtype).unsqueeze(1))
        hidden = self.layer_norm(patches.flatten(2).transpose(1, 2))
        if self.post_extract_proj is not None:
            hidden = self.post_extract_proj(hidden)
        mask = None if fbank_features_mask is None else self.patch_mask(fbank_features_mask)
        return BaseModelOutput(last_hidden_state=self.encoder(hidden, mask))

    def patch_mask(self, mask: Tensor) -> Tensor:
        """Return which patches have no padding frame: [sounds, frames] -> [sounds, patches], boolean."""
        size = self.config.patch_size
        columns = mask.bool().unfold(1, size, size).all(-1)
        return columns.repeat_interleave(self.config.num_mel_bins // size, dim=1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise with Deep norm's gains (its Section 4), the paper's positions, and else transformers' rules."""
        if isinstance(module, ScaledLinear):
            initialization.xavier_normal_(module.weight, gain=module.gain)
            initialization.zeros_(module.bias)
        elif isinstance(module, BeatsAttention):
            initialization.ones_(module.grep_a)
        elif hasattr(module, "parametrizations"):  # the convolution of positions
            parametrizations: Any = module.parametrizations
            weight = parametrizations.weight
            initialization.normal_(
                weight.original1, std=math.sqrt(4 / (self.config.conv_pos * self.config.hidden_size))
            )
            initialization.copy_(weight.original0, weight.original1.norm(dim=(0, 1), keepdim=True))
            initialization.zeros_(module.bias)
        else:
            super()._init_weights(module)


class ScaledLinear(nn.Linear):
    """A linear layer whose first weights deep norm scales."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__(inputs, outputs)
        self.gain = gain


class BeatsEncoder(nn.Module):
    """Positions by a convolution, then the layers; all of them share the first one's relative position bias."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.dropout = config.hidden_dropout
        width, kernel = config.hidden_size, config.conv_pos
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.conv_pos_groups)
        register_parametrization(conv, "weight", WeightNorm())
        self.pos_conv = nn.Sequential(conv, nn.GELU())
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([BeatsLayer(config, index) for index in range(config.num_hidden_layers)])

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weight [outputs, inputs, kernel] from [1, 1, kernel] and a direction of its own shape.

        Args:
            hidden: [sounds, patches, width].
            mask: [sounds, patches], true where a patch is not padding.
        """
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        length = hidden.shape[1]
        hidden = hidden + self.pos_conv(hidden.transpose(1, 2))[..., :length].transpose(1, 2)
        hidden = dropout(self.layer_norm(hidden), self.dropout, self.training)
        bias = None
        padding = None
        if mask is not None:
            padding = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        for layer in self.layers:
            hidden, bias = layer(hidden, bias, padding)
        return hidden


class WeightNorm(nn.Module):
    """Weight norm with a length for each place in the kernel; torch's own has no forward-mode derivative.

    The parameters are named as torch names them: `parametrizations.weight.original0` is the length, the official
    `weight_g`, and `original1` the direction, `weight_v`.
    """

    def forward(self, length: Tensor, direction: Tensor) -> Tensor:
        """Return the weight [outputs, inputs, kernel] from [1, 1, kernel] and a direction of its own shape."""
        return direction * (length / direction.square().sum((0, 1), keepdim=True).sqrt())

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return length and direction of a weight."""
        return weight.norm(dim=(0, 1), keepdim=True), weight.clone()


class BeatsLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Self-attention and two linear layers, each with its residual scaled by deep norm and normed after."""

    def __init__(self, config: BeatsConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25
        self.dropout, self.activation_dropout = config.hidden_dropout, config.activation_dropout
        self.activation = ACT2FN[config.hidden_act]
        self.self_attn = BeatsAttention(config, has_position_bias=index == 0)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        gain = (8 * config.num_hidden_layers) ** -0.25
        self.fc1 = ScaledLinear(width, config.intermediate_size, gain)
        self.fc2 = ScaledLinear(config.intermediate_size, width, gain)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, bias: Tensor | None, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the weight [outputs, inputs, kernel] from [1, 1, kernel] and a direction of its own shape."""
        attended, bias = self.self_attn(hidden, bias, padding)
        attended = dropout(attended, self.dropout, self.training)
        hidden = self.self_attn_layer_norm(hidden * self.residual_scale + attended)
        inner = dropout(self.activation(self.fc1(hidden)), self.activation_dropout, self.training)
        outer = dropout(self.fc2(inner), self.dropout, self.training)
        return self.final_layer_norm(hidden * self.residual_scale + outer), bias


class BeatsAttention(nn.Module):
    """Self-attention in which each query gates the relative position bias."""

    def __init__(self, config: BeatsConfig, has_position_bias: bool) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.buckets, self.max_distance, self.dropout = (
            config.num_buckets,
            config.max_distance,
            config.attention_dropout,
        )
        gain = (8 * config.num_hidden_layers) ** -0.25
        self.q_proj, self.k_proj = (ScaledLinear(width, width, gain=1.0) for _ in range(2))
        self.v_proj, self.out_proj = (ScaledLinear(width, width, gain) for _ in range(2))
        self.grep_linear = nn.Linear(width // self.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))
        if has_position_bias:
            self.relative_attention_bias = nn.Embedding(self.buckets, self.heads)

    def forward(self, hidden: Tensor, bias: Tensor | None, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the weight [outputs, inputs, kernel] from [1, 1, kernel] and a direction of its own shape.

        Args:
            hidden: [sounds, patches, width].
            bias: [heads, patches, patches], of the first layer, which takes None.
            padding: [sounds, patches], added to the scores of a key: 0, or next to minus infinity where it is padding.

        Returns:
            [sounds, patches, width], and the position bias.
        """
        bias = self.position_bias(hidden.shape[1]) if bias is None else bias
        query, key, value = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        update, reset = self.grep_linear(query).unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
        scores = (update * (reset * self.grep_a - 1) + 2) * bias  # WavLM, Section 2.1
        if padding is not None:
            scores = scores + padding[:, None, None]
        rate = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(query, key, value, attn_mask=scores, dropout_p=rate)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), bias

    def position_bias(self, length: int) -> Tensor:
        """Return what the distance from query to key adds to a score: [heads, queries, keys]."""
        place = torch.arange(length, device=self.relative_attention_bias.weight.device)
        bias: Tensor = self.relative_attention_bias(self._bucket(place - place[:, None]))
        return bias.permute(2, 0, 1)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Return T5's buckets: half for keys ahead; in each half, half for one distance each, the rest logarithmic."""
        half = self.buckets // 2
        exact = half // 2
        far = distance.abs()
        ratio = (far.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        logarithmic = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
        return (distance > 0) * half + torch.where(far < exact, far, logarithmic)
