"""Loading of the official checkpoints' parameters into our model by name, with a report of what did not match.

SALMONN's own checkpoint holds what was trained: `{"model": {...}}` with the Q-Former in BERT's naming, the norms, the
projector, and LoRA in PEFT's naming. BEATs comes in a file of its own, `{"cfg": {...}, "model": {...}}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.errors import UserError, one_line
from commit_tuning.models.salmonn.configuration import BeatsConfig
from commit_tuning.partition.discover import unwrap

LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "target_modules": r".*\.language_model\..*\.(q_proj|v_proj)",
}
"""What `peft.LoraConfig` takes for the official LoRA: of queries and values, in the language model alone."""

_RENAMINGS = (
    (r"^speech_Qformer\.bert\.embeddings\.LayerNorm\.", "model.window_qformer.qformer.layernorm."),
    (r"^speech_Qformer\.bert\.(.*attention)\.self\.", r"model.window_qformer.qformer.\1.attention."),
    (r"^speech_Qformer\.bert\.", "model.window_qformer.qformer."),
    (r"^speech_query_tokens$", "model.window_qformer.query_tokens"),
    (r"^(ln_speech|ln_audio)\.", r"model.window_qformer.\1."),
    (r"^speech_llama_proj\.", "model.speech_llama_proj."),
    (r"^speech_encoder\.", "model.audio_tower.whisper."),
    (r"^beats\.", "model.audio_tower.beats."),
    (r"^llama_model\.(base_model\.model\.)?lm_head\.", "lm_head."),
    (r"^llama_model\.(base_model\.model\.)?model\.", "model.language_model."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)
_NOT_WEIGHTS = re.compile(r"\.position_ids$|\.rotary_emb\.inv_freq$")  # buffers that are computed here
_NOT_OURS = re.compile(  # the classifier of a fine-tuned BEATs; the first layer's position bias once more
    r"^model\.audio_tower\.beats\.(predictor\.|encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.)"
)
_TRAINED = re.compile(r"^model\.(window_qformer|speech_llama_proj)\.|\.lora_[AB]\.")
_BEATS_FIXED = {"deep_norm": True, "layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True}


@dataclass(frozen=True)
class LoadReport:
    """The result of loading a checkpoint.

    Attributes:
        loaded: Our names of the parameters that were loaded.
        missing: Our names of those that should have been in the checkpoint and were not.
        unexpected: Names in the checkpoint for which the model has nothing, and which were left out.
        wrong_shape: Our names of those that have another shape here, and which were left out, with both shapes.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether everything matched."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        """Write one line for each fault, after the count of what was loaded."""
        faults = {"missing": self.missing, "unexpected": self.unexpected, "wrong shape": self.wrong_shape}
        lines = [f"{fault}: {name}" for fault, names in faults.items() for name in names]
        return "\n".join([f"{len(self.loaded)} parameters loaded", *lines])


def our_name(official: str) -> str:
    """Translate an official parameter's name: `speech_query_tokens` is `model.window_qformer.query_tokens`."""
    for pattern, replacement in _RENAMINGS:
        official = re.sub(pattern, replacement, official)
    return official


def load_trained(model: nn.Module, checkpoint: str | Path | Mapping[str, Any]) -> LoadReport:
    """Load SALMONN's own checkpoint, `salmonn_v1.pth`.

    Args:
        model: A `SalmonnForConditionalGeneration`; for the checkpoint's LoRA, wrapped by PEFT with `LORA`.
        checkpoint: The file, or what is in it, with or without `"model"` around it.

    Raises:
        UserError: The file cannot be read as a checkpoint.
    """
    content = _read(checkpoint)
    return _load(model, content.get("model", content), lambda name: _TRAINED.search(name) is not None)


def load_beats(model: nn.Module, checkpoint: str | Path | Mapping[str, Any]) -> LoadReport:
    """Load an official BEATs checkpoint into the model's BEATs.

    Args:
        model: A `SalmonnForConditionalGeneration` whose `beats_config` is that of `beats_config(checkpoint)`.
        checkpoint: The file, or what is in it.

    Raises:
        UserError: The file cannot be read as a checkpoint.
    """
    state = {f"beats.{name}": value for name, value in _read(checkpoint, "model")["model"].items()}
    return _load(model, state, lambda name: name.startswith("model.audio_tower.beats."))


def beats_config(checkpoint: str | Path | Mapping[str, Any]) -> BeatsConfig:
    """Return the config of an official BEATs checkpoint.

    Raises:
        UserError: It is no checkpoint, or of a form of BEATs that no released encoder has.
    """
    cfg = _read(checkpoint, "cfg")["cfg"]
    others = [f"{key}={cfg.get(key)}" for key, value in _BEATS_FIXED.items() if bool(cfg.get(key)) != value]
    if others or cfg.get("activation_fn") == "glu":
        raise UserError(f"this BEATs has {', '.join(others) or 'activation_fn=glu'}; give a BEATs_iter3 checkpoint")
    known = {*BeatsConfig.attribute_map, *BeatsConfig.__annotations__}
    return BeatsConfig(**{key: value for key, value in cfg.items() if key in known})


def _read(checkpoint: str | Path | Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Read a file of `torch.save`, tensors and plain values alone."""
    content: Any = checkpoint
    if isinstance(checkpoint, str | Path):
        try:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError(f"{checkpoint} cannot be read as a checkpoint: {one_line(error)}") from error
    if not isinstance(content, Mapping) or any(key not in content for key in keys):
        raise UserError(f"not a checkpoint with {' and '.join(keys) or 'parameters'} in it; give the official file")
    return content


@torch.no_grad()
def _load(model: nn.Module, state: Mapping[str, Tensor], due: Callable[[str], bool]) -> LoadReport:
    """Copy what matches; `due` says which of our parameters the checkpoint should hold."""
    own: dict[str, Tensor] = dict(unwrap(model).named_parameters())
    given = {our_name(name): (name, value) for name, value in state.items() if not _NOT_WEIGHTS.search(name)}
    given = {name: pair for name, pair in given.items() if not _NOT_OURS.search(name)}
    shapes = {name: (tuple(pair[1].shape), tuple(own[name].shape)) for name, pair in given.items() if name in own}
    fitting = [name for name, (theirs, ours) in shapes.items() if theirs == ours]
    for name in fitting:
        own[name].copy_(given[name][1])
    return LoadReport(
        loaded=tuple(fitting),
        missing=tuple(name for name in own if due(name) and name not in given),
        unexpected=tuple(official for name, (official, _) in given.items() if name not in own),
        wrong_shape=tuple(f"{n}: {theirs}, here {ours}" for n, (theirs, ours) in shapes.items() if theirs != ours),
    )
