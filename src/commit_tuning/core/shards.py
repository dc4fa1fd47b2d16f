"""Parameters that are spread over processes: FSDP2 (`fully_shard`) can be measured, other ways are refused."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from commit_tuning.errors import ShardingError


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are `DTensor`s, as FSDP2 makes them."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def gather_anew(model: nn.Module) -> None:
    """Make FSDP2 modules gather their parameters at the next forward pass: what they gathered may have changed."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(value: Any) -> Tensor:
    """A tensor, or all of a `DTensor`."""
    tensor: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return tensor


def local(value: Any) -> Tensor:
    """A tensor, or this rank's part of a `DTensor`; not a copy."""
    tensor: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return tensor


def refuse_unsupported(model: nn.Module) -> None:
    """Refuse what cannot be measured.

    Raises:
        ShardingError: Parameters are DeepSpeed's or FSDP1's.
    """
    for name, parameter in model.named_parameters():
        way = (
            "DeepSpeed ZeRO-3"
            if hasattr(parameter, "ds_id")
            else "FSDP1"
            if type(parameter).__name__ == "FlatParameter"
            else None
        )
        if way:
            raise ShardingError(
                f"parameter {name!r} is sharded by {way}, under which single modules cannot be moved; "
                "use DDP or FSDP2 (fully_shard), see docs/distributed.md"
            )
