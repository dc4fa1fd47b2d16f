"""Any transformers config, tiny: sizes go by the names of their keys, families that need more say so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 120
PATCHES = 4  # along one side of an image
PATCH = 4  # pixels along one side of a patch
SIDE = PATCHES * PATCH
MEL_BINS, FRAMES = 16, 32  # of a spectrogram
MROPE = [2, 1, 1]  # of half a head: frequencies for time, height and width

SIZES: dict[str, int] = {
    r".*hidden_sizes?|d_model|(.*_)?embed_dim|embedding_dim|width|dim|n_embd|n_state|conv_dim|(.*_)?hidden_dim": WIDTH,
    r".*projection_dim|.*embed_proj_dim|(vision_)?output_dim|output_proj_dims|projector_(in|out)put_dim": WIDTH,
    r"adapter_(in|out)_dim|adapter_input_size|(latent|base|output|downsample)_channels": WIDTH,
    r".*intermediate_size(_mlp)?|(.*_)?ffn_dim|mlp_dim|d_ff|ffn_hidden_size|share_expert_dim": 48,
    r"depth|n_layers?|(.*_)?num_(global_|hidden_)?layers(_.*)?|num_(en|de)coder_layers|((en|de)coder_)?layers": LAYERS,
    r"depths|channel_multiplier|num_res_blocks": 1,
    r"n_heads?|(.*_)?num_heads|(.*_)?attention_heads|index_n_heads": HEADS,
    r"(.*_)?num_(global_)?(key_value|kv)_heads": 2,
    r"(.*_)?head_dim|attention_head_dim|dim_head|d_kv": WIDTH // HEADS,
    r"(.*_)?vocab_size(_.*)?": VOCABULARY,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts": 4,
    r"num_experts_per_tok|moe_k|top_k_experts": 2,
    r"n_shared_experts|moe_num_shared_experts|n_group|topk_group|num_expert_group|first_k_dense_replace": 1,
    r".*_lora_rank|hc_lowrank": 16,
    r"num_query_tokens|num_queries|query_length|latent_query_num|mm_tokens_per_image": 4,
    r"patch_size": PATCH,
    r"image_size": SIDE,
    r"max_im(age|g)_size": 4 * SIDE,
    r"window_size": 2 * PATCH,  # of one merged patch
    r"pos_emb_(height|width)|posemb_grid_size": PATCHES,
    r"num_position_embeddings|position_embedding_size|mm_posemb_size": PATCHES**2,
    r"(num_|n_)?mel_bins|subsampling_conv_channels": MEL_BINS,
    r"max_source_positions": FRAMES // 2,
    r"codebook_size|num_embeddings": 16,
    r"insert_layer_id": 0,
}
RULES = [(re.compile(pattern), size) for pattern, size in SIZES.items()]
DROPOUT = re.compile(r".*(dropout(_.*)?|drop_path(_rate)?|layerdrop)")
MARK = r".*_(start|end)_id|newline_id"
TOKEN = re.compile(rf".*token_(id|index)|{MARK}")
NEEDED = re.compile(rf"(image|video|audio)_token_(id|index)|{MARK}")  # even where the default is None
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "block_types", "layers_block_type", "no_rope_layers")
CHOSEN_LAYERS = (
    "moe_layers",
    "cross_attention_layers",
    "intermediate_layers_indices",
    "fullatt_block_indexes",
    "global_attn_indexes",
)
LEFT_ALONE = ("id2label", "label2id", "quantization_config", "generation_config")
DELETE = object()


def tiny(config: Any, changes: Mapping[str, Any] | None = None) -> Any:
    """A config of the same class with everything small.

    Args:
        config: A transformers config, as its class makes it without arguments.
        changes: Dotted key to a value that wins over the rules; `DELETE` takes the key out, so that its default holds.
    """
    data = config.to_dict()
    _shrink(data, config, {})
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


def _shrink(data: dict[str, Any], config: Any, tokens: dict[str, int]) -> None:
    for key, value in list(data.items()):
        if isinstance(value, dict):
            if key not in LEFT_ALONE:
                _shrink(value, getattr(config, str(key), None), tokens)
        elif isinstance(key, str):
            data[key] = _small(key, value, tokens)
    if "kv_lora_rank" in data:  # keys and values of all heads come from one small state
        data["num_key_value_heads"] = data["num_attention_heads"]
    if "mrope_section" in getattr(config, "ignore_keys_at_rope_validation", ()) and data.get("rope_parameters"):
        data["rope_parameters"].update(mrope_section=MROPE, partial_rotary_factor=1.0)


def _small(key: str, value: Any, tokens: dict[str, int]) -> Any:
    if isinstance(value, list | tuple):
        return _few(key, value)
    if TOKEN.fullmatch(key):
        return value if value is None and not NEEDED.fullmatch(key) else _token(key, tokens)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if DROPOUT.fullmatch(key):
        return 0.0
    if key == "initializer_range":  # some defaults let next to nothing through
        return 0.02 if value < 1e-3 else value
    return _size(key, value)


def _few(key: str, value: Sequence[Any]) -> Any:
    """A list of sizes, of one entry for each layer, or of the numbers of some layers."""
    if key in SPECIAL:
        return SPECIAL[key]
    if key in KINDS_OF_LAYERS:
        return (list(dict.fromkeys(value)) * LAYERS)[:LAYERS]
    if key in CHOSEN_LAYERS:
        return [LAYERS - 1]
    if key == "vision_feature_layer":
        return [-1, -2]
    if key == "deepstack_visual_indexes":
        return list(range(LAYERS))
    if key == "image_grid_pinpoints":  # two tiles
        return [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    return [_size(key, entry) if isinstance(entry, int) else entry for entry in value]


def _size(key: str, value: float) -> float:
    return next((min(int(value), size) for rule, size in RULES if rule.fullmatch(key)), value)


def _token(key: str, tokens: dict[str, int]) -> int:
    name = key.replace("_index", "_id")
    return SPECIAL[name] if name in SPECIAL else tokens.setdefault(name, VOCABULARY - 1 - len(tokens))
