"""InternVL2's original tensors in the native model: names by the official converter, values by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from commit_tuning.errors import UserError
from commit_tuning.models.internvl2 import load_internvl2


def config():
    from transformers import InternVLConfig

    vision = {
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": [8, 8], "patch_size": [4, 4], "attention_bias": True,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 20,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    return InternVLConfig(vision_config=vision, text_config=text, image_token_id=19, tie_word_embeddings=False)


def original() -> dict[str, Tensor]:
    """A checkpoint with the names of OpenGVLab/InternVL2-8B."""
    vision, text = "vision_model.encoder.layers.0.", "language_model.model.layers.0."
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, 8),
        "vision_model.embeddings.position_embedding": (1, 5, 8),
        "vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4),
        "vision_model.embeddings.patch_embedding.bias": (8,),
        f"{vision}ls1": (8,),
        f"{vision}ls2": (8,),
        f"{vision}attn.qkv.weight": (24, 8),
        f"{vision}attn.qkv.bias": (24,),
        **{f"{vision}{name}.{kind}": (8, 8)[: 2 if kind == "weight" and name == "attn.proj" else 1]
           for name in ("attn.proj", "norm1", "norm2") for kind in ("weight", "bias")},
        f"{vision}mlp.fc1.weight": (12, 8),
        f"{vision}mlp.fc1.bias": (12,),
        f"{vision}mlp.fc2.weight": (8, 12),
        f"{vision}mlp.fc2.bias": (8,),
        "mlp1.0.weight": (32,),
        "mlp1.0.bias": (32,),
        "mlp1.1.weight": (8, 32),
        "mlp1.1.bias": (8,),
        "mlp1.3.weight": (8, 8),
        "mlp1.3.bias": (8,),
        "language_model.model.tok_embeddings.weight": (20, 8),
        f"{text}attention.wqkv.weight": (16, 8),
        f"{text}attention.wo.weight": (8, 8),
        f"{text}feed_forward.w1.weight": (12, 8),
        f"{text}feed_forward.w2.weight": (8, 12),
        f"{text}feed_forward.w3.weight": (12, 8),
        f"{text}attention_norm.weight": (8,),
        f"{text}ffn_norm.weight": (8,),
        "language_model.model.norm.weight": (8,),
        "language_model.output.weight": (20, 8),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_every_tensor_has_its_place():
    state = original()
    found = dict(load_internvl2(config(), state).named_parameters())
    for ours, theirs in {
        "lm_head.weight": "language_model.output.weight",
        "model.language_model.layers.0.mlp.up_proj.weight": "language_model.model.layers.0.feed_forward.w3.weight",
        "model.vision_tower.encoder.layer.0.lambda_2": "vision_model.encoder.layers.0.ls2",
        "model.multi_modal_projector.linear_2.weight": "mlp1.3.weight",
    }.items():
        assert torch.equal(found[ours], state[theirs])


def test_queries_keys_and_values_by_hand():
    state = original()
    # heads of width 2, in two groups of two queries, a key and a value: rows 0-3 q, 4-5 k, 6-7 v, then again
    state["language_model.model.layers.0.attention.wqkv.weight"] = torch.arange(16.0)[:, None].expand(16, 8).clone()
    found = dict(load_internvl2(config(), state).named_parameters())
    attention = "model.language_model.layers.0.self_attn."
    rows = {part: found[f"{attention}{part}_proj.weight"][:, 0].tolist() for part in "qkv"}
    assert rows == {"q": [0, 1, 2, 3, 8, 9, 10, 11], "k": [4, 5, 12, 13], "v": [6, 7, 14, 15]}
    joined = state["vision_model.encoder.layers.0.attn.qkv.weight"]
    assert torch.equal(found["model.vision_tower.encoder.layer.0.attention.k_proj.weight"], joined[8:16])


def test_internvl2_runs_is_stored_and_refuses_other_weights(tmp_path):
    state = original()
    model = load_internvl2(config(), state)
    ids = torch.tensor([[19, 4, 5]])
    assert model(input_ids=ids, pixel_values=torch.randn(1, 3, 8, 8)).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    again = dict(type(model).from_pretrained(tmp_path).named_parameters())
    assert all(torch.equal(again[name], parameter) for name, parameter in model.named_parameters())
    with pytest.raises(UserError, match=r"'lm_head\.weight' is missing, unknown or of another shape, 1 such"):
        load_internvl2(config(), {n: v for n, v in state.items() if n != "language_model.output.weight"})
