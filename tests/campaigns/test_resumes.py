"""A run that ended between two checkpoints goes on bit for bit: every optimizer, method, model and way to read data."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from campaign import sized
from commands import interrupt_at, results
from small_experiment import as_if_built, make_audio_experiment, make_experiment

from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord
from commit_tuning.train.runner import train

STEPS = ("train.steps=7", "train.checkpoint_interval=4", "commit.probe_interval=2", "commit.lr_update_interval=2")
MOVING = ("model.lora.dropout=0.1", "train.scheduler=cosine", "train.warmup_steps=2")  # so that no state is idle
OPTIMIZERS = ("adamw", "adam", "sgd", "prodigy", "dog")
WATCHING = ("constant", "feature-cd", "language-cd", "synced")  # with schedule-free too, whose rates nobody may set
METHODS = (*WATCHING, "commit", "language-lr-up", "encoder-lr-up", "hypergradient")
CONTROLLERS = ("trust-region", "compensated", "bounded", "literal")
SETUPS = [
    *((f"train.optimizer={o}", f"commit.method={m}") for o, m in itertools.product(OPTIMIZERS, METHODS)),
    *((f"train.optimizer={o}", f"commit.controller={c}") for o, c in itertools.product(OPTIMIZERS, CONTROLLERS)),
    *(("train.optimizer=schedule-free", f"commit.method={m}") for m in WATCHING),
    *(("commit.method=commit", f"commit.regularizer={name}") for name in ("lookahead", "previous-step")),
    ("commit.regularizer=drift-penalty",),
    ("train.micro_batch_size=2", "train.gradient_checkpointing=true"),
    ("model.dtype=bfloat16", "model.projector=own"),
    ("model.lora=null", "model.freeze=['*embed_tokens*']"),
    ("data.in_memory=true",),
    ("commit.probe_interval=null", "commit.method=constant"),
]
NANO = ("nano-blip2-v2", "nano-internvl2", "nano-llava-v2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_audio_experiment(tmp_path_factory.mktemp("audio"))


def check_goes_on(recipe: Path, settings: tuple[str, ...], folder: Path) -> RunRecord:
    loaded = load_recipe(recipe, [*STEPS, *MOVING, *settings])
    train(loaded, folder / "whole")
    with interrupt_at(6), pytest.raises(KeyboardInterrupt):
        train(loaded, folder / "run")
    said: list[str] = []
    record = train(loaded, folder / "run", progress=lambda task, done, total, note="": said.append(note))
    assert "goes on from the checkpoint" in said
    assert results(folder / "run") == results(folder / "whole")
    return record


@pytest.mark.filterwarnings("ignore:the drift of module", "ignore:module .* starves")
@pytest.mark.parametrize("settings", SETUPS[:: sized(13, 1)], ids="-".join)
def test_every_setting_goes_on(settings: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    check_goes_on(recipe, settings, tmp_path)


@pytest.mark.filterwarnings("ignore:the drift of module", "ignore:module .* starves")
@pytest.mark.parametrize("name", NANO[:: sized(2, 1)])
def test_every_nano_model_goes_on(name: str, recipe: Path, tmp_path: Path) -> None:
    check_goes_on(recipe, (f"model.name={name}",), tmp_path)


@pytest.mark.filterwarnings("ignore:the drift of module", "ignore:module .* starves")
def test_sounds_go_on(audio: Path, tmp_path: Path) -> None:
    check_goes_on(audio, ("model.lora.dropout=0.2",), tmp_path)


def test_what_was_skipped_before_the_stop_is_not_forgotten(recipe: Path, tmp_path: Path) -> None:
    """A picture that cannot be decoded, and a question that is too long."""
    data = shutil.copytree(recipe.parent / "data", tmp_path / "data")
    broken, long = sorted((data / "iconqa" / "train").rglob("data.json"))[3:5]
    broken.with_name("image.png").write_bytes(b"")
    long.write_text(json.dumps(json.loads(long.read_bytes()) | {"question": "what is here? " * 2000}))
    as_if_built(data)
    record = check_goes_on(recipe, (f"data.root={data}", "data.max_tokens=200"), tmp_path)
    assert record.skipped["train"].startswith("2, ")
