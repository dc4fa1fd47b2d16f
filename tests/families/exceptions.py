"""What a family needs beyond the rules of `shrink` and `inputs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from families.inputs import Raw


@dataclass(frozen=True, kw_only=True)
class Exceptions:
    """One family's needs.

    Attributes:
        changes: Dotted config key to a value, on top of `shrink.tiny`.
        inputs: Makes modality to raw inputs, where no generic image fits.
        counts: Modality to placeholders for one sample, where they are not as many as features.
        prepare: Changes the model after it is built (weights that start at exactly zero, say).
        extra: Takes model and batch, and makes what else belongs in the batch, or replaces what is in it.
        config: Makes the config before it is shrunk, where its class without arguments is not one of this family.
        reason: Why a tiny one cannot be built; then nothing else is looked at.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[Any], dict[str, Raw]] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] | None = None
    extra: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None
    config: Callable[[type[Any]], Any] | None = None
    reason: str | None = None
