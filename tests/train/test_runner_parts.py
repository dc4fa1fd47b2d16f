"""The parts of a run: order of the data, accumulation, rates."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from small_experiment import EXAMPLE
from tiny import PlainModel, tiny_blip2, tiny_llava

from commit_tuning.errors import UserError
from commit_tuning.partition.discover import partition_model
from commit_tuning.train.dataset import chunks, data_order
from commit_tuning.train.model_setup import add_lora, freeze
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import Lora, Train
from commit_tuning.train.training import accumulate_gradients, build_scheduler, not_finite, starvation_note


def take(count: int, *, samples: int = 10, batch: int = 4, seed: int = 0) -> list[list[int]]:
    return list(itertools.islice(data_order(samples, batch, seed), count))


def test_data_order_is_the_seeds_alone() -> None:
    first = take(5)
    torch.manual_seed(99)
    assert take(5) == first
    assert take(5, seed=1) != first


def test_every_sample_comes_once_per_pass() -> None:
    flat = list(itertools.chain.from_iterable(take(5)))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert {len(batch) for batch in take(5)} == {4}
    assert len(take(1, samples=3, batch=8)[0]) == 8


def test_chunks() -> None:
    assert list(chunks([1, 2, 3], 2)) == [[1, 2], [3]]


def plain_batch(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 24, (rows, 9), generator=generator)
    labels = ids.clone()
    labels[: rows // 2, :6] = -100
    labels[rows // 2 :, :2] = -100
    return {"input_ids": ids, "pixels": torch.randn(rows, 6, generator=generator), "labels": labels}


def test_micro_batches_weigh_tokens_as_one_batch_does() -> None:
    model = PlainModel().eval()
    batch = plain_batch(4)
    whole = accumulate_gradients(model, [batch])
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    parts = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    assert accumulate_gradients(model, parts) == pytest.approx(whole, rel=1e-5)
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(found) == len(expected) > 0
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedules_warm_up(name: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 0.1, "module": "vision"}])
    scheduler = build_scheduler(optimizer, Train(steps=10, warmup_steps=2, scheduler=name))  # type: ignore[arg-type]
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([0.0, 0.05, 0.1])
    assert rates[-1] == pytest.approx(0.1) if name == "constant" else rates[-1] < 0.1


def test_the_progress_line_names_who_starves() -> None:
    assert starvation_note({}) == ""
    note = starvation_note({"vision": 120, "audio": 85})
    assert note == ", vision starves since step 120, audio starves since step 85"


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("commit.controller=trust-region", "commit.controller.drift_target"),
        ("commit.controller=bounded", "train.learning_rate"),
        ("commit.method=constant", "train.learning_rate"),
    ],
)
def test_nonfinite_loss_names_the_setting_that_helps(setting: str, advice: str, tmp_path: Path) -> None:
    recipe = load_recipe(EXAMPLE, ["train.learning_rate=1e-3", "train.steps=9", setting])
    assert not_finite(4, math.nan, recipe, tmp_path) == (
        f"the loss is nan at step 4 of 9 (learning rate 0.001, {tmp_path}); lower {advice}, or set train.max_grad_norm"
    )


@pytest.mark.parametrize("make", [tiny_llava, tiny_blip2])
def test_lora_is_the_language_models_alone(make: object) -> None:
    model = make()  # type: ignore[operator]
    language = {name for name, _ in partition_model(model).named_parameters("language_model").items()}
    wrapped = add_lora(model, Lora(r=2))
    adapted = {name for name, _ in wrapped.named_parameters() if ".lora_A" in name}
    assert adapted
    for name in adapted:
        base = name.removeprefix("base_model.model.").replace("lora_A.default.weight", "weight")
        assert base in language


def test_unknown_target_modules_are_named() -> None:
    with pytest.raises(UserError, match=r"no linear layer 'qkv'; it has .*q_proj"):
        add_lora(tiny_llava(), Lora(target_modules=("qkv",)))


def test_freeze() -> None:
    model = PlainModel()
    freeze(model, ("encoder.*",))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    with pytest.raises(UserError, match=r"'encodr\.\*' fits no parameter"):
        freeze(model, ("encodr.*",))
