"""What a recipe can ask for that only large models need: number formats and gradient checkpointing."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from small_experiment import make_experiment
from tiny import tiny_blip2, tiny_llava
from torch import nn

from commit_tuning.errors import UserError
from commit_tuning.train.evaluate import evaluate
from commit_tuning.train.model_setup import checkpoint_gradients, precision, prepare
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Lora, Model
from commit_tuning.train.runner import train


@pytest.mark.parametrize("make", [tiny_llava, tiny_blip2])
def test_only_frozen_matrices_have_low_precision(make: object) -> None:
    model = prepare(make(), Model(name="tiny", lora=Lora(r=2), dtype="bfloat16"))  # type: ignore[operator]
    formats = {(p.requires_grad, p.ndim > 1, p.dtype) for p in model.parameters()}
    assert (False, True, torch.bfloat16) in formats
    assert {dtype for trained, matrix, dtype in formats if trained or not matrix} == {torch.float32}


def test_by_default_weights_stay_as_they_were_stored() -> None:
    settings = Model(name="tiny", lora=None)
    assert {p.dtype for p in prepare(tiny_llava().half(), settings).parameters()} == {torch.float16}
    assert isinstance(precision(settings, "cpu"), nullcontext)
    with precision(Model(name="tiny", dtype="bfloat16"), "cpu"):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("make", [tiny_llava, tiny_blip2])
def test_checkpointing_changes_no_gradient(make: object) -> None:
    torch.manual_seed(0)
    model = make().train()  # type: ignore[operator]
    tokens = torch.cat([torch.full((2, 4), 3), torch.randint(4, 24, (2, 5))], dim=1)
    batch = {"input_ids": tokens, "labels": tokens, "pixel_values": torch.randn(2, 3, 8, 8)}
    found = []
    for _ in range(2):
        torch.manual_seed(1)  # the same dropout
        model.zero_grad()
        model(**batch).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        checkpoint_gradients(model)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_model_without_layers_to_checkpoint_is_named() -> None:
    class Rigid(nn.Module):
        def gradient_checkpointing_enable(self, settings: object) -> None:
            raise ValueError("no support")

    with pytest.raises(UserError, match="Rigid cannot do it"):
        checkpoint_gradients(Rigid())


def test_bfloat16_run_with_gradient_checkpointing_is_evaluated(tmp_path: Path) -> None:
    recipe = make_experiment(tmp_path)
    settings = ["model.dtype=bfloat16", "train.gradient_checkpointing=true"]
    plain = train(load_recipe(recipe), tmp_path / "plain")
    half = train(load_recipe(recipe, settings), tmp_path / "half")
    assert half.complete
    loss, expected = half.metrics["train_loss"], plain.metrics["train_loss"]
    assert loss == pytest.approx(expected, rel=0.02)
    assert loss != expected
    assert evaluate(str(tmp_path / "half")).scores["questions"] == 9
