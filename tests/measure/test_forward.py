"""The probe's forward pass says what the training pass said, whatever else stands in the batch."""

from __future__ import annotations

from itertools import accumulate
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny import LENGTH, build, make_batch

from commit_tuning import BalanceMonitor, CoMMITConfig
from commit_tuning.config import Probe
from commit_tuning.errors import BatchError
from commit_tuning.measure.divergence import TargetPositions
from commit_tuning.measure.forward import evaluation_mode, forward_pass

F64 = torch.float64
SIZE = 4
OTHERS: dict[str, Any] = {
    "use_cache": True,
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "num_items_in_batch": torch.tensor(5),
    "logits_to_keep": 3,
}


def logits_in_training(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """What the training pass itself gives at the answers."""
    logits: torch.Tensor = model(**{**batch, "labels": None}).logits
    return logits.detach()[TargetPositions.of(batch, shift=True).mask]


def logits_in_probe(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    forward, mask = forward_pass(model), TargetPositions.of(batch, shift=True).mask
    with torch.no_grad(), evaluation_mode(model):
        return forward.logits(batch, mask, forward.features(batch))


def drifts(batch: dict[str, Any], **changes: Any) -> dict[str, float]:
    """The drift of a step that is taken on the unpacked samples, measured on a batch."""
    model, partition = build("llava", F64)
    for name, value in changes.items():
        setattr(model.config.text_config, name, value)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2))
    monitor = BalanceMonitor(model, optimizer, CoMMITConfig(probe=Probe(samples=None)), partition)
    model(**make_batch("llava", SIZE, F64)).loss.backward()
    monitor.step(batch)
    return monitor.drift


@pytest.mark.parametrize("key", list(OTHERS))
@pytest.mark.parametrize("value", ["as it is", "none"])
def test_arguments_of_the_loop_change_no_measurement(key: str, value: str) -> None:
    batch = make_batch("llava", SIZE, F64)
    assert drifts({**batch, key: None if value == "none" else OTHERS[key]}) == drifts(batch)


def test_a_plain_model_is_asked_for_an_object() -> None:
    class Tuple(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, return_dict: bool = True, **batch: Any) -> Any:
            output = self.inner(**batch)
            return output if return_dict else (output.loss, output.logits)

    model, partition = build("plain")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2))
    batch = {**make_batch("plain", SIZE, torch.float32), "return_dict": False}
    wrapped = Tuple(model)
    wrapped(**batch)[0].backward()
    monitor = BalanceMonitor(wrapped, optimizer, None, partition)
    monitor.step(batch)
    assert monitor.kappa > 0


@pytest.mark.parametrize("message", [None, "Model(\n" + "  (layer): Linear()\n" * 99 + ") got two values of 'x'"])
def test_batch_the_model_rejects_gives_one_line(message: str | None) -> None:
    model, partition = build("plain")
    if message is not None:
        model.encoder.register_forward_pre_hook(Mock(side_effect=TypeError(message)))
    monitor = BalanceMonitor(model, torch.optim.AdamW(partition.param_groups(lr=1e-2)), None, partition)
    wanted = "unexpected keyword argument 'weights'" if message is None else "Model\\( ... \\) got two values of 'x'"
    with pytest.raises(
        BatchError, match=f"the model takes no such batch .*keys: input_ids, labels, pixels.*{wanted}"
    ) as caught:
        monitor.before_step({**make_batch("plain", SIZE, torch.float32), **({"weights": 1} if message is None else {})})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_in_the_batch_is_refused(name: str) -> None:
    model, partition = build("llava")
    monitor = BalanceMonitor(model, torch.optim.AdamW(partition.param_groups(lr=1e-2)), None, partition)
    with pytest.raises(BatchError, match=f"'{name}'"):
        monitor.before_step({**make_batch("llava", SIZE, torch.float32), name: object()})


def packed(batch: dict[str, Any], by: str = "position_ids") -> dict[str, Any]:
    """The samples of a batch in one row, with what transformers' collators say of their bounds."""
    size, length = batch["input_ids"].shape
    row = {key: batch[key].reshape(1, -1) for key in ("input_ids", "labels")}
    row["labels"][:, ::length] = -100  # no sample predicts the first token of the next
    bounds = {
        "position_ids": torch.arange(length).repeat(size)[None],
        "seq_idx": torch.arange(size, dtype=torch.int32).repeat_interleave(length)[None],
        "cu_seq_lens_q": torch.tensor([0, *accumulate([length] * size)], dtype=torch.int32),
    }
    return {**row, "pixel_values": batch["pixel_values"], by: bounds[by]}


def test_packed_row_has_the_drift_of_its_samples() -> None:
    """Their answers have different lengths, so a mean over tokens would not do."""
    batch = make_batch("llava", SIZE, F64)
    assert drifts(packed(batch), use_cache=False) == pytest.approx(drifts(batch), rel=1e-9)


@pytest.mark.parametrize("by", ["position_ids", "seq_idx", "cu_seq_lens_q"])
def test_samples_of_a_packed_row_are_told_apart(by: str) -> None:
    batch = make_batch("llava", SIZE, F64)
    row, apart = (TargetPositions.of(given, shift=True) for given in (packed(batch, by), batch))
    assert row.samples == apart.samples == SIZE
    assert torch.equal(row.tokens, apart.tokens)
    assert torch.equal(row.targets, apart.targets)


MASKS = {
    "packed": packed,
    "no mask": lambda batch: {key: value for key, value in batch.items() if key != "attention_mask"},
    "positions and mask": lambda batch: {**batch, "position_ids": torch.arange(LENGTH).expand(SIZE, -1)},
    "pairs": lambda batch: {**batch, "attention_mask": torch.ones(SIZE, 1, LENGTH, LENGTH, dtype=torch.bool).tril()},
    "None": lambda batch: {**batch, "attention_mask": None},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("use_cache", ["in the batch", "not in the batch", True, False])
@pytest.mark.parametrize("name", list(MASKS))
def test_probe_uses_the_mask_of_training(name: str, use_cache: Any, checkpointing: bool) -> None:
    """Cache and checkpointing decide whether packed samples see each other."""
    model, _ = build("llava", F64)
    batch = MASKS[name](make_batch("llava", SIZE, F64))
    if isinstance(use_cache, bool):
        model.config.text_config.use_cache = use_cache
    else:
        batch["use_cache"] = use_cache == "in the batch"
    if checkpointing:
        model.model.language_model.gradient_checkpointing = True
    torch.testing.assert_close(logits_in_probe(model, batch), logits_in_training(model, batch))


def test_masks_of_pairs_leave_every_token_in_h() -> None:
    model, partition = build("llava")
    batch = MASKS["pairs"](make_batch("llava", SIZE, torch.float32))
    model(**batch).loss.backward()
    monitor = BalanceMonitor(model, torch.optim.AdamW(partition.param_groups(lr=1e-2)), None, partition)
    monitor.step(batch)
    assert monitor.metrics()["h/vision"] > 0
