"""What tuning does to the representations: `python lab/benchmarks/encoder_probe.py RUNS... --output probes.json`.

RUNS are output folders of `commit-tuning compare --save-weights` or `train`, searched with everything below them. A
linear probe (ridge regression on one-hot classes, its strength chosen on drawings of the validation families) is fitted
on features of newly drawn pictures whose icons are of the training families, and scored on drawings of the test
families, which neither model nor probe has seen. The features are the encoder's outputs, all vectors of a picture side
by side, and the language model's last hidden state at the end of a question. The classes are concept and colour of a
single icon, concept and colour of the icon in the upper left of four, and the number of icons. The table also has, for
each place, the effective rank of the features (Roy and Vetterli 2007) and their similarity to those of the untuned
model (linear CKA, Kornblith et al. 2019, arXiv 1905.00414). Prints Markdown.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commit_lab.nano.pictures.icons import concepts
from commit_lab.nano.pictures.painter import COLOURS, Painter
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError
from commit_tuning.measure.forward import forward_pass
from commit_tuning.models.load import load_processor
from commit_tuning.partition.discover import unwrap
from commit_tuning.storage import write_text
from commit_tuning.train.compare.table import markdown_table
from commit_tuning.train.dataset import chunks
from commit_tuning.train.model_setup import build_model, load_trained
from commit_tuning.train.recipe.load import build_recipe
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import RECORD, RunRecord, load_records, without_nan

Batch = dict[str, Tensor]
AT_ONCE, MOST = 100, 9
STRENGTHS = [10.0**power for power in range(-4, 5)]  # ridge penalties, for features of unit variance, per sample
ASKED = {"one": "What is shown in the picture?", "four": "What is at the top?", "many": "How many icons are there?"}
PLACES = ("encoder", "language model")
UNTUNED = "untuned"
QUADRANTS = [(0, 0, 32, 32), (32, 0, 32, 32), (0, 32, 32, 32), (32, 32, 32, 32)]


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures of one scene, as questions, and the classes of each."""

    samples: list[Sample]
    classes: dict[str, Tensor]


