"""A recipe or a model by name, inspected on a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.sample import Audio, Sample
from commit_tuning.errors import UserError, one_line
from commit_tuning.health.inspection import Inspection, inspect_model
from commit_tuning.models.load import load_model, models
from commit_tuning.partition.discover import partition_model
from commit_tuning.train.dataset import ensure_data, open_splits
from commit_tuning.train.model_setup import build_model, precision
from commit_tuning.train.optimizers import build_optimizer
from commit_tuning.train.recipe.load import find_recipe, load_recipe
from commit_tuning.train.recipe.schema import Recipe

SIDE, SECONDS = 224, 1  # of the picture, in pixels, or the sound that a model without data is given


def inspect_target(target: str, settings: Sequence[str]) -> Inspection:
    """Inspect what a name stands for: a recipe as it would be trained, or a model.

    Raises:
        UserError: It is neither, or settings are given for a model.
    """
    folder = os.path.isdir(os.path.expanduser(target))  # noqa: PTH111, PTH112 (they never raise)
    if target not in models() and not folder and _is_recipe(target):
        return _inspect_recipe(load_recipe(target, settings))
    if settings:
        raise UserError(f"{one_line(repr(target))} is a model and takes no settings; those are of a recipe")
    model, processor = load_model(target)
    return inspect_model(model.requires_grad_(True), _empty_batch(processor))


def _is_recipe(target: str) -> bool:
    try:
        find_recipe(target)
    except UserError:
        return False
    return True


def _inspect_recipe(recipe: Recipe) -> Inspection:
    root = ensure_data(recipe.data)
    questions = open_splits(root, recipe.data, recipe.model.name, "cpu", recipe.model.trust_remote_code)["train"]
    model, _ = build_model(recipe.model, "cpu")
    optimizer = build_optimizer(partition_model(model, recipe.model.projector), recipe.train)
    with precision(recipe.model, "cpu"):
        return inspect_model(model, questions.training(list(range(min(4, len(questions))))), optimizer)


def _empty_batch(processor: Any) -> dict[str, Any]:
    """A question about a grey picture, or about silence where the processor takes sounds alone."""
    sample = Sample("0", "fill_in_blank", "What is there?", None, ("nothing",))
    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", None)
    if rate is not None and getattr(processor, "image_processor", None) is None:
        sample = replace(sample, audio=Audio(np.zeros(rate * SECONDS, dtype=np.float32), rate))
    else:
        sample = replace(sample, image=Image.new("RGB", (SIDE, SIDE), (127, 127, 127)))
    return VisionCollator(processor)([sample])
