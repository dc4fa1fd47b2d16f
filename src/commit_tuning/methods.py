"""From the settings to the controller that they name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from commit_tuning.config import METHODS, Bounded, CoMMITConfig, Compensated, TrustRegion
from commit_tuning.control.base import Controller
from commit_tuning.control.bounded import BoundedController
from commit_tuning.control.compensated import CompensatedController
from commit_tuning.control.fixed import FixedController
from commit_tuning.control.trust_region import TrustRegionController
from commit_tuning.paper.coordinate_descent import CoordinateDescent
from commit_tuning.paper.literal import LiteralController
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition

FACTOR_UP = 10.0  # Section 5 of the paper: 1e-3 against 1e-4
_ADDED: dict[str, Callable[[ModulePartition], Controller]] = {}


def coordinating_controller(
    config: CoMMITConfig, encoders: Sequence[str], low_precision: Collection[str] = ()
) -> Controller:
    """The controller that `config.controller` names, for these encoders and the language model."""
    match config.controller:
        case TrustRegion():
            return TrustRegionController(config, encoders, low_precision)
        case Compensated():
            return CompensatedController(config, encoders)
        case Bounded():
            return BoundedController(config, encoders)
        case _:
            return LiteralController(config, encoders)


def make_controller(config: CoMMITConfig, partition: ModulePartition) -> Controller:
    """The controller that `config.method` stands for."""
    match config.method:
        case "commit" | "commit-clr":
            return coordinating_controller(config, partition.encoders, partition.low_precision)
        case "feature-cd":
            return CoordinateDescent(partition, partition.encoders, config.switch)
        case "language-cd":
            return CoordinateDescent(partition, (LANGUAGE_MODEL,), config.switch)
        case "language-lr-up" | "encoder-lr-up":
            language = config.method == "language-lr-up"
            return FixedController({m: FACTOR_UP if (m == LANGUAGE_MODEL) == language else 1.0 for m in partition})
        case "constant" | "synced":
            return Controller(partition)
        case added:
            return _ADDED[added](partition)


def add_method(name: str, make: Callable[[ModulePartition], Controller]) -> None:
    """Add what `CoMMITConfig.method` may be, as a plugin does: a controller that sets rates by measures of its own.

    Args:
        name: A new name.
        make: From the modules to the controller of one training.

    Raises:
        ValueError: There is another method of that name.
    """
    if name in METHODS:
        if _ADDED.get(name) is make:
            return
        raise ValueError(f"there is a method {name!r} already; take another name")
    METHODS.append(name)
    _ADDED[name] = make
