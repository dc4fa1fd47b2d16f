"""Damaged manifests of built datasets: the dataset is refused in one line, or is as it was."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from campaign import inputs, no_hang
from damage import damage
from hypothesis import given
from hypothesis import strategies as st

from commit_lab.nano.building import MANIFEST, build
from commit_tuning.data.tasks import tasks
from commit_tuning.errors import UserError


def fill(root: Path) -> dict[str, Any]:
    (root / "problems.json").write_text("{}")
    return {"versions": {"pillow": "1"}, "concepts": ["cat"]}


def refusal(root: Path) -> str:
    """What is said of a dataset that is opened; nothing if it is taken."""
    try:
        tasks()["nano-iconqa"].root(str(root))
    except UserError as error:
        return str(error)
    return ""


@given(data=st.data())
@inputs(50, 350)
def test_damaged_dataset_manifest_is_said(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = build(Path(made, "data"), "Nano", {"seed": 0}, fill)
        before = json.loads((root / MANIFEST).read_text())
        damage(root / MANIFEST, data)
        with no_hang():
            line = refusal(root)
        assert line.isprintable()
        assert line or json.loads((root / MANIFEST).read_text()) == before
