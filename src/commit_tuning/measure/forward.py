"""How a model is asked for the distributions that the probe compares.

`ForwardPass` is the whole contract between the method and a model. `PlainForward` serves any `nn.Module`.
`TransformersForward` is faster: it takes logits at answer positions only, and reuses encoder outputs.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from commit_tuning.distributed import forget_old_values, is_sharded
from commit_tuning.errors import BatchError
from commit_tuning.partition.discover import ENCODER_OF_MODALITY, part_of_parameter, unwrap
from commit_tuning.partition.modules import LANGUAGE_MODEL

Batch = Mapping[str, Any]

# Transformers takes encoder outputs of images and videos; a model that takes others says so.
_REUSED = ("image", "video")
_RAW_PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "image_patches")
_RAW_SOUNDS = ("input_features", "input_values", "audio_input_ids", "audio_input_features", "fbank_features")
# What of a batch shapes the loss or the form of the output and not the logits; the probe has its own.
_NOT_LOGITS = {
    "labels",
    "logits_to_keep",
    "num_items_in_batch",
    "num_logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "use_cache",
}
_CACHES = ("past_key_values", "cache")  # the old name, and the one of transformers 5.24


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


class TransformersForward:
    """A transformers model as the probe sees it.

    Only the answers' hidden states reach the output head, so logits of [batch, length, vocabulary] never exist. Where
    the model's `forward` takes `mm_encoder_outputs`, the image encoder runs once per set of its values, and the audio
    encoder of a model whose `mm_encoder_modalities` names it; not under FSDP2, which gathers parameters for whole
    forward passes only.

    Args:
        model: A transformers model, wrapped or not.
        reuse_features: Whether to pass encoder outputs on; False runs the whole model each time.
    """

    def __init__(self, model: nn.Module, reuse_features: bool = True) -> None:
        self.model = model
        self._base = unwrap(model)
        self._head: Any = _output_head(self._base)
        takes_features = "mm_encoder_outputs" in inspect.signature(self._base.forward).parameters
        self._reused = getattr(self._base, "mm_encoder_modalities", _REUSED)
        self._raw = (*_RAW_PIXELS, *(_RAW_SOUNDS if "audio" in self._reused else ()))
        sharded = is_sharded(self._base)
        self._run = model if sharded else self._base  # FSDP2 gathers in its outermost module
        self._reuses_features = reuse_features and takes_features and not sharded
        self._part_of = part_of_parameter(self._base) if self._reuses_features else {}
        self._text_config = getattr(self._base.config, "text_config", self._base.config)
        self.shifts_labels = not getattr(self._text_config, "is_encoder_decoder", False)
        self.placeholder_tokens = _placeholder_tokens(self._base.config)
        self.end_tokens = _end_tokens(self._base)

    def features(self, batch: Batch) -> dict[str, Any]:
        """Run the encoders whose raw inputs are in the batch, if all in it whose outputs are reused can be taken so.

        Returns:
            Encoder name to `{modality: encoder output}`, in the form that `mm_encoder_outputs` takes.
        """
        features: dict[str, Any] = {}
        pixels = {name for name in self._raw if batch.get(name) is not None}
        for modality, (encode, wanted) in self._encoders.items() if self._reuses_features else ():
            if pixels & wanted:
                arguments = {key: value for key, value in batch.items() if key in wanted - _NOT_LOGITS}
                output = encode(**arguments, return_dict=True)
                if getattr(output, "pooler_output", None) is None:  # a projector comes after it, in the model's forward
                    self._reuses_features = False
                    return {}
                features.setdefault(ENCODER_OF_MODALITY[modality], {})[modality] = output
                pixels -= wanted
        return {} if pixels else features

    @cached_property
    def _encoders(self) -> dict[str, tuple[Any, set[str]]]:
        """Modality to the function that runs its encoder, and the names of what that takes."""
        owners = [getattr(self._base, "base_model", self._base), self._base]
        found = {}
        for modality in self._reused:
            function = next(
                (f for o in owners if (f := getattr(o, f"get_{modality}_features", None)) is not None), None
            )
            if function is not None:
                found[modality] = function, set(inspect.signature(function).parameters)
        return found

    def parts(self, parameters: Iterable[nn.Parameter]) -> set[str]:
        """The encoders whose features the parameters shape, and `language_model` for all others."""
        return {self._part_of.get(id(parameter), LANGUAGE_MODEL) for parameter in parameters}

    def logits(self, batch: Batch, mask: Tensor, features: dict[str, Any]) -> Tensor:
        """Logits [answers, vocabulary] at the True positions of `mask` [batch, length], in row-major order.

        Raises:
            BatchError: The batch holds a cache, to which the training pass has added its own keys and values.
        """
        for name in _CACHES:
            if batch.get(name) is not None:
                raise BatchError(
                    f"the batch holds {name!r}, which every forward pass lengthens, so it cannot be measured; "
                    "give the model the whole sequence instead"
                )
        arguments = {key: value for key, value in batch.items() if key not in _NOT_LOGITS}
        outputs = {modality: output for module in features.values() for modality, output in module.items()}
        if outputs:
            arguments.update({name: None for name in self._raw if name in batch}, mm_encoder_outputs=outputs)
        if not self.shifts_labels and batch.get("decoder_input_ids") is None:
            arguments["decoder_input_ids"] = self._before(batch["labels"])
        with self._answers_only(mask):
            logits: Tensor = self._run(**arguments, use_cache=self._uses_cache(batch), return_dict=True).logits
        return logits.squeeze(0)

    def _uses_cache(self, batch: Batch) -> bool | None:
        """Whether the probe runs with a cache; None leaves it to the model's configuration.

        Without a mask, models tell packed samples apart by their positions, but only in a pass without a cache. Where
        that matters the probe does as the training pass did, which has no cache under gradient checkpointing.
        """
        by_positions = batch.get("position_ids") is not None and batch.get("attention_mask") is None
        if not by_positions or any(getattr(m, "gradient_checkpointing", False) for m in self._base.modules()):
            return False
        return batch.get("use_cache")

    def _before(self, labels: Tensor) -> Tensor:
        """What a decoder reads before each label, which models make of the labels when they are given them."""
        config = self._text_config
        before = labels.roll(1, dims=-1)
        before[:, 0] = config.decoder_start_token_id
        return before.masked_fill(before == -100, config.pad_token_id)

    @contextlib.contextmanager
    def _answers_only(self, mask: Tensor) -> Iterator[None]:
        """Let only the hidden states at `mask` reach the output head: [batch, length, width] -> [1, answers, width]."""

        def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            del module
            hidden = inputs[0]  # of a model split over devices, not where the labels are
            return (hidden[mask.to(hidden.device)].unsqueeze(0), *inputs[1:])

        handle = self._head.register_forward_pre_hook(narrow)
        try:
            yield
        finally:
            handle.remove()

    def input_norms(self, batch: Batch, features: dict[str, Any]) -> InputNorms | None:
        """Squared norms of text embeddings, raw inputs and encoder outputs, for H of Eq. 6."""
        sounds = any(batch.get(name) is not None for name in _RAW_SOUNDS if name not in self._raw)
        if not features or sounds or "input_ids" not in batch:
            return None
        raw: dict[str, float] = {}
        encoded: dict[str, float] = {}
        for module, outputs in features.items():
            names = {name for modality in outputs for name in self._encoders[modality][1] if name in self._raw}
            raw[module] = sum(_squared_norm(batch[name]) for name in names if batch.get(name) is not None)
            encoded[module] = sum(_squared_norm(output.pooler_output) for output in outputs.values())
        return InputNorms(self._text_norm(batch), raw, encoded)

    def _text_norm(self, batch: Batch) -> float:
        """Squared norm of the embeddings of real text tokens: neither padding nor image or audio placeholders."""
        ids = batch["input_ids"]
        keep, mask = torch.ones_like(ids, dtype=torch.bool), batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == ids.shape:  # and not of pairs of tokens
            keep &= mask.bool()
        for placeholder in self.placeholder_tokens:
            keep &= ids != placeholder
        return _squared_norm(self._base.get_input_embeddings()(ids[keep]))


def _end_tokens(model: Any) -> tuple[int, ...]:
    """Where the model's `generate` stops."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return () if end is None else (end,) if isinstance(end, int) else tuple(end)


def _placeholder_tokens(config: Any) -> tuple[int, ...]:
    names = [f"{modality}_token_{suffix}" for modality in ENCODER_OF_MODALITY for suffix in ("id", "index")]
    return tuple({token for name in names if (token := getattr(config, name, None)) is not None})


def _squared_norm(value: Any) -> float:
    if isinstance(value, list | tuple):
        return sum(map(_squared_norm, value))
    return float(value.detach().float().square().sum())


def forward_pass(model: nn.Module) -> ForwardPass:
    """The fastest way to probe a model: `TransformersForward` where it has an output head to hook, else a plain one."""
    return TransformersForward(model) if _output_head(unwrap(model)) is not None else PlainForward(model)


def _output_head(base: Any) -> nn.Module | None:
    """What makes logits of hidden states: of the model, or of the decoder in it; None where neither has one."""
    if not hasattr(base, "get_output_embeddings") or not hasattr(base, "get_decoder"):
        return None
    for owner in (base, base.get_decoder()):
        head = owner.get_output_embeddings()
        if isinstance(head, nn.Module):
            return head
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
