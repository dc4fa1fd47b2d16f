"""Batches without an image between those that have one: the encoder has neither gradient nor drift from them.

A mixed run goes on, with a moving average of image batches alone; a run that sees nothing but text is told.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import build, make_batch
from torch import Tensor

from commit_tuning import CoMMITConfig, Coordinator
from commit_tuning.config import Bounded, Compensated, Probe, TrustRegion


def text_batch(seed: int) -> dict[str, Tensor]:
    """A batch without an image."""
    batch = make_batch("llava", 4, torch.float32, seed=seed)
    del batch["pixel_values"]
    batch["input_ids"] = batch["input_ids"].clamp_min(4)
    return batch


def train_on(kinds: str, **settings: Any) -> tuple[Coordinator, list[float]]:
    """T is a batch of text, I one with images, - one that leaves zeros for gradients, as a dummy image does."""
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(**settings), partition)
    measured = []
    for step, kind in enumerate(kinds):
        batch = make_batch("llava", 4, torch.float32, seed=step) if kind == "I" else text_batch(step)
        model(**batch).loss.backward()
        coordinator.step(batch)
        measured.append(coordinator.kappa if coordinator._last.measured else None)
        optimizer.zero_grad(set_to_none=kinds[step + 1 : step + 2] != "-")
    return coordinator, measured


@pytest.mark.parametrize("text", ["T", "-"])
@pytest.mark.parametrize("controller", [TrustRegion(), Compensated(warmup=1), Bounded(warmup=1)])
def test_text_batches_change_no_average_hide_no_encoder(text: str, controller: Any) -> None:
    """Text comes at every fifth step, when a measurement is due: each is made up for at the next image."""
    kinds = f"{text}IIII" * 5
    coordinator, measured = train_on(kinds, controller=controller)
    assert all(kappa is None or (kappa > 0) == (kind == "I") for kind, kappa in zip(kinds, measured, strict=True))
    assert [step for step, kappa in enumerate(measured) if kappa is not None] == [
        step for due in range(0, 25, 5) for step in (due, due + 1)
    ]
    assert len(coordinator._balance.windows["vision"]) == 5
    assert coordinator.smoothed_kappa > 0
    assert coordinator.multipliers["vision"] not in (1.0, 0.01)  # under control
    assert coordinator.starving == {}


def test_owed_measurement_survives_skipped_step_and_resume() -> None:
    coordinator, _ = train_on("TT")
    assert coordinator.state_dict()["owed"]
    batch = make_batch("llava", 4, torch.float32)
    coordinator._meter.forward.model(**batch).loss.backward()
    coordinator.before_step(batch)
    coordinator.after_step(skipped=True)
    assert coordinator.state_dict()["owed"]
    coordinator.step(batch)
    assert coordinator.kappa > 0
    assert not coordinator.state_dict()["owed"]


def test_run_on_text_alone_warns_once() -> None:
    with pytest.warns(UserWarning, match=r"'vision' starves since .*Do the batches hold its inputs") as caught:
        coordinator, measured = train_on("T" * 30, starvation_patience=4)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert not any(kappa is not None and kappa > 0 for kappa in measured)
    assert set(coordinator.starving) == {"vision"}
    assert coordinator.learning_rates["language_model"] > 1e-4  # which goes on, at a rate of its own


def accumulated(batches: list[dict[str, Tensor]]) -> Coordinator:
    """One step on several micro-batches, of which a measurement looks at four samples."""
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(probe=Probe(samples=4)), partition)
    for batch in batches:
        model(**batch).loss.backward()
    coordinator.step(batches)
    return coordinator


def test_text_in_front_of_images_hides_none() -> None:
    coordinator = accumulated([text_batch(0), make_batch("llava", 4, torch.float32)])
    assert coordinator.drift["vision"] > 0


def test_masked_images_in_front_are_no_alarm() -> None:
    """The encoder has its gradient from a sample that the measurement does not look at."""
    masked = make_batch("llava", 4, torch.float32)
    masked["attention_mask"][:, :4] = 0
    coordinator = accumulated([masked, make_batch("llava", 4, torch.float32, seed=1)])
    assert coordinator.drift["vision"] == 0
    assert coordinator.metrics()["step_norm/vision"] > 0


def test_micro_batches_of_a_skipped_step_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop inside `accelerator.accumulate` drops the gradients, and leaves out the micro-batch that would step."""
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(probe=Probe(samples=None)), partition)
    accumulation = optimizer.gradient_state = SimpleNamespace(sync_gradients=False)
    seen: list[int] = []
    prepare = coordinator.before_step
    monkeypatch.setattr(
        coordinator, "before_step", lambda kept, answers: (seen.append(len(kept)), prepare(kept, answers))
    )

    def micro_batch(seed: int, steps: bool) -> None:
        batch = make_batch("llava", 2, torch.float32, seed=seed)
        model(**batch).loss.backward()
        accumulation.sync_gradients = steps
        coordinator.step(batch)

    micro_batch(0, steps=False)
    optimizer.zero_grad()
    for start in (1, 4):
        micro_batch(start, steps=False)
        micro_batch(start + 1, steps=False)
        micro_batch(start + 2, steps=True)
        optimizer.zero_grad()
    assert seen == [3, 3]


def replace_gradients(model: Any) -> None:
    for parameter in (p for p in model.parameters() if p.grad is not None):
        parameter.grad = parameter.grad / 1


def bucket_views(model: Any) -> None:
    """DDP's `gradient_as_bucket_view` puts another tensor there in the backward pass of the last micro-batch."""
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad.clone()))


def nothing(model: Any) -> None:
    del model


def halve(model: Any) -> None:
    for parameter in (p for p in model.parameters() if p.grad is not None):
        parameter.grad.mul_(0.5)


KEPT: dict[str, tuple[Callable[[Any], None], Callable[[Any], None], int]] = {
    "accumulated": (nothing, nothing, 3),
    "replaced": (nothing, replace_gradients, 3),
    "bucket views": (bucket_views, nothing, 3),
    "scaled in place": (nothing, halve, 3),
    "dropped": (nothing, lambda model: model.zero_grad(), 1),
    "set to zero": (nothing, lambda model: model.zero_grad(set_to_none=False), 1),
}


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize("last", ["image", "text"])
def test_micro_batches_are_kept_with_their_gradients(case: str, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last reaches no encoder, whose gradient was there before."""
    prepare, between, expected = KEPT[case]
    model, partition = build("llava")
    optimizer = torch.optim.SGD(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(method="constant", probe=Probe(samples=None)), partition)
    accumulation = optimizer.gradient_state = SimpleNamespace(sync_gradients=False)
    prepare(model)
    seen: list[int] = []
    monkeypatch.setattr(coordinator, "before_step", lambda kept, answers: seen.append(len(kept)))
    monkeypatch.setattr(coordinator, "after_step", lambda skipped: None)
    for seed in range(3):
        batch = make_batch("llava", 2, torch.float32, seed=seed)
        if seed == 2 and last == "text":
            batch = text_batch(seed)
        model(**batch).loss.backward()
        accumulation.sync_gradients = seed == 2
        coordinator.step(batch)
        if seed == 1:
            between(model)
    assert seen == [expected]
