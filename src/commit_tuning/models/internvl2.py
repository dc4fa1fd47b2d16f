"""InternVL2's original checkpoint (Chen et al. 2024, arXiv 2404.16821) as a native model of transformers.

OpenGVLab/InternVL2-8B comes with code of its own, which is not run here: its tensors are read from the files and
renamed. InternLM2 is a Llama whose queries, keys and values lie in one matrix, group by group. Configuration,
tokenizer and processor are taken from a checkpoint of the same architecture that was released natively, which for the
8B model is OpenGVLab/InternVL2_5-8B-MPO-hf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from commit_tuning.errors import UserError

MAX_TILES = 6
"""Of a picture, beside the whole of it, as in InternVL's fine-tuning scripts (`max_dynamic_patch`)."""

_RENAMINGS = (
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.output\.", "lm_head."),
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)


def convert_internvl2(original: str | Path, native: str | Path, output: str | Path) -> None:
    """Write a native model and its processor into a folder that recipes can name.

    Args:
        original: Folder with the original `*.safetensors`.
        native: Folder or hub name of a native InternVL of the same architecture; of its weights none are read.
        output: Folder to write.

    Raises:
        UserError: No such files, or tensors that do not fit the architecture.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoProcessor, GenerationConfig

    files = sorted(Path(original).glob("*.safetensors"))
    if not files:
        raise UserError(f"{original} holds no *.safetensors; download the original checkpoint into it")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(load_file(file))
    model = load_internvl2(AutoConfig.from_pretrained(native, trust_remote_code=False), state)
    model.generation_config = GenerationConfig.from_pretrained(native)  # knows where an answer ends
    model.save_pretrained(output)
    processor = AutoProcessor.from_pretrained(native, trust_remote_code=False)
    processor.image_processor.max_patches = MAX_TILES
    processor.save_pretrained(output)


def load_internvl2(config: Any, state: Mapping[str, Tensor]) -> Any:
    """Load an original checkpoint's tensors into the native model, in their number format.

    Args:
        config: `InternVLConfig` with a Llama as its language model.
        state: Original names to tensors.

    Raises:
        UserError: A tensor is missing, is left over, or has another shape.
    """
    from transformers import InternVLForConditionalGeneration
    from transformers.initialization import no_init_weights

    renamed = {name: tensor for key, value in state.items() for name, tensor in _native(key, value, config.text_config)}
    with no_init_weights():  # memory that is never touched: all of it is exchanged
        model = InternVLForConditionalGeneration(config)
    due = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = sorted(n for n in {*due, *renamed} if n not in due or n not in renamed or due[n] != renamed[n].shape)
    if wrong:
        raise UserError(
            f"{wrong[0]!r} is missing, unknown or of another shape, {len(wrong)} such in all: not this model"
        )
    model.load_state_dict(renamed, assign=True, strict=False)
    return model


def _native(name: str, value: Tensor, text: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield an original tensor's native names and values; three for joined queries, keys and values."""
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    if ".attn.qkv." in name:
        for part, tensor in zip("qkv", value.chunk(3), strict=True):
            yield name.replace(".attn.qkv.", f".attention.{part}_proj."), tensor.contiguous()
    elif ".attention.wqkv." in name:
        group = text.num_attention_heads // text.num_key_value_heads
        # groups, in each its queries, one key and one value, then the width of a head
        heads = value.view(text.num_key_value_heads, group + 2, -1, value.shape[-1])
        parts = {"q": heads[:, :group], "k": heads[:, -2], "v": heads[:, -1]}
        for part, tensor in parts.items():
            yield name.replace(".attention.wqkv.", f".self_attn.{part}_proj."), tensor.reshape(-1, value.shape[-1])
    else:
        yield name, value
