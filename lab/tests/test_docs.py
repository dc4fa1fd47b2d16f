"""What the pages say of the code: code and commands in them are read as Python and the applications read them."""

import ast
import importlib
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from loops import Task, with_trainer
from pydantic_core import PydanticUndefined
from transformers import TrainerCallback

import commit_tuning.config
from commit_tuning.config import CONTROLLERS, REGULARIZERS, CoMMITConfig, Probe, Switch
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import (
    COMMIT_KEYS,
    Compare,
    Data,
    Eval,
    Lora,
    Model,
    Section,
    StaticGrid,
    Train,
    valid_keys,
)

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "lab" / "README.md", *ROOT.glob("lab/reports/*.md")]
EVERY_PAGE = pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.relative_to(ROOT).as_posix())
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"\bcommit-(tuning|lab) +([a-z]+\b[^;|&)}`\n]*)")
PLACES = [ROOT, ROOT / "src" / "commit_tuning", ROOT / "lab" / "src" / "commit_lab", ROOT / "lab", ROOT / "tests"]
SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "model.lora": Lora,
    "data": Data,
    "train": Train,
    "eval": Eval,
    "compare": Compare,
    "compare.static_grid": StaticGrid,
}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; of none for `""`."""
    found = FENCE.findall(page.read_text("utf-8"))
    return [inspect.cleandoc(text) for told, text in found if told == language]


def spans(page: Path) -> list[str]:
    """What stands in backticks in a page's text."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text("utf-8")))


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", page.read_text("utf-8")))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_pages_named_in_code_exist() -> None:
    folders = ("lab/src", "lab/benchmarks", "lab/pretraining", "scripts", "examples")
    code = [path.read_text("utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")]
    pages = {page for text in code for page in re.findall(r"\b(?:docs|lab)/[\w/-]+\.(?:md|png)\b", text)}
    assert not [page for page in pages if not (ROOT / page).exists()]


@EVERY_PAGE
def test_named_files_and_tests_exist(page: Path) -> None:
    folders = ("docs", "lab", "src", "tests", "examples", "scripts")
    words = {word for text in (*spans(page), *blocks(page, "")) for word in re.split(r"[\s,=]+", text)}
    paths = {word.partition("::")[0] for word in words if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|md)(::\w+)?", word)}
    paths = {path for path in paths if not path.startswith("runs/")}
    paths |= {word for word in words if word.startswith(tuple(f"{folder}/" for folder in folders)) and "*" not in word}
    missing = {path for path in paths if not any((place / path.partition("::")[0]).exists() for place in PLACES)}
    sources = {path.name: path.read_text("utf-8") for path in ROOT.glob("**/test_*.py") if ".venv" not in path.parts}
    for word in words:
        file, _, function = word.rpartition("::")
        name = file.rpartition("/")[2]
        if re.fullmatch(r"test_\w+\.py", name) and f"def {function}(" not in sources.get(name, ""):
            missing.add(word)
    missing |= {word for word in words if re.fullmatch(r"test_\w+\.py", word) and word not in sources}
    assert not missing


@EVERY_PAGE
@pytest.mark.filterwarnings("default")  # the frameworks' own
def test_python_blocks_use_what_there_is(page: Path) -> None:
    added = [re.findall(r"^\+((?:from|import) .*)", text, re.MULTILINE) for text in blocks(page, "diff")]
    for text in (*blocks(page, "python"), *("\n".join(lines) for lines in added)):
        tree = ast.parse(text)
        names = dict(imported(tree))
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
                check_call(names[call.func.id], call)


