"""Whether an error says that memory ran out, on any device."""

from __future__ import annotations

import gc

import torch

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")  # of devices without an error of their own


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is one of memory: PyTorch's own, its CPU allocator's, Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


def release_memory() -> None:
    """Give back what is no longer held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
