"""What the laboratory adds to `commit-tuning`: nano datasets, nano and small models, rivals, recipes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from commit_lab.nano.building import MANIFEST, check_built
from commit_lab.nano.models.build import NANO_MODELS, WEIGHTS_FOLDER
from commit_lab.rivals.hypergradient import HypergradientController
from commit_lab.rivals.optimizers import dog, prodigy, schedule_free
from commit_lab.small.models import SMALL_FOLDER, SMALL_MODELS
from commit_tuning.data import tasks
from commit_tuning.data.readers.aokvqa import AOKVQA
from commit_tuning.data.readers.clothoaqa import ClothoAQA
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.data.readers.macs import MACS
from commit_tuning.data.readers.songdescriber import SongDescriber
from commit_tuning.data.readers.textvqa import TextVQA
from commit_tuning.data.tasks import Task, captions, splits
from commit_tuning.methods import add_method
from commit_tuning.models import load as models
from commit_tuning.models.load import NamedModel
from commit_tuning.train import optimizers
from commit_tuning.train.compare.arms import METHOD_LABELS
from commit_tuning.train.recipe import load as recipes

WORD, CAPTION = 4, 20  # new tokens
RECIPES = Path(__file__).parent / "recipes"


def register() -> None:
    """Add everything that a recipe can name."""
    tasks.TASKS.update(TASKS)
    models.MODELS.update({name: _nano(name) for name in NANO_MODELS})
    models.MODELS.update({str(SMALL_FOLDER / name): _small(name) for name in SMALL_MODELS})
    optimizers.OPTIMIZERS.update({"prodigy": prodigy, "dog": dog, "schedule-free": schedule_free})
    recipes.FOLDERS.append(RECIPES)
    add_method("hypergradient", HypergradientController)
    METHOD_LABELS["hypergradient"] = "Hypergradient"


def _maker(module: str) -> Callable[[Path | None, int], Path]:
    """Make the dataset of a module of `commit_lab.nano`, which is imported when it is asked for."""
    name = module.rpartition(".")[2]

    def make(root: Path | None, workers: int) -> Path:
        found: Any = import_module(f"commit_lab.nano.{module}")
        if root is None:
            return Path(getattr(found, f"default_{name}_root")(workers=workers))
        if (root / MANIFEST).is_file():
            check_built(root)
            return root
        return Path(getattr(found, f"build_{name}")(root, workers=workers))

    return make


_AOKVQA = _maker("pictures.nano_aokvqa")
TASKS: dict[str, Task] = {
    "nano-iconqa": Task(splits(IconQA), "iconqa", WORD, _maker("pictures.nano_iconqa")),
    "nano-textvqa": Task(splits(TextVQA), "textvqa", WORD, _maker("pictures.nano_textvqa")),
    "nano-aokvqa": Task(splits(AOKVQA), "aokvqa", WORD, _AOKVQA),
    "nano-aokvqa-direct": Task(splits(AOKVQA, setting="direct_answer"), "aokvqa/direct-answer", WORD, _AOKVQA),
    "nano-clothoaqa": Task(splits(ClothoAQA), "clothoaqa", WORD, _maker("sounds.nano_clothoaqa")),
    "nano-macs": Task(captions(MACS), "macs", CAPTION, _maker("sounds.nano_macs")),
    "nano-song-describer": Task(
        captions(SongDescriber), "song-describer", CAPTION, _maker("sounds.nano_songdescriber")
    ),
}
"""The nano datasets by name."""


def _nano(name: str) -> NamedModel:
    classes = ("commit_lab.nano.models.internvl",) if name == "nano-internvl2" else ()
    return NamedModel(WEIGHTS_FOLDER / name, {"backend": "pil"}, classes)


def _small(name: str) -> NamedModel:
    how = f"make it with `python lab/pretraining/assemble_small.py {name}` (lab/reports/small-scale.md)"
    return NamedModel(SMALL_FOLDER / name, remedy=how)
