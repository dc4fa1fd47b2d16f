"""The fast probe of a transformers model: logits at answer positions only, encoder outputs reused."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from commit_tuning.core.forward import Batch, ForwardPass, InputNorms, PlainForward
from commit_tuning.core.partition import LANGUAGE_MODEL
from commit_tuning.models.partition import ENCODER_OF_MODALITY, part_of_parameter, unwrap

_RAW_INPUTS = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features"}


def forward_pass(model: nn.Module) -> ForwardPass:
    """The fastest way to probe a model: `TransformersForward` where it has an output head to hook, else a plain one."""
    base = unwrap(model)
    is_transformers = hasattr(base, "get_output_embeddings") and hasattr(base, "get_decoder")
    if is_transformers and isinstance(base.get_output_embeddings(), nn.Module):
        return TransformersForward(model)
    return PlainForward(model)


class TransformersForward:
    """A transformers model as the probe sees it.

    Only the answers' hidden states reach the output head, so logits of [batch, length, vocabulary] never exist. Where
    the model's `forward` takes `mm_encoder_outputs`, the encoders run once per set of their values.

    Args:
        model: A transformers model, wrapped or not.
        reuse_features: Whether to pass encoder outputs on; False runs the whole model each time.
    """

    def __init__(self, model: nn.Module, reuse_features: bool = True) -> None:
        self.model = model
        self._base = unwrap(model)
        self._parameters = inspect.signature(self._base.forward).parameters
        self._reuses_features = reuse_features and "mm_encoder_outputs" in self._parameters
        self._part_of = part_of_parameter(self._base) if self._reuses_features else {}
        self.placeholder_tokens = _placeholder_tokens(self._base.config)
        self.end_tokens = _end_tokens(self._base)

    def features(self, batch: Batch) -> dict[str, Any]:
        """Run the encoders whose raw inputs are in the batch.

        Returns:
            Encoder name to `{modality: encoder output}`, in the form that `mm_encoder_outputs` takes.
        """
        features: dict[str, Any] = {}
        if not self._reuses_features:
            return features
        for modality, module in ENCODER_OF_MODALITY.items():
            if batch.get(_RAW_INPUTS[modality]) is not None:
                encode = getattr(self._base, f"get_{modality}_features")
                wanted = inspect.signature(encode).parameters
                arguments = {key: value for key, value in batch.items() if key in wanted}
                features.setdefault(module, {})[modality] = encode(**arguments, return_dict=True)
        return features

    def parts(self, parameters: Iterable[nn.Parameter]) -> set[str]:
        """The encoders whose features the parameters shape, and `language_model` for all others."""
        return {self._part_of.get(id(parameter), LANGUAGE_MODEL) for parameter in parameters}

    def logits(self, batch: Batch, mask: Tensor, features: dict[str, Any]) -> Tensor:
        """Logits [answers, vocabulary] at the True positions of `mask` [batch, length], in row-major order."""
        arguments = {key: value for key, value in batch.items() if key != "labels"}
        outputs = {modality: output for module in features.values() if module for modality, output in module.items()}
        if outputs:
            arguments.update({_RAW_INPUTS[modality]: None for modality in outputs}, mm_encoder_outputs=outputs)
        with self._answers_only(mask):
            logits: Tensor = self._base(**arguments, use_cache=False, return_dict=True).logits
        return logits.squeeze(0)

    @contextlib.contextmanager
    def _answers_only(self, mask: Tensor) -> Iterator[None]:
        """Let only the hidden states at `mask` reach the output head: [batch, length, width] -> [1, answers, width]."""

        def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            del module
            return (inputs[0][mask].unsqueeze(0), *inputs[1:])

        handle = self._base.get_output_embeddings().register_forward_pre_hook(narrow)
        try:
            yield
        finally:
            handle.remove()

    def input_norms(self, batch: Batch, features: dict[str, Any]) -> InputNorms | None:
        """Squared norms of text embeddings, raw inputs and encoder outputs, for H of Eq. 6."""
        if not features or "input_ids" not in batch:
            return None
        raw: dict[str, float] = {}
        encoded: dict[str, float] = {}
        for module, outputs in features.items():
            for modality, output in outputs.items():
                raw[module] = raw.get(module, 0.0) + _squared_norm(batch[_RAW_INPUTS[modality]])
                encoded[module] = encoded.get(module, 0.0) + _squared_norm(output.pooler_output)
        return InputNorms(self._text_norm(batch), raw, encoded)

    def _text_norm(self, batch: Batch) -> float:
        """Squared norm of the embeddings of real text tokens: neither padding nor image or audio placeholders."""
        ids = batch["input_ids"]
        keep = torch.ones_like(ids, dtype=torch.bool)
        if batch.get("attention_mask") is not None:
            keep &= batch["attention_mask"].bool()
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