def main() -> None:
    """Probe every model, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; what it holds is not done again")
    parser.add_argument("--pictures", type=int, default=2000, help="of each scene, to fit on; a third to score on")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the runs; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        records = [record for folder in arguments.runs for record in load_records(folder)]
        found = probe_all(wanted(records, arguments.seeds), arguments.pictures, arguments.output)
    except UserError as error:
        sys.exit(f"encoder_probe.py: error: {error}")
    print(table(found), end="")


def wanted(records: list[RunRecord], seeds: list[int] | None) -> list[RunRecord]:
    """Return the complete runs of these seeds; of runs of one recipe the first."""
    complete = [record for record in records if record.complete and (seeds is None or record.seed in seeds)]
    return list({json.dumps(record.recipe): record for record in reversed(complete)}.values())[::-1]


def probe_all(records: list[RunRecord], count: int, output: Path) -> list[dict[str, Any]]:
    """Probe the untuned model of the first run's recipe, then every run.

    Raises:
        UserError: There is no run, or one of another model or without weights.
    """
    if not records:
        raise UserError("no complete run of these seeds; see --seeds, and train with --save-weights")
    found = json.loads(output.read_text("utf-8")) if output.is_file() else []
    known = {(row["run"], row["pictures"]) for row in found}
    for record in records:
        if record.recipe["model"] != records[0].recipe["model"]:
            raise UserError(f"{record.folder} is of another model than {records[0].folder}; probe them apart")
    recipe = build_recipe(records[0].recipe, source=str(records[0].folder / RECORD))
    scenes = {split: {scene: draw(scene, split, n) for scene in ASKED} for split, n in sizes(count).items()}
    batches = encode(recipe, scenes)
    untuned: dict[str, Tensor] = {}
    names: list[str] = []
    for record in [None, *records]:
        name = f"{UNTUNED} {recipe.model.name}" if record is None else str(record.folder)
        names.append(name)
        if record is not None and (name, count) in known:
            continue
        rows = dict(features(recipe, record, batches))
        if record is None:
            untuned = {place: rows["test", place, "one"] for place in PLACES}
            if (name, count) in known:
                continue
        about = {"run": name, "arm": arm_of(record), "seed": record and record.seed, "pictures": count}
        found.append(about | judge(rows, scenes, untuned))
        write_text(output, json.dumps(without_nan(found), indent=1) + "\n")
    return [row for row in found if row["pictures"] == count and row["run"] in names]


def sizes(count: int) -> dict[str, int]:
    """Return the number of pictures of each scene, by split."""
    return {"train": count, "val": max(count // 3, 1), "test": max(count // 3, 1)}


def arm_of(record: RunRecord | None) -> str:
    """Name the method, regulariser and rates of a run."""
    if record is None:
        return UNTUNED
    commit, rates = record.recipe["commit"], sorted(set(record.base_rates))
    regularizer = commit["regularizer"]
    reading = f" + {regularizer['name']} x {regularizer['weight']:g}" if regularizer else ""
    reading += f" ({regularizer.get('step', 'raw')})" if regularizer else ""
    literal = "literal " if commit["controller"]["name"] == "literal" else ""
    return f"{literal}{commit['method']}{reading}, {' / '.join(f'{rate:g}' for rate in rates)}"


def draw(scene: str, split: str, count: int) -> Pictures:
    """Draw pictures with one icon, with four in a square, or with one to nine anywhere."""
    names, colours = concepts(), tuple(COLOURS)
    samples, classes = [], []
    for number in range(count):
        painter = Painter(random.Random(f"probe:{scene}:{split}:{number}"), split)
        total = {"one": 1, "four": 4, "many": 1 + number % MOST}[scene]
        icons = [(painter.rng.choice(names), painter.colour()) for _ in range(total)]
        if scene == "many":
            canvas = painter.scatter([(painter.glyph(concept), colour) for concept, colour in icons])
        else:
            canvas = painter.canvas()
            cells, size = ([(0, 0, 64, 64)], (28, 48)) if scene == "one" else (QUADRANTS, (24, 30))
            for (concept, colour), place in zip(icons, cells, strict=True):
                painter.stamp(canvas, painter.glyph(concept), place, size, colour)
        samples.append(Sample(str(number), "probe", ASKED[scene], None, ("0",), canvas))
        concept, colour = icons[0]
        classes.append((names.index(concept), colours.index(colour), total - 1))
    concept, colour, number = torch.tensor(classes).T
    probed = {"many": {"number": number}}.get(scene, {f"concept ({scene})": concept, f"colour ({scene})": colour})
    return Pictures(samples, probed)


def encode(recipe: Recipe, scenes: dict[str, dict[str, Pictures]]) -> dict[tuple[str, str], list[Batch]]:
    """Encode the pictures as every model of the recipe takes them, by split and scene."""
    collator = VisionCollator(load_processor(recipe.model.name), prompt=recipe.data.prompt)
    return {
        (split, scene): [collator.prompts(part) for part in chunks(pictures.samples, AT_ONCE)]
        for split, drawn in scenes.items()
        for scene, pictures in drawn.items()
    }


def features(
    recipe: Recipe, record: RunRecord | None, batches: dict[tuple[str, str], list[Batch]]
) -> Iterator[tuple[tuple[str, str, str], Tensor]]:
    """Yield (split, place, scene) and features [pictures, width] of a run's model, or of the untuned one."""
    model, _ = build_model(recipe.model, "cpu")
    if record is not None:
        load_trained(model, record.folder)
    model.eval()
    for (split, scene), own in batches.items():
        parts = [look(model, batch) for batch in own]
        for place, columns in zip(PLACES, zip(*parts, strict=True), strict=True):
            yield (split, place, scene), torch.cat(columns)


