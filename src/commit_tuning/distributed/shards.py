"""Parameters that are spread over processes: FSDP2 (`fully_shard`) can be measured, other ways are refused."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from commit_tuning.errors import ShardingError


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are `DTensor`s, as FSDP2 makes them."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def forget_old_values(model: nn.Module) -> None:
    """Drop what was made of parameters before they changed: casts of an autocast outside, and what FSDP2 gathered.

    Accelerate's autocast keeps casts until the outermost one ends, and a cast does not follow its parameter.
    """
    torch.clear_autocast_cache()
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(value: Any) -> Tensor:
    """A tensor, or all of a `DTensor`."""
    tensor: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return tensor


def local_shard(value: Any) -> Tensor:
    """A tensor, or this rank's part of a `DTensor`; not a copy."""
    tensor: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return tensor


def refuse_unsupported(model: nn.Module, optimizer: Any) -> None:
    """Refuse what cannot be measured.

    Raises:
        ShardingError: Parameters or optimizer are DeepSpeed's, or parameters FSDP1's.
    """
    kinds = {
        f"{kind.__module__}.{kind.__name__}" for part in (optimizer, *model.modules()) for kind in type(part).__mro__
    }
    way = None
    if any("deepspeed" in kind.lower() for kind in kinds) or any(hasattr(p, "ds_id") for p in model.parameters()):
        way = "DeepSpeed"
    elif any(kind.endswith(".FullyShardedDataParallel") for kind in kinds):
        way = "FSDP1"
    if way:
        raise ShardingError(
            f"the model is trained with {way}, under which single modules cannot be moved; use DDP or FSDP2 "
            "(fully_shard), see docs/howto/several-processes.md"
        )
