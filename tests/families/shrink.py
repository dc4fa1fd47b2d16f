"""Any transformers config, tiny: sizes go by the names of their keys, families that need more say so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 120
PATCHES = 4  # along one side of an image

SIZES: dict[str, int] = {
    r"(.*hidden_size|d_model|(encoder_|decoder_)?embed_dim|embedding_dim|width|dim|n_embd|n_state|output_dim|conv_dim"
    r"|(.*)projection_dim|.*embed_proj_dim)": WIDTH,
    r"(.*intermediate_size|(.*_)?ffn_dim|mlp_dim|d_ff|ffn_hidden_size)": 48,
    r"(depth|n_layers?|(.*_)?num_layers|(.*_)?num_hidden_layers(_.*)?|num_(en|de)coder_layers|(en|de)coder_layers)": LAYERS,
    r"(n_heads?|(.*_)?num_heads|(.*_)?attention_heads)": HEADS,
    r"((.*_)?num_(global_)?(key_value|kv)_heads)": 2,
    r"((.*_)?head_dim|attention_head_dim)": WIDTH // HEADS,
    r"((.*_)?vocab_size(_.*)?)": VOCABULARY,
    r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)": 4,
    r"(num_experts_per_tok|moe_k|top_k_experts)": 2,
    r"(n_shared_experts|moe_num_shared_experts|n_group|topk_group|num_expert_group)": 1,
    r"(kv_lora_rank|q_lora_rank)": 16,
    r"(num_query_tokens|num_queries|query_length)": 4,
    r"(num_mel_bins|mel_bins)": 16,
}
RULES = [(re.compile(pattern), size) for pattern, size in SIZES.items()]
DROPOUT = re.compile(r".*(dropout(_.*)?|drop_path(_rate)?|layerdrop)")
TOKEN = re.compile(r".*token_(id|index)")
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "block_types", "layers_block_type")
LEFT_ALONE = ("id2label", "label2id", "quantization_config", "generation_config")
DELETE = object()


def tiny(config: Any, changes: Mapping[str, Any] | None = None) -> Any:
    """A config of the same class with everything small.

    Args:
        config: A transformers config, as its class makes it without arguments.
        changes: Dotted key to a value that wins over the rules; `DELETE` takes the key out, so that its default holds.
    """
    data = config.to_dict()
    _shrink(data, {})
    for path, value in (changes or {}).items():
        *parents, key = path.split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is DELETE:
            target.pop(key, None)
        else:
            target[key] = value
    return type(config).from_dict(data)


def _shrink(data: dict[str, Any], tokens: dict[str, int]) -> None:
    for key, value in list(data.items()):
        if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            _shrink_rope(value)
        elif isinstance(value, dict):
            if key not in LEFT_ALONE:
                _shrink(value, tokens)
        elif key in KINDS_OF_LAYERS and isinstance(value, list):
            data[key] = (list(dict.fromkeys(value)) * LAYERS)[:LAYERS]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            data[key] = _small(key, value, tokens)
    if isinstance(data.get("patch_size"), int) and "image_size" in data:
        side = PATCHES * data["patch_size"]
        data["image_size"] = [side, side] if isinstance(data["image_size"], list | tuple) else side


def _small(key: str, value: float, tokens: dict[str, int]) -> float:
    if TOKEN.fullmatch(key):
        name = key.replace("_index", "_id")
        return SPECIAL[name] if name in SPECIAL else tokens.setdefault(name, VOCABULARY - 1 - len(tokens))
    if DROPOUT.fullmatch(key):
        return 0.0
    for rule, size in RULES:
        if rule.fullmatch(key):
            return min(int(value), size)
    return value


def _shrink_rope(rope: dict[str, Any]) -> None:
    for value in rope.values():
        if isinstance(value, dict):
            _shrink_rope(value)
    if rope.get("mrope_section"):
        rope["mrope_section"] = [2, 1, 1]