@torch.no_grad()
def look(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the encoder's output, vectors side by side, and the language model's last state: both [B, width]."""
    forward = forward_pass(model)
    encoded = forward.features(batch)
    seen: list[Tensor] = []
    head = unwrap(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -1]))
    try:
        forward.logits(batch, batch["attention_mask"].bool(), encoded)  # the encoder is not run again
    finally:
        handle.remove()
    output = encoded["vision"]["image"].pooler_output
    vectors = torch.stack(list(output)) if isinstance(output, list | tuple) else output
    return vectors.reshape(len(batch["input_ids"]), -1), seen[0]


def judge(
    rows: dict[tuple[str, str, str], Tensor], scenes: dict[str, dict[str, Pictures]], untuned: dict[str, Tensor]
) -> dict[str, float]:
    """Return all numbers of a model, by place."""
    found = {}
    for place in PLACES:
        for scene in ASKED:
            inputs = {split: rows[split, place, scene] for split in scenes}
            names = scenes["train"][scene].classes
            classes = {name: {split: scenes[split][scene].classes[name] for split in scenes} for name in names}
            shares = linear_probes(inputs, classes)
            found |= {f"{place}: {name}": 100 * share for name, share in shares.items()}
        found[f"{place}: effective rank"] = effective_rank(rows["test", place, "one"])
        found[f"{place}: CKA with untuned"] = alike(rows["test", place, "one"], untuned[place])
    return found


def linear_probes(inputs: dict[str, Tensor], classes: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """Return the accuracy, by name of the classes, of the ridge classifier that is best on the validation features.

    Args:
        inputs: Features [pictures, width] of train, val and test.
        classes: Name to classes of train, val and test.

    Returns:
        Shares of the test pictures.
    """
    mean, deviation = inputs["train"].double().mean(0), inputs["train"].double().std(0).clamp_min(1e-6)
    scaled = {split: (values.double() - mean) / deviation for split, values in inputs.items()}
    if len(mean) > len(scaled["train"]):  # a ridge solution lies in the span of the training features
        basis = torch.linalg.qr(scaled["train"].T).Q
        scaled = {split: values @ basis for split, values in scaled.items()}
    size = len(scaled["train"])
    values, axes = torch.linalg.eigh(scaled["train"].T @ scaled["train"] / size)
    turned = {split: features @ axes for split, features in scaled.items()}
    found = {}
    for name, of_split in classes.items():
        targets = torch.nn.functional.one_hot(of_split["train"]).double()
        offset = targets.mean(0)
        moments = turned["train"].T @ (targets - offset) / size

        def accuracy(split: str, strength: float, weights=moments, base=offset, truth=of_split) -> float:
            scores = turned[split] @ (weights / (values.clamp_min(0) + strength)[:, None]) + base
            return float((scores.argmax(1) == truth[split]).double().mean())

        found[name] = accuracy("test", max(STRENGTHS, key=lambda strength: accuracy("val", strength)))
    return found


def effective_rank(features: Tensor) -> float:
    """Return the exponential of the entropy of the features' normalised singular values."""
    values = torch.linalg.svdvals(features.double() - features.double().mean(0))
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def alike(one: Tensor, other: Tensor) -> float:
    """Return the linear centred kernel alignment of two sets of features of the same pictures, in [0, 1]."""
    first, second = (values.double() - values.double().mean(0) for values in (one, other))
    across, own = (first @ first.T), (second @ second.T)
    return float((across * own).sum() / (across.norm() * own.norm()))


def table(found: list[dict[str, Any]]) -> str:
    """Write a line for each arm: mean and standard deviation over its runs."""
    names = [name for name in found[0] if name.startswith(PLACES)]
    arms = dict.fromkeys(row["arm"] for row in found)
    lines = []
    for place in PLACES:
        own = [name for name in names if name.startswith(place)]
        for arm in arms:
            same = [row for row in found if row["arm"] == arm]
            lines.append([place, arm, str(len(same)), *(spread([row[name] for row in same]) for name in own)])
    head = [name.partition(": ")[2] for name in names if name.startswith(PLACES[0])]
    return markdown_table(["features of", "arm", "runs", *head], lines)


def spread(values: list[float]) -> str:
    """Write mean and standard deviation."""
    digits = 2 if max(values) <= 1 else 1
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
