"""What the paper's own runs need, counted without weights: parameters, memory, disk, and the command that starts each.

Every model is built in its real size on torch's meta device, which allocates nothing, and prepared by the functions
that prepare it for a run; bytes are then counted (`paper_memory`). The narrow model of the same class and the same
parameter names goes through one whole optimizer step, CoMMIT's measurement included.

    python -m commit_lab.reproduce.paper_scale
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from commit_lab.reproduce.paper_memory import (
    FLOAT32,
    activation_bytes,
    measurement_bytes,
    regularizer_bytes,
    saved_bytes,
)
from commit_lab.reproduce.paper_models import PaperModel, find_paper_model, narrow_batch
from commit_tuning.coordinator import Coordinator
from commit_tuning.partition.discover import part_of_parameter, partition_model
from commit_tuning.partition.modules import ModulePartition
from commit_tuning.shown import Markdown
from commit_tuning.train.compare.table import markdown_table
from commit_tuning.train.model_setup import checkpoint_gradients, count_parameters, precision, prepare
from commit_tuning.train.optimizers import build_optimizer
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.training import accumulate_gradients

PAPER_RECIPES = ("paper-blip2", "paper-llava", "paper-internvl2", "paper-salmonn")
GPU_BYTES = 80e9
HOURS, GPU_HOURS = "about 8 h on 4 A100 of 40 GB", 32
"""Of one run, by the paper's appendix A.5, an average over its runs. Nothing was timed at this scale by us."""

DATASETS = {"textvqa": 8.1, "iconqa": 1.8, "aokvqa": 19.0, "clothoaqa": 3.1, "macs": 41.5, "song-describer": 3.3}
"""Gigabytes on disk, by task; `lab/reports/paper-scale.md` has the sources."""


