"""Every built dataset opens in three splits, and is scored by a metric that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commit_lab.nano.pictures.nano_aokvqa import build_nano_aokvqa
from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa
from commit_lab.nano.pictures.nano_textvqa import build_nano_textvqa
from commit_lab.nano.sounds.nano_clothoaqa import build_nano_clothoaqa
from commit_lab.nano.sounds.nano_macs import build_nano_macs
from commit_lab.nano.sounds.nano_songdescriber import build_nano_songdescriber
from commit_lab.plugin import TASKS
from commit_tuning.metrics.score import METRICS

BUILDERS = {
    "nano-iconqa": build_nano_iconqa,
    "nano-textvqa": build_nano_textvqa,
    "nano-aokvqa": build_nano_aokvqa,
    "nano-clothoaqa": build_nano_clothoaqa,
    "nano-macs": build_nano_macs,
    "nano-song-describer": build_nano_songdescriber,
}
BUILT = [name for name, task in TASKS.items() if task.make is not None]


@pytest.fixture(scope="module", params=BUILT)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("data") / "root"
    return request.param, BUILDERS[request.param.removesuffix("-direct")](root, train=4, val=4, test=4)


def scored(name: str, prediction: str, sample: Any) -> float:
    record = {
        "kind": sample.kind,
        "choices": sample.choices,
        "prediction": prediction,
        "answers": sample.answers,
        "answer": sample.answer,
    }
    return float(METRICS[TASKS[name].metric]([record])["score"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_built_dataset_is_read_and_scored(built: tuple[str, Path], split: str) -> None:
    name, root = built
    samples = TASKS[name].read(root, split, None, False)
    assert len(samples) >= 4
    sample = samples[0]
    assert (sample.image is None) != (sample.audio is None)
    assert scored(name, sample.answer, sample) > 0.5
    assert scored(name, "zebra", sample) == 0


def test_folder_with_a_dataset_is_used_unchanged(built: tuple[str, Path]) -> None:
    name, root = built
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert TASKS[name].root(str(root)) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
