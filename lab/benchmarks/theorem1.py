"""Theorem 1 along real training: `python lab/benchmarks/theorem1.py [--steps 50] [--rates 1e-5 3e-4 1e-3]`.

Tunes the nano models with Constant LR, measures every sample of every step, and prints Markdown tables: how often the
bounds of Eq. 5 hold and how loose they are, and the same for the two inequalities that their proof rests on (Eq. 14 and
15). Gradients are those of the loss, before clipping. Norms are L2: of a module's gradient over all of its trained
parameters, and for H of Eq. 6 over all answer logits, embeddings, features and pixels of the batch.
"""

import argparse
import math
from collections import defaultdict
from typing import Any

import torch
from transformers.utils import logging

from commit_lab.studies.gradient_bound import BoundCheck, check_bound, gradient_bounds
from commit_tuning import Coordinator
from commit_tuning.measure.divergence import TargetPositions, token_kl
from commit_tuning.measure.forward import evaluation_mode, forward_pass
from commit_tuning.partition.discover import partition_model
from commit_tuning.train.dataset import ensure_data, open_splits
from commit_tuning.train.model_setup import build_model
from commit_tuning.train.optimizers import build_optimizer
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.training import accumulate_gradients, step_batches

EQUATION_5 = (r"\|G_X\| <= (kappa + 1) H_S", r"\|G_S\| <= (1/kappa + 1) H_X")
PROOF = (r"Eq. 14: \|L_t - L_t+1\| <= d", "Eq. 15: d <= d_X + d_S")
MEASURED = ("commit.method=constant", "commit.probe.interval=1", "commit.probe.samples=null", "data.in_memory=false")
Pairs = dict[str, list[tuple[float | None, float | None]]]


def main() -> None:
    """Print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano-blip2-v2", "nano-llava-v2"])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-5, 3e-4, 1e-3])
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    runs = {
        (model, rate): follow_training(model, rate, arguments.steps)
        for model in arguments.models
        for rate in arguments.rates
    }
    print_table(EQUATION_5, runs)
    print()
    print_table(PROOF, runs)


def print_table(names: tuple[str, ...], runs: dict[tuple[str, float], Pairs]) -> None:
    """Print one line for each inequality and run."""
    print(
        "| inequality | model | base rate | steps | holds | right / left side, 5 % | median | 95 % | rank correlation |"
    )
    print("| --- |" + " --- |" * 8)
    for name in names:
        for (model, rate), pairs in runs.items():
            check = check_bound(pairs[name])
            print(f"| {name} | {model} | {rate:g} | {' | '.join(cells(check))} |")


def cells(check: BoundCheck) -> list[str]:
    """Write the numbers of a line."""
    looseness = [f"{value:.3g}" for value in check.looseness]
    return [str(check.steps), f"{100 * check.held:.0f} %", *looseness, f"{check.rank_correlation:+.2f}"]


def follow_training(model_name: str, rate: float, steps: int) -> Pairs:
    """Train for some steps; return (right side, left side) of each inequality at each step."""
    recipe = load_recipe(f"iconqa-{model_name}", [*MEASURED, f"train.learning_rate={rate}"])
    torch.manual_seed(recipe.train.seed)
    model, _ = build_model(recipe.model, "cpu")
    partition = partition_model(model)
    optimizer = build_optimizer(partition, recipe.train)
    coordinator = Coordinator(model, optimizer, recipe.commit_config(), partition)
    batches = step_batches(training_questions(recipe), recipe.train)
    forward = forward_pass(model)
    pairs: Pairs = defaultdict(list)
    model.train()
    for _ in range(steps):
        batch = next(batches)
        accumulate_gradients(model, batch)
        gradients = {name: gradient_norm(partition[name]) for name in partition}
        torch.nn.utils.clip_grad_norm_([p for name in partition for p in partition[name]], recipe.train.max_grad_norm)
        before = answers(forward, batch[0])
        coordinator.step(batch)
        optimizer.zero_grad()
        after = answers(forward, batch[0])
        add_equation_5(pairs, coordinator.metrics(), gradients)
        add_proof(pairs, coordinator.drift, batch[0]["labels"], before, after)
    return pairs


def training_questions(recipe: Recipe) -> Any:
    """Return the questions that the recipe trains on."""
    return open_splits(ensure_data(recipe.data), recipe.data, recipe.model.name, "cpu")["train"]


def add_equation_5(pairs: Pairs, metrics: dict[str, float | None], gradients: dict[str, float]) -> None:
    """Add Eq. 5 at one step; nothing where a module did not move."""
    kappa, language_h, encoder_h = (metrics[key] for key in ("kappa", "h/language_model", "h/vision"))
    if kappa is None or language_h is None or encoder_h is None:
        return
    bounds = gradient_bounds(kappa, language_h, encoder_h)
    for name, bound, module in zip(EQUATION_5, bounds, ("language_model", "vision"), strict=True):
        pairs[name].append((bound, gradients[module]))


def add_proof(pairs: Pairs, drift: dict[str, float], labels: Any, before: Any, after: Any) -> None:
    """Add Eq. 14 and 15 at one step: d is KL(new, old) in the first, as printed, and KL(old, new) in the second."""
    positions = TargetPositions.from_labels(labels)
    change = abs(loss(labels, after) - loss(labels, before))
    pairs[PROOF[0]].append((mean_kl(positions, after, before), change))
    pairs[PROOF[1]].append((sum(drift.values()), mean_kl(positions, before, after)))


def gradient_norm(parameters: list[Any]) -> float:
    """Return the L2 norm over all parameters."""
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))


def answers(forward: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits [answers, vocabulary] of the model in its present state."""
    mask = TargetPositions.from_labels(batch["labels"]).mask
    with torch.no_grad(), evaluation_mode(forward.model):
        return forward.logits(batch, mask, forward.features(batch))


def mean_kl(positions: TargetPositions, old: torch.Tensor, new: torch.Tensor) -> float:
    """Return the divergence of Eq. 2-3 for a step of both modules."""
    return float(positions.total(token_kl(old, new))) / positions.samples


def loss(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """Compute Eq. 1: the mean over samples of the mean cross-entropy of their target tokens."""
    positions = TargetPositions.from_labels(labels)
    truth = labels[:, 1:][positions.mask[:, :-1]]
    entropy = torch.nn.functional.cross_entropy(logits.double(), truth, reduction="none")
    return float(positions.total(entropy)) / positions.samples


if __name__ == "__main__":
    main()
