"""What the laboratory adds to `commit-tuning`: recipes, models and datasets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_experiment import EXAMPLE, run

from commit_lab.plugin import RECIPES
from commit_tuning import plugins
from commit_tuning.data.tasks import tasks
from commit_tuning.errors import UserError
from commit_tuning.models.load import models, refuse_missing, refuse_output
from commit_tuning.train.optimizers import optimizers
from commit_tuning.train.recipe.load import load_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid_and_found_by_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model.name.removesuffix("-v2") in name or name.startswith(("small-", "paper-"))
    assert recipe.data.dataset in tasks()
    assert recipe.train.optimizer in optimizers()


def test_there_are_shipped_recipes() -> None:
    assert {"iconqa-nano-llava", "iconqa-nano-blip2"} <= set(SHIPPED)
    assert {Path(load_recipe(name).model.name).name for name in SHIPPED if "nano" in name} <= models().keys()


def test_a_missing_recipe_names_those_of_the_laboratory() -> None:
    with pytest.raises(UserError, match=r"no recipe .*iconqa-nano-llava.*llava-textvqa"):
        load_recipe("none")


def test_misspelt_model_name_suggests_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", EXAMPLE, "model.name=nano-lava", "-o", tmp_path / "out"]) == 2
    assert "no model 'nano-lava'; did you mean nano-llava?" in capsys.readouterr().err


def test_inspect_takes_a_nano_model_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "nano-blip2"]) == 0
    assert "everything that is trainable can learn" in capsys.readouterr().out
    assert run(["inspect", "nano-llava", "--json"]) == 1


def test_no_run_is_written_between_a_models_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("models/small-llava")
    for name in ("models/small-llava", "models/small-llava/"):
        with pytest.raises(UserError, match=r"make it with `python lab/pretraining/assemble_small.py small-llava`"):
            refuse_missing(name)
    folder.mkdir(parents=True)
    for name in ("models/small-llava", "models/small-llava/", "./models/small-llava"):
        with pytest.raises(UserError, match="is the folder of the model"):
            refuse_output(name, folder.resolve())
    refuse_output("models/small-llava", tmp_path)


def test_a_plugin_that_fails_registers_no_other_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Callable[[], None]:
            return self.register

        def register(self) -> None:
            called.append(self.name)
            if self.name == "second":
                raise UserError("broken")

    entries = [Entry("first"), Entry("second")]
    monkeypatch.setattr(plugins, "_entries", lambda: entries)
    for _ in range(2):
        with pytest.raises(UserError, match="broken"):
            plugins.load_plugins()
    assert called == ["first", "second", "second"]