def imported(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Import what a block imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                yield alias.asname or alias.name, getattr(module, alias.name)


def check_call(called: Any, call: ast.Call) -> None:
    """Check a call's keywords; make a configuration whose values all stand there."""
    names = {keyword.arg for keyword in call.keywords if keyword.arg}
    parameters = inspect.signature(called).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        assert names <= set(parameters), ast.unparse(call)
    if called is CoMMITConfig:
        eval(ast.unparse(call), dict(vars(commit_tuning.config)))


@EVERY_PAGE
def test_commands_are_understood(page: Path) -> None:
    for text in blocks(page, ""):
        for name, words in COMMAND.findall(text.replace("\\\n", " ")):
            check_command(name, words, part='"$@"' in words)
    for span in spans(page):
        for name, words in COMMAND.findall(span):
            check_command(name, words, part=True)


@EVERY_PAGE
def test_extras_and_make_targets_exist(page: Path) -> None:
    code = "\n".join([*spans(page), *blocks(page, "")])
    projects = "".join((ROOT / place / "pyproject.toml").read_text("utf-8") for place in (".", "lab"))
    extras = {extra for found in re.findall(r"(?:\.|commit-\w+)\[([\w,]+)\]", code) for extra in found.split(",")}
    assert extras <= set(re.findall(r"^(\w+) = \[", projects, re.MULTILINE))
    targets = set(re.findall(r"^(?:\$ )?make ([a-z-]+)", code, re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def check_command(name: str, line: str, part: bool = False) -> None:
    """Let an application read a command line, up to its work; a part of one may lack arguments."""
    application: Any = typer.main.get_command(importlib.import_module(f"commit_{name}.cli.app").app)
    words = [word for word in shlex.split(line, comments=True) if word not in {"$@", "..."}]
    try:
        found = application.commands[words[0]].make_context(words[0], words[1:]).params
    except Exception as error:
        if part and type(error).__name__ in {"MissingParameter", "NoArgsIsHelpError"}:
            return
        raise AssertionError(f"{line}: {error!r}") from error
    settings = [setting for setting in found.get("settings") or [] if "=" in setting]
    if found.get("recipe", "").islower() and not found["recipe"].endswith(".yaml"):
        load_recipe(found["recipe"], [setting for setting in settings if not re.search(r"[A-Z$]|\.\.\.", setting)])
    assert {setting.partition("=")[0] for setting in settings} <= set(valid_keys()), line


@EVERY_PAGE
def test_data_blocks_are_valid(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "json"):
        json.loads(text)
    for text in blocks(page, "yaml"):
        told = yaml.safe_load(text)
        missing = {"model": {"name": "none"}, "data": {"dataset": "textvqa", "root": "none"}}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(missing | told), "utf-8")
        load_recipe(str(path), [])


NESTED = {
    "commit.controller": (*CONTROLLERS.values(),),
    "commit.probe": (Probe,),
    "commit.regularizer": (*REGULARIZERS.values(),),
    "commit.switch": (Switch,),
}


def default_of(key: str) -> object:
    """What a key is where a recipe does not say; PydanticUndefined where a recipe has to."""
    section, _, name = key.rpartition(".")
    if key == "commit.controller":
        return CoMMITConfig().controller.name
    if section == "commit":
        return CoMMITConfig.__dataclass_fields__[name].default
    if section in NESTED:
        return next(
            kind.__dataclass_fields__[name].default for kind in NESTED[section] if name in kind.__dataclass_fields__
        )
    return SECTIONS[section].model_fields[name].default


def test_recipe_page_has_every_key() -> None:
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]*?) ?\| ", page, re.MULTILINE))
    sections = {
        *SECTIONS,
        "commit",
        "commit.probe",
        "commit.switch",
        "commit.controller.name",
        "commit.regularizer.name",
    }
    assert list(told) == [key for key in ordered(valid_keys()) if key not in sections]
    for key, default in told.items():
        wanted = default_of(key)
        written = "" if wanted is PydanticUndefined else json.dumps(wanted)
        assert default == written, key


def ordered(keys: tuple[str, ...]) -> list[str]:
    """With the settings of the method where the section stands in a recipe."""
    own = [key for key in keys if key.removeprefix("commit.") not in COMMIT_KEYS]
    at = own.index("commit")
    return [*own[:at], *(f"commit.{key}" for key in COMMIT_KEYS), *own[at:]]


class Trace(TrainerCallback):
    """The files of the product that run from a step's beginning to its log."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        sys.setprofile(self._called)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        sys.setprofile(None)

    def _called(self, frame: Any, event: str, argument: Any) -> None:
        path, product = Path(frame.f_code.co_filename), Path(commit_tuning.__file__).parent
        if path.is_relative_to(product):
            self.files.add(path.relative_to(product).as_posix())


def test_one_step_page_names_each_file_once(tmp_path: Path) -> None:
    words = spans(ROOT / "docs" / "explanation" / "one-step.md")
    named = [word for word in words if word.endswith(".py")]
    trainer, trace = with_trainer(Task(tmp_path, config=CoMMITConfig()), max_steps=1), Trace()
    trainer.add_callback(trace)
    try:
        trainer.train()
    finally:
        sys.setprofile(None)
    assert "kappa" in trainer.state.log_history[0]
    assert sorted(named) == sorted(trace.files)
    assert len(named) < 17
