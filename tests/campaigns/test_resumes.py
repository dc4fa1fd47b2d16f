"""A run that ended between two checkpoints goes on bit for bit: every optimizer, method, model and way to read data."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from campaign import sized
from resumes import check_goes_on
from small_experiment import make_audio_experiment, make_experiment

OPTIMIZERS = ("adamw", "adam", "sgd")
METHODS = (
    "constant",
    "feature-cd",
    "language-cd",
    "synced",
    "commit",
    "language-lr-up",
    "encoder-lr-up",
)
CONTROLLERS = ("trust-region", "compensated", "bounded", "literal")
SETUPS = [
    *((f"train.optimizer={o}", f"commit.method={m}") for o, m in itertools.product(OPTIMIZERS, METHODS)),
    *((f"train.optimizer={o}", f"commit.controller={c}") for o, c in itertools.product(OPTIMIZERS, CONTROLLERS)),
    *(("commit.method=commit", f"commit.regularizer={name}") for name in ("lookahead", "previous-step")),
    ("commit.regularizer=drift-penalty",),
    ("train.micro_batch_size=2", "train.gradient_checkpointing=true"),
    ("model.dtype=bfloat16", "model.projector=own"),
    ("model.lora=null", "model.freeze=['*embed_tokens*']"),
    ("data.in_memory=true",),
    ("commit.probe.interval=null", "commit.method=constant"),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_audio_experiment(tmp_path_factory.mktemp("audio"))


@pytest.mark.filterwarnings("ignore:the drift of module", "ignore:module .* starves")
@pytest.mark.parametrize("settings", SETUPS[:: sized(13, 1)], ids="-".join)
def test_every_setting_goes_on(settings: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    check_goes_on(recipe, settings, tmp_path)


@pytest.mark.filterwarnings("ignore:the drift of module", "ignore:module .* starves")
def test_sounds_go_on(audio: Path, tmp_path: Path) -> None:
    check_goes_on(audio, ("model.lora.dropout=0.2",), tmp_path)


def test_resumed_run_remembers_skipped_samples(recipe: Path, tmp_path: Path) -> None:
    """A picture that cannot be decoded, and a question that is too long."""
    data = shutil.copytree(recipe.parent / "data", tmp_path / "data")
    broken, long = sorted((data / "iconqa" / "train").rglob("data.json"))[3:5]
    broken.with_name("image.png").write_bytes(b"")
    long.write_text(json.dumps(json.loads(long.read_bytes()) | {"question": "what is here? " * 2000}))
    record = check_goes_on(recipe, (f"data.root={data}", "data.max_tokens=200"), tmp_path)
    assert record.skipped["train"].startswith("2, ")
