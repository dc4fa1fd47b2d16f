"""The families, found in the sources of transformers, and a tiny model and batch of each."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from families import cut_images, image_patches, out_of_reach, sounds, whole_images
from families.exceptions import Exceptions
from families.inputs import generic_inputs, make_batch
from families.shrink import tiny

EXCEPTIONS: dict[str, Exceptions] = {
    name: exceptions
    for group in (whole_images, cut_images, image_patches, sounds, out_of_reach)
    for name, exceptions in group.EXCEPTIONS.items()
}
# What is not found: no `mm_encoder_outputs`, so that the whole model runs each time; BLIP-2 over an encoder-decoder;
# the one that is not of transformers.
OTHERS = (
    "AudioFlamingo3ForConditionalGeneration",
    "Blip2ForConditionalGeneration (T5)",
    "Florence2ForConditionalGeneration",
    "GraniteSpeechForConditionalGeneration",
    "Kosmos2ForConditionalGeneration",
    "MllamaForConditionalGeneration",
    "Phi4MultimodalForCausalLM",
    "Qwen2AudioForConditionalGeneration",
    "SalmonnForConditionalGeneration",
    "VoxtralForConditionalGeneration",
)
OURS = {"SalmonnForConditionalGeneration": "commit_tuning.models.salmonn"}
CLASS = re.compile(r"^class (\w+)\(([^)]*)\):\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
FORWARD = re.compile(r"def forward\((.*?)\) ->", re.DOTALL)


@cache
def found() -> dict[str, str]:
    """Generation classes whose `forward` takes `labels` and `mm_encoder_outputs`, to their modules, none imported."""
    modules: dict[str, str] = {}
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        for name, bases, body in CLASS.findall(source) if "mm_encoder_outputs" in source else ():
            is_alias = any(base in modules for base in bases.split(", "))
            if is_alias or ("GenerationMixin" in bases and _takes(body, "labels", "mm_encoder_outputs")):
                modules[name] = f"transformers.models.{path.parent.name}.{path.stem}"
    return modules


def _takes(body: str, *parameters: str) -> bool:
    forward = FORWARD.search(body)
    return forward is not None and {*parameters} <= {*re.findall(r"\w+", forward[1])}


def families() -> list[str]:
    """The names of all families, found or named here; what follows a class in one says which variant."""
    return [*found(), *OTHERS]


def needs(name: str) -> Exceptions:
    """What a family needs beyond the rules."""
    return EXCEPTIONS.get(name, Exceptions())


def build_model(name: str) -> nn.Module:
    """A tiny random model of a family, in training mode."""
    name_of_class, own = name.split(" ", maxsplit=1)[0], needs(name)
    module = {**found(), **OURS}.get(name_of_class)
    cls: Any = getattr(importlib.import_module(module) if module else transformers, name_of_class)
    torch.manual_seed(0)
    config = own.config(cls) if own.config else cls.config_class()
    model: nn.Module = cls(tiny(config, own.changes)).train()
    if own.prepare:
        own.prepare(model)
    return model


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny random model of a family and a batch for it."""
    model, own = build_model(name), needs(name)
    inputs = own.inputs(model) if own.inputs else generic_inputs(model)
    batch = make_batch(model, inputs, own.counts)
    return model, {**batch, **(own.extra(model, batch) if own.extra else {})}
