"""Base learning rates by the names that other trainers use, of encoder and projector, or by a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from commit_tuning.control.groups import split_groups
from commit_tuning.errors import ConfigError
from commit_tuning.partition.discover import projector_parameters
from commit_tuning.partition.modules import LANGUAGE_MODEL, ModulePartition

VISION, AUDIO, PROJECTOR, LANGUAGE = "vision_lr", "audio_lr", "projector_lr", "language_model_lr"
ALIASES = {
    "vit_lr": VISION,
    "vision_tower_lr": VISION,
    "audio_tower_lr": AUDIO,
    "aligner_lr": PROJECTOR,
    "merger_lr": PROJECTOR,
    "mm_projector_lr": PROJECTOR,
}
NAMES = (LANGUAGE, VISION, AUDIO, PROJECTOR, *ALIASES)


def base_rates(model: nn.Module, partition: ModulePartition, rates: Mapping[str, float]) -> dict[int, float]:
    """The base learning rate of every trainable parameter that has one of its own.

    Args:
        model: The model of the partition.
        partition: Its modules.
        rates: A rate by name (`vision_lr`, `audio_lr`, `projector_lr`, `language_model_lr`, or an alias: `vit_lr`,
            `vision_tower_lr`, `audio_tower_lr`, `aligner_lr`, `merger_lr`, `mm_projector_lr`), or by a regular
            expression that is searched for in the parameter's name. An expression wins over a name, the first one over
            the others; the projector's rate wins over its encoder's.

    Returns:
        `id` of a parameter to its rate.

    Raises:
        ConfigError: A rate is not a number >= 0, is given twice, names what the model does not have, or an expression
            finds no trainable parameter or is none.
    """
    named, patterns = _sorted_out(rates)
    _check_modules(partition, named)
    projector = projector_parameters(model) if PROJECTOR in named else set()
    found = dict.fromkeys(patterns, False)
    chosen: dict[int, float] = {}
    for module in partition:
        own = named.get(LANGUAGE if module == LANGUAGE_MODEL else f"{module}_lr")
        for name, parameter in partition.named_parameters(module).items():
            hits = [pattern for pattern in patterns if pattern.search(name)]
            found.update(dict.fromkeys(hits, True))
            by_name = named[PROJECTOR] if id(parameter) in projector else own
            rate = patterns[hits[0]] if hits else by_name
            if rate is not None:
                chosen[id(parameter)] = rate
    unused = [pattern.pattern for pattern, used in found.items() if not used]
    if unused:
        raise ConfigError(
            f"learning rate for {unused[0]!r}: no trainable parameter has a name with it, and it is none of "
            f"{', '.join(NAMES)}"
        )
    return chosen


def set_base_rates(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    partition: ModulePartition,
    rates: Mapping[str, float],
) -> None:
    """Split the optimizer's groups in place, by module and base rate, and set those rates; all else is kept.

    Raises:
        ConfigError: As for `base_rates`.
        PartitionError: A scheduler already knows the groups.
    """
    chosen = base_rates(model, partition, rates)

    def kind_of(parameter: nn.Parameter) -> tuple[str, float | None] | None:
        module = partition.module_of(parameter)
        return None if module is None else (module, chosen.get(id(parameter)))

    split_groups(optimizer, kind_of)
    for group in optimizer.param_groups:
        for _, rate in filter(None, map(kind_of, group["params"])):
            if rate is not None:
                group["lr"] = rate


def _sorted_out(rates: Mapping[str, float]) -> tuple[dict[str, float], dict[re.Pattern[str], float]]:
    """Rates by name, aliases resolved, and rates by expression."""
    named: dict[str, float] = {}
    patterns: dict[re.Pattern[str], float] = {}
    for key, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < float("inf"):
            raise ConfigError(f"learning rate {key}={rate!r} must be a finite number >= 0")
        name = ALIASES.get(key, key)
        if name in named:
            raise ConfigError(f"learning rate {key!r} is the same as {name!r}; give one of them")
        if name in NAMES:
            named[name] = rate
            continue
        try:
            patterns[re.compile(key)] = rate
        except re.error as error:
            raise ConfigError(f"learning rate for {key!r}: not a regular expression ({error})") from None
    return named, patterns


def _check_modules(partition: ModulePartition, named: Mapping[str, Any]) -> None:
    for name in named:
        module = name.removesuffix("_lr")
        if name not in (PROJECTOR, LANGUAGE) and module not in partition.encoders:
            raise ConfigError(f"{name} is given, but the model has no encoder {module!r}: {', '.join(partition.names)}")
