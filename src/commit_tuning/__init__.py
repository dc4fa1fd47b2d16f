"""CoMMIT: coordinated instruction tuning for multimodal large language models (arXiv 2407.20454)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commit_tuning.config import CoMMITConfig
    from commit_tuning.coordinator import BalanceMonitor, Coordinator
    from commit_tuning.errors import UserError
    from commit_tuning.partition.discover import partition_model
    from commit_tuning.partition.modules import ModulePartition

__version__ = "0.1.0"

__all__ = [
    "BalanceMonitor",
    "CoMMITConfig",
    "Coordinator",
    "ModulePartition",
    "UserError",
    "__version__",
    "partition_model",
]

_HOME = {
    "BalanceMonitor": "commit_tuning.coordinator",
    "CoMMITConfig": "commit_tuning.config",
    "Coordinator": "commit_tuning.coordinator",
    "ModulePartition": "commit_tuning.partition.modules",
    "UserError": "commit_tuning.errors",
    "partition_model": "commit_tuning.partition.discover",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `commit-tuning --help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
