"""CoMMIT: coordinated instruction tuning for multimodal large language models (arXiv 2407.20454)."""

from commit_tuning.config import CoMMITConfig
from commit_tuning.coordinator import Coordinator
from commit_tuning.core.partition import ModulePartition
from commit_tuning.errors import UserError
from commit_tuning.models.partition import partition_model
from commit_tuning.monitor import BalanceMonitor

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
