"""Multimodal models of about one million parameters, for experiments that take seconds to minutes on one core.

All are plain transformers models in the structure of their large namesakes (LLaVA-1.5, Liu et al. 2023; BLIP-2,
Li et al. 2023; InternVL2, Chen et al. 2024), or this package's SALMONN (Tang et al. 2024), with real processors, so
whatever works with them works with the large ones. Their weights come with the package; ``scripts/pretrain_nano.py``
made them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from commit_tuning.errors import PartitionError, UserError, one_line
from commit_tuning.models.nano_build import (
    NANO_MODELS,
    WEIGHTS_FOLDER,
    build_model,
    build_processor,
    build_tokenizer,
    known,
)
from commit_tuning.models.small import SMALL_FOLDER, SMALL_MODELS
from commit_tuning.storage import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

__all__ = [
    "NANO_MODELS",
    "WEIGHTS_FOLDER",
    "build_model",
    "build_processor",
    "build_tokenizer",
    "load_model",
    "load_nano",
    "load_processor",
    "model_checksum",
]


def load_nano(name: str, pretrained: bool = True) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Nano model in evaluation mode (fp32, CPU) and its processor, from the package's own files.

    Args:
        name: One of :data:`NANO_MODELS`.
        pretrained: False gives untrained weights, the same every time.

    Raises:
        UserError: Unknown name.
    """
    from transformers import AutoModelForMultimodalLM

    processor = load_processor(known(name))
    if not pretrained:
        return build_model(name, len(processor.tokenizer)), processor
    folder = WEIGHTS_FOLDER / name
    return AutoModelForMultimodalLM.from_pretrained(folder, local_files_only=True, dtype="float32").eval(), processor


def load_model(name_or_path: str | Path, *, trust_remote_code: bool = False) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Vision- or audio-language model and processor: a nano name, or a local folder or hub name of transformers.

    Args:
        name_or_path: The name; `~` at the beginning of a folder's is the home folder.
        trust_remote_code: Whether Python code that comes with the model is run.

    Raises:
        UserError: Neither a nano name nor something that transformers can load whole.
        PartitionError: The model has no encoder beside a language model.
    """
    if str(name_or_path) in NANO_MODELS:
        return load_nano(str(name_or_path))
    from transformers import AutoConfig, AutoModelForMultimodalLM

    place = _prepare(name_or_path)
    with _explained(place):
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    if type(config) not in AutoModelForMultimodalLM._model_mapping and not trust_remote_code:
        raise PartitionError(
            f"model {_quoted(place)} ({config.model_type}) has no image, video or audio encoder before a language "
            "model; CoMMIT balances one with the LLM"
        )
    processor = load_processor(place, trust_remote_code=trust_remote_code)
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
    """Processor of a model, by the names that :func:`load_model` takes.

    Raises:
        UserError: Neither a nano name nor something that transformers can load.
    """
    from transformers import AutoProcessor

    place = _prepare(name_or_path)
    if place in NANO_MODELS:
        nano: ProcessorMixin = AutoProcessor.from_pretrained(
            WEIGHTS_FOLDER / place, local_files_only=True, backend="pil"
        )
        return nano
    with _explained(place):
        processor: ProcessorMixin = AutoProcessor.from_pretrained(place, trust_remote_code=trust_remote_code)
    return processor


def max_positions(name_or_path: str | Path, trust_remote_code: bool = False) -> int | None:
    """The longest text that a model reads, in tokens, by the names that :func:`load_model` takes; None for no limit.

    Raises:
        UserError: Neither a nano name nor something that transformers can load.
    """
    from transformers import AutoConfig

    place = _prepare(name_or_path)
    with _explained(place):
        folder = WEIGHTS_FOLDER / place if place in NANO_MODELS else place
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def model_checksum(name_or_path: str | Path) -> str:
    """What tells a model's weights and files from others, by the names that :func:`load_model` takes.

    Returns:
        The SHA-256 over the files of a folder, or `commit:` and the hub's commit.

    Raises:
        UserError: There is no such model.
    """
    place = _prepare(name_or_path)
    folder = WEIGHTS_FOLDER / place if place in NANO_MODELS else Path(place)
    if folder.is_dir():
        return _folder_checksum(folder)
    from transformers.utils.hub import cached_file, extract_commit_hash

    with _explained(place):  # a file alone: the configuration's class may be code of the model, which needs trust
        return f"commit:{extract_commit_hash(cached_file(place, 'config.json'), None)}"


def _folder_checksum(folder: Path) -> str:
    """The SHA-256 of the files that a model is loaded from, with their names; none of them is hidden or Markdown.

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
    place = os.path.expanduser(name_or_path)  # noqa: PTH111
    there = os.path.isdir(place) and os.path.isdir(output)  # noqa: PTH112 (it never raises)
    if there and str(name_or_path) not in NANO_MODELS and os.path.samefile(place, output):  # noqa: PTH121
        raise UserError(f"{output} is the folder of the model; choose another --output, such as one below it")


def _prepare(name_or_path: str | Path) -> str:
    """Tell transformers of the classes that this package adds, and to ask nothing; returns the name it looks for."""
    refuse_missing(name_or_path)
    from transformers import dynamic_module_utils

    import commit_tuning.models.nano_internvl
    import commit_tuning.models.salmonn  # noqa: F401

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # a part of a processor asks on the terminal whatever we say
    return os.path.expanduser(name_or_path)  # noqa: PTH111 (it never raises)


def refuse_missing(name_or_path: str | Path) -> None:
    """Find out without loading anything.

    Raises:
        UserError: A small model that is not assembled yet, a path where there is nothing, or a file.
    """
    if str(name_or_path) in NANO_MODELS:
        return
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111
    if path.parent == SMALL_FOLDER and path.name in SMALL_MODELS and not path.is_dir():
        raise UserError(
            f"no model {str(path)!r} here yet: make it with `python scripts/assemble_small.py {path.name}`"
            " (docs/small-scale.md)"
        )
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
        raise UserError(
            f"model {_quoted(place)} cannot be loaded ({type(error).__name__}: {one_line(error)}): give one of"
            f" {', '.join(NANO_MODELS)}, a folder with a transformers vision- or audio-language model, or its hub name"
        ) from error


def _quoted(place: str | Path) -> str:
    return one_line(repr(str(place)), 300)
