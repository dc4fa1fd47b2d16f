"""Drift over loss, from histories made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from commit_lab.studies.drift_share import drift_shares, share_table
from commit_tuning.errors import UserError
from commit_tuning.train.compare.table import NOTHING
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RunRecord

ROWS = [
    {"loss": 4.0, "drift/language_model": 1e-2, "drift/vision": None},
    {"loss": 2.0, "drift/language_model": None, "drift/vision": None},
    {"loss": 2.0, "drift/language_model": 1e-3, "drift/vision": 2e-4},
    {"loss": 1.0, "drift/language_model": 4e-3, "drift/vision": 2e-4},
    {"loss": 0.5, "drift/language_model": 1e-3, "drift/vision": 1e-4},
    {"loss": 0.5, "drift/language_model": 1e-3, "drift/vision": 4e-4},
    {"loss": 0.25, "drift/language_model": 1e-3, "drift/vision": 0.0},
    {"loss": 0.75, "drift/language_model": 1e-3, "drift/vision": 5e-4},
]


def test_shares_by_hand() -> None:
    shares = drift_shares(ROWS)
    assert shares["language_model"] == pytest.approx([1e-2 / 3, 2e-3 / 1.5, 2e-3, 2e-3])
    assert math.isnan(shares["vision"][0])
    assert shares["vision"][1:] == pytest.approx([2e-4 / 1.5, 4e-4, 1e-3])


def write_run(folder: Path, rate: str, accuracy: float, *changes: str, **extra: float) -> None:
    recipe = load_recipe("iconqa-nano-blip2", ["commit.method=constant", f"train.learning_rate={rate}", *changes])
    folder.mkdir()
    record = RunRecord(recipe=recipe.for_record(), seed=0, folder=folder)
    record.status, record.metrics = "complete", {"val": {"accuracy": accuracy}}
    record.write()
    rates = {"lr/language_model": float(rate), "lr/vision": float(rate), "smoothed_kappa": 1.0}
    (folder / "history.jsonl").write_text("".join(json.dumps({**extra, **row, **rates}) + "\n" for row in ROWS))


def test_the_table_has_the_best_arm_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete run"):
        share_table([tmp_path])
    for rate, accuracy in (("1e-3", 0.4), ("1e-2", 0.6)):
        write_run(tmp_path / rate, rate, accuracy)
    head, _, *lines = share_table([tmp_path]).splitlines()
    assert head.endswith("| validation | language model | vision |")
    assert [line.split(" | ")[2] for line in lines] == ["0.01", "0.001"]
    assert lines[0].endswith(f"| 60.0 | 3.3e-03, 1.3e-03, 2.0e-03, 2.0e-03 | {NOTHING}, 1.3e-04, 4.0e-04, 1.0e-03 |")


def test_third_module_has_its_own_column(tmp_path: Path) -> None:
    write_run(tmp_path / "two", "1e-3", 0.4)
    write_run(tmp_path / "three", "1e-2", 0.6, "model.projector=own", **{"drift/projector": 1e-3})
    head, _, three, two = (line.strip("| ").split(" | ") for line in share_table([tmp_path]).splitlines())
    assert head[-3:] == ["language model", "projector", "vision"]
    assert [len(line) for line in (three, two)] == [len(head)] * 2
    assert (three[-2], two[-2]) == ("3.3e-04, 6.7e-04, 2.0e-03, 2.0e-03", NOTHING)
    assert three[-3::2] == two[-3::2]
