"""Sums over the processes of a distributed run: every rank measures the same, and sets the same learning rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


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
