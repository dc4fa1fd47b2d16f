"""From a recipe's `model` section to a model that is ready for tuning."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from commit_tuning.errors import UserError, one_line
from commit_tuning.models.load import load_model
from commit_tuning.partition.discover import partition_model, unwrap
from commit_tuning.storage import explained, replacing, sync, temporary_path
from commit_tuning.train.recipe.schema import Lora, Model
from commit_tuning.train.record import ADAPTER, WEIGHTS

_PEFT_PREFIX = "base_model.model."
_ADAPTER_WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"
_ADAPTER_FILES = (_ADAPTER_WEIGHTS, f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/README.md")


def build_model(settings: Model, device: str, checkpointed: bool = False) -> tuple[Any, Any]:
    """Load the model, put adapters on its language model, free its encoder and freeze what the recipe names.

    Args:
        settings: The recipe's `model` section.
        device: Where the model goes, e.g. `"cpu"`.
        checkpointed: Whether to train it with gradient checkpointing.

    Returns:
        The model (a `PeftModel` when `settings.lora` is set) and its processor.

    Raises:
        UserError: An unknown model or device, an encoder-decoder, target modules that the language model does not have,
            or a freeze pattern that matches no parameter.
    """
    model, processor = load_model(settings.name, trust_remote_code=settings.trust_remote_code)
    if getattr(model.config.get_text_config(), "is_encoder_decoder", False):
        raise UserError(
            f"model {settings.name!r} is an encoder-decoder, which recipes do not train: take your own loop or trainer "
            "(docs/howto/index.md)"
        )
    model = prepare(model, settings)
    if checkpointed:
        checkpoint_gradients(model)
    try:
        return model.to(device), processor
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use train.device {device!r}: {one_line(error)}") from None


def prepare(model: Any, settings: Model) -> Any:
    """What `build_model` does to a model that is there: adapters, what is trained and what is not, number formats.

    Args:
        model: A transformers vision- or audio-language model, on any device, the meta device too.
        settings: The recipe's `model` section; its `name` is not read.

    Raises:
        UserError: As for `build_model`.
    """
    model.requires_grad_(True)
    partition = partition_model(model)
    if settings.lora is not None:
        model = add_lora(model, settings.lora)
        for module in partition.encoders:
            for parameter in partition[module]:
                parameter.requires_grad_(True)
    freeze(model, settings.freeze)
    if settings.dtype is not None:
        fixed = getattr(torch, settings.dtype)
        for parameter in model.parameters():
            precise = parameter.requires_grad or parameter.ndim <= 1  # norms and biases are small
            parameter.data = parameter.data.to(torch.float32 if precise else fixed)
    return model


def precision(settings: Model, device: str) -> AbstractContextManager[Any]:
    """The context in which a model of these settings runs: autocast where its `dtype` is bfloat16.

    It keeps no casts of weights, which would outlive a change of the weights inside the context.
    """
    if settings.dtype != "bfloat16":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False)


def checkpoint_gradients(model: Any) -> None:
    """Keep one activation of each layer for the backward pass, and compute the others anew; in training mode only.

    Raises:
        UserError: The model has no layers that can do so.
    """
    base = unwrap(model)
    enable = (
        getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    )  # the old name
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"train.gradient_checkpointing: {type(base).__name__} cannot do it ({error})") from None


def add_lora(model: Any, settings: Lora) -> Any:
    """Wrap a model with LoRA adapters on linear layers of its language model, and on nothing else.

    Raises:
        UserError: A target module that the language model does not have.
    """
    import peft

    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    linear = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    targets = linear - {"lm_head"} if settings.target_modules == "all-linear" else set(settings.target_modules)
    unknown = sorted(targets - linear)
    if unknown:
        raise UserError(
            f"model.lora.target_modules: the language model has no linear layer {unknown[0]!r}; "
            f"it has {', '.join(sorted(linear))}"
        )
    pattern = rf"{re.escape(prefix)}\.(.*\.)?({'|'.join(map(re.escape, sorted(targets)))})"
    config = peft.LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=pattern
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft asks transformers
        return peft.get_peft_model(model, config)


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Stop training every parameter whose name fits a pattern (`*` matches anything).

    Raises:
        UserError: A pattern fits no parameter.
    """
    named = _named(model)
    for pattern in patterns:
        fitting = [name for name in named if fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(f"model.freeze: {pattern!r} fits no parameter; names look like {next(iter(named))!r}")
        for name in fitting:
            named[name].requires_grad_(False)


def weight_files(settings: Model) -> list[str]:
    """The files that `save_trainable` writes, relative to the folder of the run."""
    return [WEIGHTS, *(_ADAPTER_FILES if settings.lora is not None else ())]


def save_trainable(model: Any, folder: Path) -> None:
    """Store what was tuned: `adapter/` as peft reads it, the rest in `tuned.safetensors`, both by parameter name.

    Raises:
        UserError: The files cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tuned = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in _named(model).items()
        if _is_tuned(name, parameter)
    }
    try:
        if hasattr(model, "peft_config"):
            _save_adapter(model, folder)
        with replacing(folder / WEIGHTS) as temporary:
            save_file(tuned, temporary)
    except SafetensorError as error:
        raise UserError(f"cannot write the weights to {folder}: {error}; make room") from None


def _save_adapter(model: Any, folder: Path) -> None:
    """Have peft write beside `adapter/`, and move each file there when all are on the disk."""
    written = temporary_path(folder / ADAPTER)
    try:
        with explained(folder / ADAPTER):
            model.save_pretrained(written)
            for path in (*written.iterdir(), written):
                sync(path)
            (folder / ADAPTER).mkdir(exist_ok=True)
            for name in _ADAPTER_FILES:
                (written / Path(name).name).replace(folder / name)
            sync(folder / ADAPTER)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def load_trained(model: Any, folder: Path) -> None:
    """Put back what `save_trainable` stored.

    Args:
        model: Built with the same settings.
        folder: Of the run.

    Raises:
        UserError: The weights were not kept, are damaged or incomplete, or are of another model.
    """
    tuned = folder / WEIGHTS
    if not tuned.is_file():
        raise UserError(f"{folder} holds no weights ({WEIGHTS}): train it with train.save_weights=true")
    named = {name: parameter for name, parameter in _named(model).items() if _is_tuned(name, parameter)}
    stored = _read_weights(tuned, named)
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        set_peft_model_state_dict(model, _read_weights(folder / _ADAPTER_WEIGHTS, get_peft_model_state_dict(model)))
    with torch.no_grad():
        for name, value in stored.items():
            named[name].copy_(value)


def _read_weights(path: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a file, which have to be those that the model has, in name and shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or train again") from None
    strange = [n for n, value in stored.items() if n not in expected or expected[n].shape != value.shape]
    if strange:
        raise UserError(f"{path} is of another model: it has {strange[0]!r}, {len(strange)} such in all")
    missing = [name for name in expected if name not in stored]
    if missing:
        raise UserError(f"{path} lacks {missing[0]!r}, {len(missing)} such in all; restore it, or train again")
    return stored


def _named(model: Any) -> dict[str, nn.Parameter]:
    """The parameters by the names that they have without adapters."""
    return {name.removeprefix(_PEFT_PREFIX): parameter for name, parameter in model.named_parameters()}


def _is_tuned(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is trained and no adapter's."""
    return parameter.requires_grad and ".lora_" not in name


def count_parameters(parameters: list[torch.nn.Parameter]) -> int:
    """Number of scalars."""
    return sum(parameter.numel() for parameter in parameters)