@dataclass(frozen=True)
class Needs:
    """What one run needs.

    Memory is that of one GPU, in bytes. The sum counts a measurement and the activations of training as simultaneous,
    which they are not.

    Attributes:
        recipe: Its name.
        model: As the recipe names it.
        parameters: Module to its parameters, trained or not, adapters left out.
        trainable: Module to its trained parameters, adapters included.
        weights: Bytes as they are stored: trained ones in float32, others in the recipe's `model.dtype`.
        gradients: Float32, of what is trained.
        optimizer: AdamW's two averages, float32.
        commit: CoMMIT's own, see `measurement_bytes`.
        activations: See `activation_bytes`.
        regularizer: What method `commit` takes beyond that, see `regularizer_bytes`.
        disk: Of the released weights, twice where they are converted first.
        hours: Of one run, in words, with their source.
    """

    recipe: str
    model: str
    parameters: dict[str, int]
    trainable: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    commit: int
    activations: int
    regularizer: int
    disk: int
    hours: str = HOURS

    @property
    def memory(self) -> int:
        """Bytes on the GPU, method `commit` apart."""
        return self.weights + self.gradients + self.optimizer + self.commit + self.activations

    @property
    def gpus(self) -> int:
        """GPUs of 80 GB that hold that. The runner uses one; for more see `lab/reports/paper-scale.md`."""
        return -int(-self.memory // GPU_BYTES)


def needs(recipe: str, settings: Sequence[str] = ()) -> Needs:
    """Count what a recipe of one of the paper's models needs.

    Args:
        recipe: Name or file.
        settings: `section.key=value`, over those of the recipe.

    Raises:
        UserError: No such recipe, or one of another model.
    """
    loaded = load_recipe(recipe, settings)
    paper = find_paper_model(loaded.model.name)
    model = paper.build()
    part_of = part_of_parameter(model)
    totals: dict[str, int] = {}
    for parameter in model.parameters():
        module = part_of[id(parameter)]
        totals[module] = totals.get(module, 0) + parameter.numel()
    with torch.device("meta"):
        model = prepare(model, loaded.model)
    partition = partition_model(model, loaded.model.projector)
    trainable = {module: count_parameters(partition[module]) for module in partition.names}
    trained = sum(trainable.values())
    micro = loaded.train.micro_batch_size or loaded.train.batch_size
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    saved = saved_bytes(model, paper, loaded.model, micro)
    return Needs(
        recipe=recipe,
        model=loaded.model.name,
        parameters=totals,
        trainable=trainable,
        weights=held,
        gradients=FLOAT32 * trained,
        optimizer=2 * FLOAT32 * trained,
        commit=measurement_bytes(trainable, paper, micro),
        activations=activation_bytes(saved, paper, micro, loaded.train.gradient_checkpointing),
        regularizer=regularizer_bytes(trainable, saved),
        disk=paper.copies * paper.stored_bytes * sum(totals.values()),
    )


@dataclass(frozen=True)
class FirstStep:
    """What the first optimizer step of a narrow model did.

    Attributes:
        loss: Before it, in nats per target token.
        kappa: As it was measured.
        moved: Module to the share of its trained tensors that changed.
    """

    loss: float
    kappa: float
    moved: dict[str, float]


def first_step(recipe: str, settings: Sequence[str] = ()) -> FirstStep:
    """Take one optimizer step of a recipe, on the CPU, with the narrow model of the same class and random inputs.

    Everything is the recipe's but the sizes, the data, the number of samples and the device.

    Raises:
        UserError: As for `needs`.
    """
    loaded = load_recipe(recipe, [*settings, "train.device=cpu"])
    model, partition, batch = narrow_model(loaded, find_paper_model(loaded.model.name))
    optimizer = build_optimizer(partition, loaded.train)
    coordinator = Coordinator(model, optimizer, loaded.commit_config(), partition=partition)
    running = partial(precision, loaded.model, "cpu")
    trained = {module: partition[module] for module in partition}
    before = {module: [p.detach().clone() for p in parameters] for module, parameters in trained.items()}
    loss = accumulate_gradients(model.train(), [batch], running)
    with running():
        coordinator.before_step([batch])
    optimizer.step()
    with running():
        coordinator.after_step()
    moved = {m: [not torch.equal(p, old) for p, old in zip(trained[m], before[m], strict=True)] for m in trained}
    return FirstStep(loss, coordinator.kappa, {m: sum(changes) / len(changes) for m, changes in moved.items()})


def narrow_model(recipe: Recipe, paper: PaperModel) -> tuple[Any, ModulePartition, dict[str, torch.Tensor]]:
    """Build the narrow model as a run prepares it, its partition, and a random batch."""
    torch.manual_seed(recipe.train.seed)
    model = paper.build(narrow=True)
    batch = narrow_batch(model)
    model = prepare(model, recipe.model)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients(model)
    return model, partition_model(model, recipe.model.projector), batch


def markdown(found: Iterable[Needs]) -> str:
    """Tabulate needs: parameters, and memory in gigabytes (1e9 bytes)."""
    rows = list(found)
    counts = [["recipe", "parameters", "trained: language model", "trained: encoder", "weights on disk", "a run takes"]]
    memory = [["recipe", "weights", "gradients", "AdamW", "CoMMIT", "activations", "sum", "GPUs of 80 GB"]]
    memory[0].append(Markdown("more for `commit`"))
    for row in rows:
        language = row.trainable["language_model"]
        encoder = sum(row.trainable.values()) - language
        total = f"{sum(row.parameters.values()) / 1e9:.2f} billion"
        trained = [f"{language / 1e6:.1f} million", f"{encoder / 1e6:.1f} million"]
        counts.append([Markdown(f"`{row.recipe}`"), total, *trained, f"{row.disk / 1e9:.1f} GB", row.hours])
        parts = (row.weights, row.gradients, row.optimizer, row.commit, row.activations, row.memory)
        more = f"{row.regularizer / 1e9:.1f}"
        memory.append([Markdown(f"`{row.recipe}`"), *(f"{part / 1e9:.1f}" for part in parts), str(row.gpus), more])
    return f"{markdown_table(counts[0], counts[1:])}\n{markdown_table(memory[0], memory[1:])}"


if __name__ == "__main__":
    sys.stdout.write(markdown(map(needs, PAPER_RECIPES)))
