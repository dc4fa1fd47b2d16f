"""How a tower starts: the first generation from nothing, the second from one of the first, which knows icons.

On icons and words at once a fresh tower stays at chance for thousands of steps; one that knows icons learns to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from commit_lab.nano.models.load import load_nano
from nano_pretraining.subject import Nano

if TYPE_CHECKING:
    from torch import nn

TOWERS = {"nano-llava-v2": "nano-llava", "nano-blip2-v2": "nano-blip2", "nano-internvl2": "nano-blip2"}
_AS_INTERNVL = {
    "class_embedding": "cls_token",
    "position_embedding": "position_embeddings",
    "patch_embedding.": "patch_embeddings.projection.",
    "encoder.layers.": "encoder.layer.",
    "self_attn.projection": "attention.projection_layer",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
}
_PARTS = tuple(f"attention.{part}_proj" for part in "qkv")


def start_tower(nano: Nano) -> None:
    """Give a model of the second generation the tower that :data:`TOWERS` names; one of the first knows places alone.

    InternVL's has a layer more, which stays fresh and nearly the identity (layer scale), and no norm at the end.
    """
    if nano.name not in TOWERS:
        _place_positions(nano)
        return
    old = Nano(TOWERS[nano.name], *load_nano(TOWERS[nano.name]), nano.book, nano.seed)
    if nano.family == old.family:
        nano.tower.load_state_dict(old.tower.state_dict())
    else:
        _as_internvl(nano.tower, old.tower.state_dict())


def _place_positions(nano: Nano) -> None:
    """Start the tower's position embeddings as two-dimensional sines and cosines."""
    hidden = nano.tower.config.hidden_size
    side = nano.patches_per_side
    angles = torch.arange(side)[:, None] * 0.375 * 2 ** (torch.arange(hidden // 4) * 16 / hidden)
    line = 0.5 * torch.cat([angles.sin(), angles.cos()], 1)
    down, across = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    plane = torch.cat([down, across], 2).flatten(0, 1)
    target = nano.position_table
    with torch.no_grad():
        target[1:] = plane


@torch.no_grad()
def _as_internvl(tower: nn.Module, blip2: dict[str, torch.Tensor]) -> None:
    """Rename BLIP-2's parameters, cut its joint projection in three, and open the gates of its layers."""
    found = tower.state_dict()
    for key, value in blip2.items():
        name = key
        for old, new in _AS_INTERNVL.items():
            name = name.replace(old, new)
        if ".qkv." in name:
            for part, piece in zip(_PARTS, value.chunk(3), strict=True):
                found[name.replace("self_attn.qkv", part)].copy_(piece)
        elif not name.startswith("post_layernorm"):
            found[name].copy_(value)
            layer = name.rpartition(".mlp.fc1.")[0]
            if layer:
                found[f"{layer}.lambda_1"].fill_(1.0)
                found[f"{layer}.lambda_2"].fill_(1.0)
