"""The paper's models at their real size, without weights: counts, bytes, commands, and one step of a narrow one."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from commit_lab.reproduce.paper_memory import _saved, activation_bytes, measurement_bytes
from commit_lab.reproduce.paper_models import PAPER_MODELS, find_paper_model
from commit_lab.reproduce.paper_scale import (
    DATASETS,
    PAPER_RECIPES,
    first_step,
    markdown,
    narrow_model,
    needs,
)
from commit_lab.reproduce.plan import ROWS
from commit_tuning.errors import UserError
from commit_tuning.train.recipe.load import load_recipe

DOCS = Path(__file__).parents[3] / "lab" / "reports" / "paper-scale.md"


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_paper_models_match_published_totals_and_narrow_names(name: str) -> None:
    paper = PAPER_MODELS[name]
    real, narrow = paper.build(), paper.build(narrow=True)
    assert sum(p.numel() for p in real.parameters()) == pytest.approx(paper.published, rel=0.01)
    assert [n for n, _ in real.named_parameters()] == [n for n, _ in narrow.named_parameters()]
    assert sum(p.numel() for p in narrow.parameters()) < 1e6


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_each_recipe_is_the_papers(recipe: str) -> None:
    loaded = load_recipe(recipe)
    assert loaded.train.rates == {"language_model": 1e-4, "vision": 1e-4}
    assert loaded.compare.rates == (1e-5, 1e-4, 1e-3)
    assert {"constant", "feature-cd", "language-cd", "commit-clr", "commit"} == set(loaded.compare.methods)
    assert loaded.model.lora is not None
    assert loaded.data.dataset in DATASETS


def test_what_blip2_needs() -> None:
    found = needs("paper-blip2")
    # LoRA of rank 16 on two of 2560 x 2560 in 32 layers, each 16 x (2560 + 2560)
    assert found.trainable["language_model"] == 32 * 2 * 16 * 5120
    assert found.parameters["language_model"] == pytest.approx(2.65e9, rel=0.01)  # OPT-2.7B
    assert found.trainable["vision"] == pytest.approx(107e6, rel=0.01)  # of BLIP-2's paper, Q-Former and projection
    trained = sum(found.trainable.values())
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)
    fixed = sum(found.parameters.values()) - (trained - found.trainable["language_model"])
    assert found.weights == pytest.approx(2 * fixed + 4 * trained, rel=0.001)  # norms and biases have four bytes
    assert found.memory < 40e9  # the paper's GPUs
    assert found.gpus == 1
    table = markdown([found])
    assert re.search(r"`paper-blip2` \| 3.74 billion \| 5.2 million \| 107.1 million", table)


@pytest.mark.wide
def test_the_documented_table_is_what_is_printed() -> None:
    assert markdown(map(needs, PAPER_RECIPES)) in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_the_first_step_of_each_architecture(recipe: str) -> None:
    step = first_step(recipe, ["model.dtype=float32"])
    assert step.loss == pytest.approx(math.log(64), abs=0.2)  # untrained, 64 tokens
    assert 0 < step.kappa < math.inf
    assert step.moved.pop("language_model") == 0.5  # of LoRA the half that begins at zero
    assert min(step.moved.values()) > 0.8  # all but keys' biases, and attention of one query to itself


@pytest.mark.wide
@pytest.mark.parametrize("settings", [[], ["commit.method=commit"]])
@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_the_first_step_in_bfloat16(recipe: str, settings: list[str]) -> None:
    assert 0 < first_step(recipe, settings).kappa < math.inf


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_every_trained_parameter_is_reached_by_the_gradient(recipe: str) -> None:
    loaded = load_recipe(recipe, ["model.dtype=null"])
    model, partition, batch = narrow_model(loaded, find_paper_model(loaded.model.name))
    model(**batch).loss.backward()
    assert not [n for module in partition for n, p in partition.named_parameters(module).items() if p.grad is None]


def test_saved_bytes_by_hand() -> None:
    layers = nn.Sequential(nn.Linear(4, 8), nn.GELU())
    # the input of the linear layer, 3 x 4, and that of the GELU, 3 x 8, in float32; its weight is a parameter
    assert _saved(lambda: layers(torch.zeros(3, 4)), layers) == 4 * (3 * 4 + 3 * 8)


def test_memory_formulas_give_hand_worked_bytes() -> None:
    recipe = load_recipe("paper-blip2")
    paper = find_paper_model(recipe.model.name)
    narrow = {"language_model": 10, "vision": 30}
    scores = 16 * 2 * max(32 * paper.language_model().tokens ** 2, 12 * 32**2)
    assert measurement_bytes(narrow, paper, 2) == 8 * 40 + 4 * 30 + scores
    saved = (32 * 10**9, 12 * 10**8)
    logits = 14 * 2 * 96 * 50304
    assert activation_bytes(saved, paper, 2, checkpointed=False) == sum(saved) + logits
    inputs = 4 * 2 * (32 * 96 * 2560 + 12 * 32 * 768)
    assert activation_bytes(saved, paper, 2, checkpointed=True) == inputs + 10**9 + logits


def test_every_paper_task_has_a_size_on_disk() -> None:
    assert set(DATASETS) == {row.task for row in ROWS}


def test_faults_have_one_line_each() -> None:
    with pytest.raises(UserError, match="'nano-llava' is none of the paper's models"):
        needs("iconqa-nano-llava")
