"""What the pages say of the code, where it can be checked by reading."""

import json
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from commit_tuning.config import CoMMITConfig
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

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "model.lora": Lora,
    "data": Data,
    "train": Train,
    "eval": Eval,
    "compare": Compare,
    "compare.static_grid": StaticGrid,
}


def default_of(key: str) -> object:
    """What a key is where a recipe does not say; PydanticUndefined where a recipe has to."""
    section, _, name = key.rpartition(".")
    if section == "commit":
        return CoMMITConfig.__dataclass_fields__[name].default
    return SECTIONS[section].model_fields[name].default


def test_the_page_of_recipes_has_every_key_with_its_default() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]*?) ?\| ", page, re.MULTILINE))
    sections = {*SECTIONS, "commit"}
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
