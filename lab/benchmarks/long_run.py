"""Does coordination stay stable over a long run? `python lab/benchmarks/long_run.py --output runs/long`.

A nano recipe for 20,000 steps instead of 400 (53 passes over the questions of Nano-IconQA), Constant LR at its best
rate and the default. At each stop: smoothed kappa and how kappa spread since the last one, the modules' rates, losses,
test accuracy, and the memory of the process. Goes on from the last stop when it was cut off. Prints Markdown.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from arms import add_options
from course import Subject, run_all
from stop_table import stop_table

from commit_tuning import partition_model
from commit_tuning.data.tasks import TASKS
from commit_tuning.train.dataset import data_order, ensure_data, open_splits
from commit_tuning.train.model_setup import build_model
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.scoring import answer_loss, answer_questions, evenly, score

LOSS_QUESTIONS = 600
SETTINGS = "section.key=value of the recipe; read are model, data, eval, train.batch_size and train.device"
COLUMNS = {
    "test accuracy": ("accuracy", ".1f"),
    "loss, validation": ("val_questions_loss", ".3f"),
    "loss, training questions": ("train_questions_loss", ".3f"),
    "smoothed kappa": ("smoothed_kappa", ".2g"),
    "log-sd of kappa": ("spread_kappa", ".2f"),
    "LM's drift": ("drift/language_model", ".1e"),
    "encoder's drift": ("drift/vision", ".1e"),
    "LM's rate": ("lr/language_model", ".1e"),
    "encoder's rate": ("lr/vision", ".1e"),
    "memory (MiB)": ("memory_mib", ".0f"),
}


def main() -> None:
    """Run every arm, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", default=[], help=SETTINGS)
    parser.add_argument("--recipe", default="iconqa-nano-blip2")
    add_options(parser, ["constant:1e-3", "default:1e-3"], [400, 1000, 2000, 5000, 10_000, 15_000, 20_000], [0])
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.settings)
    make = partial(subject, recipe)
    records = run_all(make, arguments, arguments.output, {"recipe": recipe.for_record()})
    print(stop_table(records, COLUMNS), end="")


def subject(recipe: Recipe, seed: int, prepare: Callable[[Any, int], None] = lambda model, seed: None) -> Subject:
    """Return the recipe's prepared model and its questions; it is evaluated on the test questions."""
    settings = recipe.train
    root = ensure_data(recipe.data)
    model, processor = build_model(recipe.model, settings.device)
    prepare(model, seed)
    questions = open_splits(root, recipe.data, recipe.model.name, settings.device)
    size = recipe.eval.batch_size

    def evaluate() -> dict[str, float]:
        answers = answer_questions(model, processor, questions["test"], recipe.generation())
        found = {"accuracy": 100 * score(answers, TASKS[recipe.data.dataset].metric)["accuracy"]}
        for split in ("train", "val"):
            asked = evenly(range(len(questions[split])), LOSS_QUESTIONS)
            found[f"{split}_questions_loss"] = answer_loss(model, questions[split], asked, size)
        return found

    order = data_order(len(questions["train"]), settings.batch_size, seed)
    return Subject(model, partition_model(model, recipe.model.projector), order, questions["train"].training, evaluate)


if __name__ == "__main__":
    main()
