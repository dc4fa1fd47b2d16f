"""Multimodal models of about one million parameters, for experiments that take seconds to minutes on one core.

All are plain transformers models in the structure of their large namesakes (LLaVA-1.5, Liu et al. 2023; BLIP-2,
Li et al. 2023; InternVL2, Chen et al. 2024), or this package's SALMONN (Tang et al. 2024), with real processors, so
whatever works with them works with the large ones. Their weights come with the package; ``scripts/pretrain_nano.py``
made them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from commit_tuning.errors import PartitionError, UserError
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


def load_model(name_or_path: str | Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Vision- or audio-language model and processor: a nano name, or a local folder or hub name of transformers.

    Raises:
        UserError: Neither a nano name nor something that transformers can load.
        PartitionError: The model has no encoder beside a language model.
    """
    if str(name_or_path) in NANO_MODELS:
        return load_nano(str(name_or_path))
    from transformers import AutoConfig, AutoModelForMultimodalLM

    _prepare(name_or_path)
    with _explained(name_or_path):
        config = AutoConfig.from_pretrained(name_or_path)
    if type(config) not in AutoModelForMultimodalLM._model_mapping:
        raise PartitionError(
            f"model {str(name_or_path)!r} ({config.model_type}) has no image, video or audio encoder before a language "
            "model; CoMMIT balances one with the LLM"
        )
    processor = load_processor(name_or_path)
    with _explained(name_or_path):
        return AutoModelForMultimodalLM.from_pretrained(name_or_path).eval(), processor


def load_processor(name_or_path: str | Path) -> ProcessorMixin:
    """Processor of a model, by the names that :func:`load_model` takes.

    Raises:
        UserError: Neither a nano name nor something that transformers can load.
    """
    from transformers import AutoProcessor

    _prepare(name_or_path)
    if str(name_or_path) in NANO_MODELS:
        folder = WEIGHTS_FOLDER / str(name_or_path)
        nano: ProcessorMixin = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        return nano
    with _explained(name_or_path):
        processor: ProcessorMixin = AutoProcessor.from_pretrained(name_or_path)
    return processor


def model_checksum(name_or_path: str | Path) -> str:
    """What tells a model's weights and files from others, by the names that :func:`load_model` takes.

    Returns:
        The SHA-256 over the files of a folder, or `commit:` and the hub's commit.

    Raises:
        UserError: There is no such model.
    """
    nano = str(name_or_path) in NANO_MODELS
    folder = WEIGHTS_FOLDER / str(name_or_path) if nano else Path(name_or_path)
    if folder.is_dir():
        return _folder_checksum(folder)
    from transformers import AutoConfig

    _prepare(name_or_path)
    with _explained(name_or_path):
        return f"commit:{AutoConfig.from_pretrained(name_or_path)._commit_hash}"


def _folder_checksum(folder: Path) -> str:
    """The SHA-256 of every file below a folder that is not hidden and no Markdown, with its name."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"}
    seen = sorted((name.as_posix(), path) for name, path in files.items() if not name.as_posix().startswith("."))
    return hashlib.sha256("".join(f"{name} {sha256(path)}\n" for name, path in seen).encode()).hexdigest()


def _prepare(name_or_path: str | Path) -> None:
    """Tell transformers of the classes that this package adds."""
    refuse_missing(name_or_path)
    import commit_tuning.models.nano_internvl
    import commit_tuning.models.salmonn  # noqa: F401


def refuse_missing(name_or_path: str | Path) -> None:
    """Find out without loading anything.

    Raises:
        UserError: A small model that is not assembled yet.
    """
    path = Path(name_or_path)
    if path.parent == SMALL_FOLDER and path.name in SMALL_MODELS and not path.is_dir():
        raise UserError(
            f"no model {str(path)!r} here yet: make it with `python scripts/assemble_small.py {path.name}`"
            " (docs/small-scale.md)"
        )


@contextlib.contextmanager
def _explained(name_or_path: str | Path) -> Iterator[None]:
    """Turn what transformers says about a model that it cannot load into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {str(name_or_path)!r} cannot be loaded ({reason}): give one of {', '.join(NANO_MODELS)},"
            " a folder with a transformers vision- or audio-language model, or its hub name"
        ) from error
