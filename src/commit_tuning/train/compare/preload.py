"""What a worker of a comparison needs, made once in the process that all workers are forked from."""

import contextlib
import os

import peft  # noqa: F401
import torch

import commit_tuning.train.runner  # noqa: F401
from commit_tuning.errors import UserError
from commit_tuning.train.compare.pool import PRELOAD_RECIPE
from commit_tuning.train.dataset import ensure_data, stored_splits
from commit_tuning.train.recipe.schema import Recipe

torch.set_num_threads(1)  # before anything is computed: a thread pool does not survive a fork
if PRELOAD_RECIPE in os.environ:
    recipe = Recipe.model_validate_json(os.environ[PRELOAD_RECIPE])
    if recipe.data.in_memory:
        with contextlib.suppress(UserError):  # every run says it again, in its own log
            stored_splits(
                ensure_data(recipe.data),
                recipe.data,
                recipe.model.name,
                recipe.train.device,
                recipe.model.trust_remote_code,
            )
