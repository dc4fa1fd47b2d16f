"""CoMMIT: coordinated instruction tuning for multimodal large language models (arXiv 2407.20454)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commit_tuning.config import (
        Bounded,
        CoMMITConfig,
        Compensated,
        DriftPenalty,
        LiteralEq8,
        Lookahead,
        PreviousStep,
        Probe,
        Switch,
        TrustRegion,
    )
    from commit_tuning.coordinator import BalanceMonitor, Coordinator
    from commit_tuning.errors import UserError
    from commit_tuning.partition.discover import partition_model
    from commit_tuning.partition.modules import ModulePartition

__version__ = "0.1.0"

__all__ = [
    "BalanceMonitor",
    "Bounded",
    "CoMMITConfig",
    "Compensated",
    "Coordinator",
    "DriftPenalty",
    "LiteralEq8",
    "Lookahead",
    "ModulePartition",
    "PreviousStep",
    "Probe",
    "Switch",
    "TrustRegion",
    "UserError",
    "__version__",
    "partition_model",
]

_HOME = {
    "BalanceMonitor": "commit_tuning.coordinator",
    "Coordinator": "commit_tuning.coordinator",
    "ModulePartition": "commit_tuning.partition.modules",
    "UserError": "commit_tuning.errors",
    "partition_model": "commit_tuning.partition.discover",
}  # all others: config


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `commit-tuning --help` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME.get(name, "commit_tuning.config")), name)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
