"""Damaged records: every command that reads them goes on, or one line says what is damaged."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from campaign import inputs, succeeds_or_says
from damage import damage
from hypothesis import given
from hypothesis import strategies as st
from report_records import ARMS, run_record, write_comparison
from small_experiment import EXAMPLE

from commit_tuning.errors import UserError
from commit_tuning.report import plots
from commit_tuning.train import dataset, evaluate
from commit_tuning.train.compare import comparison as compare
from commit_tuning.train.compare.arms import screening_arms
from commit_tuning.train.origin import Origin
from commit_tuning.train.recipe.load import load_recipe

PLAN = ["compare.methods=[commit-clr]", "compare.rates=[1e-3]", "compare.static_grid=null", "compare.seeds=1"]
RECIPE = load_recipe(EXAMPLE, PLAN)
RUN = f"runs/{ARMS[0]}/seed-0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, with recipes that the commands take."""
    plan = RECIPE.compare.model_dump(mode="json")
    folder = tmp_path_factory.mktemp("sound") / "compared"
    write_comparison(folder, recipe=RECIPE.for_record(), compare=plan)
    for arm in screening_arms(RECIPE):
        path = folder / "runs" / arm.slug / "seed-0" / "run.json"
        path.write_text(json.dumps(run_record(recipe=arm.recipe(RECIPE, 0).for_record())))
    return folder


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command up to its work."""

    def reached(*_: object, **__: object) -> None:
        raise UserError("the work begins")

    monkeypatch.setattr(plots, "draw_curves", lambda groups: [])
    monkeypatch.setattr(plots, "draw_accuracy", lambda arms: None)
    monkeypatch.setattr(evaluate, "ensure_data", reached)
    monkeypatch.setattr(evaluate, "model_checksum", lambda name: "0" * 64)
    monkeypatch.setattr(compare, "refuse_missing", lambda name: None)
    monkeypatch.setattr(compare, "run_jobs", reached)
    monkeypatch.setattr(dataset, "ensure_data", lambda settings, workers: None)
    monkeypatch.setattr(Origin, "of", lambda recipe: Origin({}, "0" * 64))


@pytest.mark.parametrize("name", ["table.json", "compare.json", f"{RUN}/run.json"])
@given(data=st.data())
@inputs(50, 350)
def test_commands_read_or_refuse_damaged_records(sound: Path, name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = shutil.copytree(sound, Path(made) / "compared")
        damage(folder / name, data)
        command = data.draw(st.sampled_from(["report", "evaluate", "compare"]))
        arguments = {
            "report": [str(folder)],
            "evaluate": [str(folder / RUN)],
            "compare": [str(EXAMPLE), *PLAN, "-o", str(folder)],
        }
        succeeds_or_says([command, *arguments[command]])
