"""From the settings to the controller that they name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from commit_tuning.config import CoMMITConfig
from commit_tuning.control.base import Controller
from commit_tuning.control.bounded import BoundedController
from commit_tuning.control.compensated import CompensatedController
from commit_tuning.control.fixed import FixedController
from commit_tuning.control.hypergradient import HypergradientController
from commit_tuning.control.trust_region import TrustRegionController
from commit_tuning.paper.coordinate_descent import CoordinateDescent
from commit_tuning.paper.literal import LiteralController
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition

FACTOR_UP = 10.0  # Section 5 of the paper: 1e-3 against 1e-4


def coordinating_controller(
    config: CoMMITConfig, encoders: Sequence[str], low_precision: Collection[str] = ()
) -> Controller:
    """The controller that `config.controller` names, for these encoders and the language model."""
    match config.controller:
        case "literal":
            return LiteralController(config, encoders)
        case "bounded":
            return BoundedController(config, encoders)
        case "compensated":
            return CompensatedController(config, encoders)
        case _:
            return TrustRegionController(config, encoders, low_precision)


def make_controller(config: CoMMITConfig, partition: ModulePartition) -> Controller:
    """The controller that `config.method` stands for."""
    match config.method:
        case "commit" | "commit-clr":
            return coordinating_controller(config, partition.encoders, partition.low_precision)
        case "hypergradient":
            return HypergradientController(partition, config.kappa_bound)
        case "feature-cd":
            return CoordinateDescent(partition, partition.encoders, config)
        case "language-cd":
            return CoordinateDescent(partition, (LANGUAGE_MODEL,), config)
        case "language-lr-up" | "encoder-lr-up":
            language = config.method == "language-lr-up"
            return FixedController({m: FACTOR_UP if (m == LANGUAGE_MODEL) == language else 1.0 for m in partition})
        case _:
            return Controller(partition)
