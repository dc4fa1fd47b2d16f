"""What other distributions add: datasets, models, optimizers and recipes.

A distribution names a function without arguments under the entry-point group `commit_tuning.plugins`; it is called
once, before the first look at a registry, and adds to:

- `commit_tuning.data.tasks.TASKS`: datasets by name;
- `commit_tuning.models.load.MODELS`: models by name, each a folder;
- `commit_tuning.train.optimizers.OPTIMIZERS`: optimizers by name;
- `commit_tuning.train.recipe.load.FOLDERS`: folders of recipes;
- `commit_tuning.data.prompts.PROMPTS`: ways to ask;
- `commit_tuning.methods.add_method`: what sets the learning rates.

Example:
    In the `pyproject.toml` of such a distribution::

        [project.entry-points."commit_tuning.plugins"]
        icons = "my_icons:register"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "commit_tuning.plugins"


def load_plugins() -> None:
    """Call what every installed distribution has under `GROUP`; once in a process."""
    for entry in _entries():
        _register(entry)


@cache
def _entries() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


@cache
def _register(entry: EntryPoint) -> None:
    entry.load()()
