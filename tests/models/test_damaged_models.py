"""Models that are damaged, not whole, or come with code of their own: one line each, and nothing is run or asked."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_experiment import write_llava

from commit_tuning.errors import UserError
from commit_tuning.models.load import load_model, load_processor, model_checksum

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whole"
    write_llava(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(name: str, **changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        old = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(old | changes), encoding="utf-8")

    return damage


def cut(name: str, length: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def lie(folder: Path) -> None:
    """The header says that a tensor is larger than the file."""
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = [10**9, 10**9]
    text = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def lose_half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file(dict(list(tensors.items())[::2]), weights, metadata={"format": "pt"})


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot be loaded"),
    "config cut": (cut("config.json", 100), "not a valid JSON file"),
    "config of another kind": (edit("config.json", vision_config=3), "cannot be loaded"),
    "config of no model": (edit("config.json", model_type="none"), "cannot be loaded"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
    "weights empty": (cut("model.safetensors", 0), "cannot be loaded"),
    "weights cut in their header": (cut("model.safetensors", 100), "cannot be loaded"),
    "weights cut": (cut("model.safetensors", 10_000), "cannot be loaded"),
    "weights that lie": (lie, "cannot be loaded"),
    "half of the weights": (lose_half, r"is not whole: its weights lack \d+ tensors, first "),
    "processor cut": (cut("processor_config.json", 20), "cannot be loaded"),
    "tokenizer empty": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_one_line(copy: Path, damage: str) -> None:
    make, message = DAMAGES[damage]
    make(copy)
    with pytest.raises(UserError, match=message) as caught:
        load_model(copy)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


CODE = """
from pathlib import Path
Path({mark!r}).touch()
class Mine: ...
"""


@pytest.fixture
def with_code(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that comes with code, and a person who says yes to whatever is asked on the terminal."""
    monkeypatch.setattr("builtins.input", lambda _="": "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (copy / "mine.py").write_text(CODE.format(mark=str(tmp_path / "ran")), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}),
        ("processor_config.json", {"processor_class": None, "auto_map": {"AutoProcessor": "mine.Mine"}}),
        ("processor_config.json", {"image_processor": {"image_processor_type": "Mine", "auto_map": "mine.Mine"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}),
    ],
)
def test_code_of_a_model_never_runs_unasked(
    with_code: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    edit(name, **changes)(with_code)
    for load in (load_model, load_processor):
        with contextlib.suppress(UserError):
            load(with_code)
    assert not (tmp_path / "ran").exists()


def test_the_setting_that_allows_code_is_named(with_code: Path) -> None:
    edit("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine"})(with_code)
    with pytest.raises(UserError, match=r"set model\.trust_remote_code=true if you trust it"):
        load_model(with_code)


def test_model_code_runs_when_trusted(with_code: Path, tmp_path: Path) -> None:
    edit("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine"})(with_code)
    with pytest.raises(UserError):  # `Mine` is no configuration
        load_model(with_code, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("~/no/such/model", "is not there"),
        ("/no/such/model", "is not there"),
        ("/" + "x" * 300, "is not there"),
        ("x" * 5000, "cannot be loaded"),
        ("a\0b", "cannot be loaded"),
        ("\udcff", "cannot be loaded"),
        (__file__, "is a file"),
    ],
)
def test_names_of_no_model(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_the_home_folder_may_be_short(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(whole.parent))
    assert load_model("~/whole")[0].config.model_type == "llava"


def test_checksum_of_a_hub_model_needs_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--own--model"  # as the hub's library keeps a model
    for name, content in {
        "refs/main": "a1" * 20,
        f"snapshots/{'a1' * 20}/config.json": json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "m.M"}}),
    }.items():
        (cached / name).parent.mkdir(parents=True)
        (cached / name).write_text(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", lambda *_, **__: None)
    assert model_checksum("own/model") == f"commit:{'a1' * 20}"


def test_checksum_is_of_the_models_files_alone(copy: Path) -> None:
    before = model_checksum(copy)
    for name in ("out/history.jsonl", "checkpoint-500/optimizer.pt", ".cache/x", "out/tokenizer/x"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("no model")
    (copy / "README.md").write_text("no model")
    assert model_checksum(copy) == before
    for name in ("modeling_mine.py", "qformer_tokenizer/tokenizer.json", "config.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("a change")
        assert model_checksum(copy) != before, name
        before = model_checksum(copy)
