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
        config: Makes the config before it is shrunk, where its class without arguments is not one of this family.
        changes: Dotted config key to a value, on top of `shrink.tiny`.
        prepare: Changes the model after it is built.
        inputs: Makes modality to raw inputs, where no generic image or sound fits.
        counts: Modality to placeholders for one sample, where they are not as many as features.
        extra: Takes model and batch, and makes what else belongs in the batch, or replaces what is in it.
        refusal: Words of the error with which `partition_model` refuses the family.
        note: How the tiny one differs from its family, where that is more than size.
        reason: Why a tiny one cannot be built; then nothing else is looked at.
    """

    config: Callable[[type[Any]], Any] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] | None = None
    inputs: Callable[[Any], dict[str, Raw]] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    extra: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None
    refusal: str | None = None
    note: str | None = None
    reason: str | None = None


def below(prefix: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same changes, of a config inside the config."""
    return {f"{prefix}.{key}": value for key, value in changes.items()}


def fill(*names: str) -> Callable[[nn.Module], None]:
    """Gives parameters that start at exactly zero, so that no gradient passes them, small normal values."""

    def prepare(model: nn.Module) -> None:
        for name in names:
            nn.init.normal_(model.get_parameter(name), std=0.1)

    return prepare
