"""What a worker of a comparison needs, made once in the process that all workers are forked from."""

import contextlib
import os

import peft  # noqa: F401
import torch

import commit_tuning.train.runner  # noqa: F401
from commit_tuning.models.load import model_checksum
from commit_tuning.train.compare.pool import PRELOAD_RECIPE
from commit_tuning.train.dataset import StoredQuestions, ensure_data, open_splits
from commit_tuning.train.recipe.schema import Recipe

torch.set_num_threads(1)  # before anything is computed: a thread pool does not survive a fork
if PRELOAD_RECIPE in os.environ:
    recipe = Recipe.model_validate_json(os.environ[PRELOAD_RECIPE])
    name, trusted = recipe.model.name, recipe.model.trust_remote_code
    with contextlib.suppress(Exception):  # every run says it again, in its own log
        for asked in open_splits(ensure_data(recipe.data), recipe.data, name, recipe.train.device, trusted).values():
            asked.checksum  # noqa: B018 - so that no worker reads all files again
            if isinstance(asked, StoredQuestions):
                asked.fill()
        model_checksum(name)
