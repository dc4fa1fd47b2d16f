"""CoMMIT during alignment: `python lab/benchmarks/alignment.py --output runs/alignment`.

The paper tunes models whose projector is aligned already. Here the connector is fresh (nano LLaVA's projector; with
`--recipe iconqa-nano-blip2` Q-Former, query tokens and projection). Tower and language model are pretrained, and all
three are trained in full on Nano-IconQA. `--bridge kept` keeps the aligned connector, for comparison. Prints Markdown:
kappa at the first measurements, then losses and accuracy at every stop.
"""

import argparse
from functools import partial
from typing import Any

import torch
from arms import add_options
from course import run_all
from long_run import COLUMNS, SETTINGS, subject
from stop_table import stop_table

from commit_lab.nano.models.build import build_model
from commit_tuning import partition_model
from commit_tuning.train.compare.table import NOTHING, markdown_table
from commit_tuning.train.recipe.load import load_recipe

ARMS = ["constant:1e-4", "constant:3e-4", "constant:1e-3", "constant:3e-3", "default:1e-3", "literal-clr:3e-4"]
IN_FULL = ["model.lora=null", "model.freeze=[]"]
FIRST = 5  # measurements whose kappa is printed


def main() -> None:
    """Run every arm, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", default=[], help=SETTINGS)
    parser.add_argument("--recipe", default="iconqa-nano-llava")
    parser.add_argument("--bridge", choices=["fresh", "kept"], default="fresh")
    add_options(parser, ARMS, [50, 200, 800], [0, 1])
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, [*IN_FULL, *arguments.settings])
    change = {"prepare": partial(renew, recipe.model.name)} if arguments.bridge == "fresh" else {}
    folder = arguments.output / arguments.bridge
    records = run_all(partial(subject, recipe, **change), arguments, folder, {"recipe": recipe.for_record()})
    print(first_kappas(records))
    print(stop_table(records, COLUMNS), end="")


def renew(name: str, model: Any, seed: int) -> None:
    """Give everything between tower and language model the weights of an untrained nano model."""
    untrained = dict(build_model(name, len(model.get_input_embeddings().weight), seed + 1).named_parameters())
    tower = {id(parameter) for parameter in model.get_encoder("image").parameters()}
    with torch.no_grad():
        for parameter_name, parameter in partition_model(model).named_parameters("vision").items():
            if id(parameter) not in tower:
                parameter.copy_(untrained[parameter_name])


def first_kappas(records: list[dict]) -> str:
    """Write a line for every run: kappa at its first measurements, which arms make at different steps."""
    lines = []
    for record in records:
        kappas = record.get("start", [])[:FIRST]
        cells = [f"{NOTHING if kappa is None else f'{kappa:.2g}'} (step {step})" for step, kappa in kappas]
        lines.append([record["arm"], str(record["seed"]), *cells, *[NOTHING] * (FIRST - len(cells))])
    return markdown_table(["arm", "seed", *(f"kappa {number + 1}" for number in range(FIRST))], lines)


if __name__ == "__main__":
    main()
