"""How a model is asked for the distributions that the probe compares.

`ForwardPass` is the whole contract between the method and a model. `PlainForward` serves any `nn.Module`; a faster one
for transformers models is in `commit_tuning.models`.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from commit_tuning.distributed import forget_old_values
from commit_tuning.errors import BatchError
from commit_tuning.partition.modules import LANGUAGE_MODEL

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class InputNorms:
    """Squared L2 norms of what goes into the modules, summed over a batch; the denominators of H (Eq. 6).

    Attributes:
        text: Of the text embeddings, I_X.
        raw: Of each encoder's raw input (pixels, spectrogram), I_S.
        features: Of each encoder's output, S(I_S).
    """

    text: float
    raw: dict[str, float]
    features: dict[str, float]


class ForwardPass(Protocol):
    """A model as the probe sees it. Features are encoder outputs by encoder name, passed on without a look inside.

    Attributes:
        model: The model.
        end_tokens: Ids of the tokens that end an answer; empty where that is not known.
        placeholder_tokens: Ids of the tokens that stand for an encoder's output, so that no answer may hold them.
        shifts_labels: Whether the logits at position j predict the label at j + 1.
    """

    model: nn.Module
    shifts_labels: bool
    end_tokens: tuple[int, ...]
    placeholder_tokens: tuple[int, ...]

    def features(self, batch: Batch) -> dict[str, Any]:
        """Run every encoder on the batch; empty where features cannot be reused."""
        ...

    def parts(self, parameters: Iterable[nn.Parameter]) -> set[str]:
        """Where parameters act: the encoders whose features they shape, and `language_model` for what comes after.

        What lies in no encoder, or in one whose features cannot be reused, is `language_model`.
        """
        ...

    def logits(self, batch: Batch, mask: Tensor, features: dict[str, Any]) -> Tensor:
        """Logits [answers, vocabulary] at the True positions of `mask` [batch, length], in row-major order."""
        ...

    def input_norms(self, batch: Batch, features: dict[str, Any]) -> InputNorms | None:
        """The norms of Eq. 6, or None where the model does not show its inputs."""
        ...


class PlainForward:
    """Any module with `model(**batch).logits` [batch, length, vocabulary]: a full forward pass, nothing reused."""

    end_tokens: tuple[int, ...] = ()
    placeholder_tokens: tuple[int, ...] = ()
    shifts_labels = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def features(self, batch: Batch) -> dict[str, Any]:
        """Nothing to reuse."""
        del batch
        return {}

    def parts(self, parameters: Iterable[nn.Parameter]) -> set[str]:
        """The one part that always runs."""
        del parameters
        return {LANGUAGE_MODEL}

    def logits(self, batch: Batch, mask: Tensor, features: dict[str, Any]) -> Tensor:
        """A full forward pass, labels included as the model's contract has them, and the answers' rows of its logits.

        Raises:
            BatchError: The output has no `logits` of [batch, length, vocabulary].
        """
        del features
        named = {"return_dict": True} if "return_dict" in batch else {}
        logits = getattr(self.model(**{**batch, **named}), "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != mask.shape:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BatchError(
                f"model(**batch).logits must be [batch, length, vocabulary] to match the labels, not {found}"
            )
        return logits[mask]

    def input_norms(self, batch: Batch, features: dict[str, Any]) -> InputNorms | None:
        """Not known for an arbitrary module."""
        del batch, features
        return None


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode and leave no trace: each module's mode and all random states are put back.

    Under autocast a fresh context without the weight cache is opened, because a cached cast would hide swapped weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    python_state = random.getstate()
    devices = [device] if device.type == "cuda" else []
    autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if torch.is_autocast_enabled(device.type):
        autocast = torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=False)
    forget_old_values(model)
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), autocast:
            yield
    finally:
        random.setstate(python_state)
        for module, training in modes:
            module.training = training
        forget_old_values(model)
