"""Several processes that train together: sums over their ranks, and parameters that are spread over them.

Every rank measures the same and sets the same learning rates. FSDP2 (`fully_shard`) can be measured, other ways to
spread parameters are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from commit_tuning.errors import ShardingError


def several_ranks() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Every value summed over all ranks; every rank has to call it at the same place.

    Args:
        values: Of this rank; as many on every rank.
        device: Where the process group can reduce a tensor, i.e. the model's.
    """
    if not several_ranks():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64).to(device)
    dist.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def least_over_ranks(value: int, device: torch.device) -> int:
    """The least of all ranks' values."""
    if not several_ranks():
        return value
    least = torch.tensor(value, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return int(least)


def sum_tensors_over_ranks(tensors: Sequence[Tensor]) -> None:
    """The same for tensors, in place."""
    if several_ranks():
        for tensor in tensors:
            dist.all_reduce(tensor)


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
