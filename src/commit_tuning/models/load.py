"""Models and processors of transformers by a folder, a hub name, or a name that a plugin adds."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commit_tuning.errors import PartitionError, UserError, one_line
from commit_tuning.plugins import load_plugins
from commit_tuning.storage import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True)
class NamedModel:
    """A model that has a name of its own.

    Attributes:
        folder: Its files, as `save_pretrained` writes them.
        processor: Options of its processor's `from_pretrained`.
        classes: Python modules that tell transformers of the classes which the model needs.
        remedy: What to do where the folder is missing.
    """

    folder: Path
    processor: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    remedy: str = "install it again"


MODELS: dict[str, NamedModel] = {}
"""Models by name; plugins add theirs."""


def models() -> Mapping[str, NamedModel]:
    """Return the models by name, with those of plugins."""
    load_plugins()
    return MODELS


def load_model(name_or_path: str | Path, *, trust_remote_code: bool = False) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a vision- or audio-language model in evaluation mode, and its processor.

    Args:
        name_or_path: A local folder (`~` at its beginning is the home folder), a hub name, or a name in `models()`.
        trust_remote_code: Whether Python code that comes with the model is run.

    Raises:
        UserError: There is no such model, or transformers cannot load it whole.
        PartitionError: The model has no encoder beside a language model.
    """
    from transformers import AutoConfig, AutoModelForMultimodalLM

    place = _prepare(name_or_path)
    with _explained(place):
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    if type(config) not in AutoModelForMultimodalLM._model_mapping and not trust_remote_code:
        raise PartitionError(
            f"model {_quoted(place)} ({config.model_type}) has no image, video or audio encoder before a language "
            "model; CoMMIT balances one with the LLM"
        )
    processor = load_processor(name_or_path, trust_remote_code=trust_remote_code)
    with _explained(place):
        model, found = AutoModelForMultimodalLM.from_pretrained(
            place, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise UserError(
            f"model {_quoted(place)} is not whole: its weights lack {len(lacking)} tensors, first"
            f" {one_line(lacking[0])}; copy or save it again"
        )
    return model.eval(), processor


def load_processor(name_or_path: str | Path, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load a model's processor, from what :func:`load_model` takes.

    Raises:
        UserError: There is no such model, or transformers cannot load it.
    """
    from transformers import AutoProcessor

    place, named = _prepare(name_or_path), _named(name_or_path)
    options = named.processor if named else {}
    with _explained(place):
        processor: ProcessorMixin = AutoProcessor.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
    return processor


def max_positions(name_or_path: str | Path, trust_remote_code: bool = False) -> int | None:
    """Return the longest text that a model reads, in tokens, by what :func:`load_model` takes; None for no limit.

    Raises:
        UserError: There is no such model, or transformers cannot load it.
    """
    from transformers import AutoConfig

    place = _prepare(name_or_path)
    with _explained(place):
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def model_checksum(name_or_path: str | Path) -> str:
    """Return what tells a model's weights and files from others, by what :func:`load_model` takes.

    Returns:
        The SHA-256 over the files of a folder, or `commit:` and the hub's commit.

    Raises:
        UserError: There is no such model.
    """
    place = _prepare(name_or_path)
    folder = Path(place)
    if folder.is_dir():
        return _folder_checksum(folder)
    from transformers.utils.hub import cached_file, extract_commit_hash

    with _explained(place):  # a file alone: the configuration's class may be code of the model, which needs trust
        return f"commit:{extract_commit_hash(cached_file(place, 'config.json'), None)}"


def _folder_checksum(folder: Path) -> str:
    """Return the SHA-256 of a model's files and their names, without hidden and Markdown files.

    They lie in the folder itself, and those of a second tokenizer in a folder that is named after it.
    """
    files = {path.relative_to(folder): path for pattern in ("*", "*tokenizer*/*") for path in folder.glob(pattern)}
    seen = sorted((name.as_posix(), path) for name, path in files.items() if path.is_file() and path.suffix != ".md")
    lines = (f"{name} {sha256(path)}\n" for name, path in seen if not name.startswith("."))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_output(name_or_path: str | Path, output: Path) -> None:
    """Make sure that what is written does not come between the files of the model.

    Raises:
        UserError: It would.
    """
    place = _place(name_or_path)
    there = os.path.isdir(place) and os.path.isdir(output)  # noqa: PTH112 (it never raises)
    if there and os.path.samefile(place, output):  # noqa: PTH121
        raise UserError(f"{output} is the folder of the model; choose another --output, such as one below it")


def _named(name_or_path: str | Path) -> NamedModel | None:
    return models().get(str(Path(name_or_path)))


def _place(name_or_path: str | Path) -> str:
    """Return where transformers looks for a model: a folder, or the hub's name."""
    named = _named(name_or_path)
    return str(named.folder) if named else os.path.expanduser(name_or_path)  # noqa: PTH111 (it never raises)


def _prepare(name_or_path: str | Path) -> str:
    """Tell transformers of the classes that this package adds, and to ask nothing; returns the place it looks for."""
    refuse_missing(name_or_path)
    from transformers import dynamic_module_utils

    import commit_tuning.models.salmonn  # noqa: F401

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # a part of a processor asks on the terminal whatever we say
    named = _named(name_or_path)
    for module in named.classes if named else ():
        importlib.import_module(module)
    return _place(name_or_path)


def refuse_missing(name_or_path: str | Path) -> None:
    """Find out without loading anything.

    Raises:
        UserError: A path where there is nothing, or a file.
    """
    named = _named(name_or_path)
    if named is not None:
        if not named.folder.is_dir():
            raise UserError(f"no model {str(name_or_path)!r} here yet: {named.remedy}")
        return
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111
    if os.path.isfile(path):  # noqa: PTH113
        raise UserError(f"model {_quoted(path)} is a file: give the folder that it lies in, or a name")
    if (path.is_absolute() or len(path.parts) > 2) and not os.path.isdir(path):  # noqa: PTH112
        raise UserError(f"model {_quoted(path)} is not there: give a folder, or a name of the hub")


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn what transformers says about a model that it cannot load into one line.

    What it raises on damaged files is of any kind.
    """
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model {_quoted(place)} comes with Python code of its own, which is not run unasked: read the code,"
                " and set model.trust_remote_code=true if you trust it"
            ) from error
        names = "".join(f", {name}" for name in models())
        raise UserError(
            f"model {_quoted(place)} cannot be loaded ({type(error).__name__}: {one_line(error)}): give a folder with a"
            f" transformers vision- or audio-language model, its hub name{names}"
        ) from error


def _quoted(place: str | Path) -> str:
    return one_line(repr(str(place)), 300)
