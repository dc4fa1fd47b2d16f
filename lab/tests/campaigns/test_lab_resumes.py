"""A run that ended between two checkpoints goes on bit for bit: every nano model, and the rivals' optimizers."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from campaign import sized
from commands import interrupt_at
from resumes import check_goes_on
from small_experiment import make_experiment

from commit_tuning.train.evaluate import evaluate
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.runner import train

WATCHING = ("constant", "feature-cd", "language-cd", "synced")  # with schedule-free too, whose rates nobody may set
METHODS = (*WATCHING, "commit", "language-lr-up", "encoder-lr-up", "hypergradient")
CONTROLLERS = ("trust-region", "compensated", "bounded", "literal")
SETUPS = [
    *((f"train.optimizer={o}", f"commit.method={m}") for o, m in itertools.product(("prodigy", "dog"), METHODS)),
    *(
        (f"train.optimizer={o}", f"commit.controller={c}")
        for o, c in itertools.product(("prodigy", "dog"), CONTROLLERS)
    ),
    *(("train.optimizer=schedule-free", f"commit.method={m}") for m in WATCHING),
]
NANO = ("nano-blip2-v2", "nano-internvl2", "nano-llava-v2")
pytestmark = pytest.mark.filterwarnings("ignore:the drift of module", "ignore:module .* starves")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.mark.parametrize("settings", SETUPS[:: sized(8, 1)], ids="-".join)
def test_every_rival_optimizer_goes_on(settings: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    check_goes_on(recipe, settings, tmp_path)


@pytest.mark.parametrize("name", NANO[:: sized(2, 1)])
def test_every_nano_model_goes_on(name: str, recipe: Path, tmp_path: Path) -> None:
    check_goes_on(recipe, (f"model.name={name}",), tmp_path)


@pytest.mark.parametrize(("optimizer", "method"), [("dog", "commit"), ("schedule-free", "constant")])
def test_checkpoint_evaluates_as_a_run_of_its_length(optimizer: str, method: str, recipe: Path, tmp_path: Path) -> None:
    settings = [f"train.optimizer={optimizer}", f"commit.method={method}", "train.checkpoint_interval=2"]
    train(load_recipe(recipe, [*settings, "train.steps=2", "commit.switch.latest=9"]), tmp_path / "short")
    with interrupt_at(3), pytest.raises(KeyboardInterrupt):
        train(load_recipe(recipe, [*settings, "train.steps=4", "commit.switch.latest=9"]), tmp_path / "run")
    assert evaluate(str(tmp_path / "run")).answers == evaluate(str(tmp_path / "short")).answers
