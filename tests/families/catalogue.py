"""The families: found by what their `forward` takes, and what each needs beyond the rules."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from families.exceptions import Exceptions
from families.exceptions_a import EXCEPTIONS as A
from families.exceptions_b import EXCEPTIONS as B
from families.exceptions_c import EXCEPTIONS as C
from families.exceptions_d import EXCEPTIONS as D
from families.inputs import generic_inputs, make_batch
from families.shrink import tiny

EXCEPTIONS = {**A, **B, **C, **D}


@cache
def generation_classes() -> dict[str, type[Any]]:
    """Class name to class, of all generation classes whose `forward` takes `mm_encoder_outputs`."""
    found = {}
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if "mm_encoder_outputs" in path.read_text(encoding="utf-8"):
            module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
            found.update({name: c for name, c in vars(module).items() if _is_family(c, module.__name__)})
    return found


def _is_family(candidate: Any, module: str) -> bool:
    return (
        inspect.isclass(candidate)
        and candidate.__module__ == module
        and issubclass(candidate, transformers.PreTrainedModel)
        and issubclass(candidate, transformers.GenerationMixin)
        and "mm_encoder_outputs" in inspect.signature(candidate.forward).parameters
    )


def family_class(name: str) -> type[Any]:
    """The class of a name, of those found or of transformers' other ones."""
    name = name.split(" ")[0]  # what follows says which variant
    return generation_classes().get(name) or getattr(transformers, name)


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny random model of a family, in training mode, and a batch for it."""
    needs, cls = EXCEPTIONS.get(name, Exceptions()), family_class(name)
    torch.manual_seed(0)
    config = needs.config(cls) if needs.config else cls.config_class()
    model = cls(tiny(config, needs.changes)).train()
    if needs.prepare:
        needs.prepare(model)
    inputs = needs.inputs(model) if needs.inputs else generic_inputs(model)
    batch = make_batch(model, inputs, needs.counts)
    return model, {**batch, **(needs.extra(model, batch) if needs.extra else {})}
