"""Every optimizer that people fine-tune with trains as ever under CoMMIT, at the rates that CoMMIT says.

A new one is a line in `OPTIMIZERS` or `NAMES_OF_OPTIMIZERS`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import values
from test_setups import EVERY_STEP, same, trainer
from tiny import build, make_batch

from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import PreviousStep, Probe
from commit_tuning.errors import BatchError, ConfigError
from commit_tuning.integrations.steps import StepHooks


def lion(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Chen et al. 2023 (arXiv 2302.06675), Algorithm 2."""

    class Lion(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in (p for p in group["params"] if p.grad is not None):
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(momentum.lerp(p.grad, 0.1).sign(), alpha=group["lr"])
                    momentum.lerp_(p.grad, 0.01)

    return Lion(groups, {"weight_decay": 0.1})


def transformers_adafactor(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(groups, scale_parameter=False, relative_step=False)


def eight_bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")
    return bitsandbytes.optim.AdamW8bit(groups)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "AdamW fused": lambda groups: torch.optim.AdamW(groups, fused=True),
    "AdamW foreach": lambda groups: torch.optim.AdamW(groups, foreach=True),
    "AdamW 8-bit": eight_bit,
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "Lion": lion,
    "Adafactor of torch": torch.optim.Adafactor,
    "Adafactor of transformers": transformers_adafactor,
}
STEPS = 6
Rates = list[list[float]]


class Loop:
    """A plain loop that can stop and go on; with a coordinator, or with rates set by hand, or with neither."""

    def __init__(self, optimizer: str, config: CoMMITConfig | None = None, by_hand: Rates | None = None) -> None:
        self.model, partition = build("llava")
        self.optimizer = OPTIMIZERS[optimizer](partition.param_groups(lr=1e-3, weight_decay=0.01))
        self.coordinator = Coordinator(self.model, self.optimizer, config, partition) if config else None
        self.by_hand, self.rates = by_hand, []
        self.optimizer.register_step_pre_hook(self._note)

    def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def go(self, steps: range) -> Loop:
        for step in steps:
            batch = make_batch("llava", 4, torch.float32, seed=step)
            self.model(**batch).loss.backward()
            for group, rate in zip(
                self.optimizer.param_groups, self.by_hand[step] if self.by_hand else (), strict=False
            ):
                group["lr"] = rate
            self.coordinator.step(batch) if self.coordinator else self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    @property
    def parts(self) -> list[Any]:
        return [part for part in (self.model, self.optimizer, self.coordinator) if part is not None]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_measurement_leaves_every_optimizer_unchanged(optimizer: str) -> None:
    plain = Loop(optimizer).go(range(STEPS))
    watched = Loop(optimizer, CoMMITConfig(method="constant", probe=Probe(interval=1))).go(range(STEPS))
    assert same(plain.model, watched.model)
    assert not same(plain.model, build("llava")[0])
    assert watched.coordinator.kappa > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_control_is_the_same_rates_set_by_hand(optimizer: str) -> None:
    controlled = Loop(optimizer, EVERY_STEP).go(range(STEPS))
    by_hand = Loop(optimizer, by_hand=controlled.rates).go(range(STEPS))
    assert same(controlled.model, by_hand.model)
    assert all(len(set(rates)) > 1 for rates in controlled.rates[2:])  # the modules' rates differ
    assert len({tuple(rates) for rates in controlled.rates}) > 2  # and change
    assert not same(controlled.model, Loop(optimizer).go(range(STEPS)).model)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_optimizer_equals_the_uninterrupted_one(optimizer: str) -> None:
    whole = Loop(optimizer, EVERY_STEP).go(range(STEPS))
    first, second = Loop(optimizer, EVERY_STEP).go(range(3)), Loop(optimizer, EVERY_STEP)
    for part, own in zip(first.parts, second.parts, strict=True):
        own.load_state_dict(copy.deepcopy(part.state_dict()))
    assert same(whole.model, second.go(range(3, STEPS)).model)
    assert whole.rates == first.rates + second.rates


def test_optimizer_with_its_own_rate_is_refused() -> None:
    from transformers.optimization import Adafactor

    model, partition = build("llava")
    with pytest.raises(ConfigError, match=r"Adafactor has no learning rate to coordinate .* relative_step=False"):
        Coordinator(model, Adafactor(model.parameters()), EVERY_STEP, partition)


NAMES_OF_OPTIMIZERS = ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adamw_bnb_8bit", "lion_32bit"]


@pytest.mark.parametrize("name", NAMES_OF_OPTIMIZERS)
def test_every_optimizer_that_the_trainer_knows_by_name(name: str, tmp_path: Path) -> None:
    from transformers import Trainer

    if "bnb" in name or "lion" in name:
        pytest.importorskip("bitsandbytes")
    plain = trainer(tmp_path, build("llava")[0], cls=Trainer, optim=name)
    watched = trainer(tmp_path, build("llava")[0], "constant", optim=name)
    controlled = trainer(tmp_path, build("llava")[0], optim=name)
    for each in (plain, watched, controlled):
        each.train()
    assert same(plain.model, watched.model)
    assert not same(plain.model, controlled.model)
    rates = controlled.coordinator.learning_rates
    assert rates["vision"] != rates["language_model"]


def skipping_step(scaler: torch.amp.GradScaler, coordinator: Coordinator, optimizer: Any, batch: Any) -> None:
    """How a loop of one's own steps under loss scaling."""
    coordinator.before_step(batch)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    coordinator.after_step(skipped=scaler.get_scale() < scale)


def scaled_loop(optimizer: str, through: str, overflow: str) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Six steps in fp16 under loss scaling; the third has a gradient that overflows, or is left out."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    loop, scaler = Loop(optimizer), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    wrapped = loop.optimizer
    if through == "accelerate":
        Accelerator(cpu=True)  # whose own fp16 has no scaler on a CPU
        wrapped = AcceleratedOptimizer(loop.optimizer, device_placement=False, scaler=scaler)
    coordinator = Coordinator(loop.model, wrapped, EVERY_STEP)
    if through == "hooks":  # as in Trainer and Lightning
        loop.optimizer.register_step_pre_hook(lambda *_: coordinator.before_step(batch))
        loop.optimizer.register_step_post_hook(lambda *_: coordinator.after_step())
    for step in range(6):
        if step == 2 and overflow == "left out":
            scaler.update(scaler.get_scale() / 2)
            continue
        batch = make_batch("llava", 4, torch.float32, seed=step)
        with torch.autocast("cpu", torch.float16):
            loss = loop.model(**batch).loss
        scaler.scale(loss).backward()
        if step == 2:
            loop.model.lm_head.weight.grad[0, 0] = torch.inf
        scaler.unscale_(loop.optimizer)
        with torch.autocast("cpu", torch.float16):
            if through == "accelerate":
                coordinator.step(batch)
            elif through == "hooks":
                scaler.step(loop.optimizer)
                scaler.update()
            else:
                skipping_step(scaler, coordinator, loop.optimizer, batch)
        loop.optimizer.zero_grad()
    return values(loop.model), coordinator.state_dict()


@pytest.mark.parametrize("through", ["plain loop", "accelerate", "hooks"])
@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW fused", "SGD"])
def test_step_skipped_by_scaler_leaves_no_trace(optimizer: str, through: str) -> None:
    found, state = scaled_loop(optimizer, through, "happens")
    expected, expected_state = scaled_loop(optimizer, through, "left out")
    assert state["steps"] == 5
    assert str(state) == str(expected_state)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_derived_optimizer_is_measured_once_a_step(tmp_path: Path) -> None:
    """Torch calls the hooks for both, once an optimizer of the class above has been made."""
    from transformers import Trainer

    class Derived(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    plain, watched = (trainer(tmp_path, build("llava")[0], "constant", cls=cls) for cls in (Trainer, None))
    for each in (plain, watched):
        each.optimizer = Derived(each.model.parameters(), lr=1e-3)
        each.train()
    assert same(plain.model, watched.model)
    assert watched.coordinator.kappa > 0
    assert watched.coordinator.state_dict()["steps"] == 3


REGULARIZED = CoMMITConfig(
    method="constant", probe=Probe(interval=1), regularizer=PreviousStep(weight=10.0, step="optimizer"))  # fmt: skip


@pytest.mark.parametrize("through", ["accelerate", "hooks"])
@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW fused"])
def test_scaled_gradients_are_as_plain_ones(optimizer: str, through: str) -> None:
    """A scale of a power of two is exact; the optimizer's step takes it off where nobody clips."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    if (optimizer, through) == ("AdamW", "hooks"):
        pytest.skip("the scaler takes the scale off before it calls this optimizer")
    found = []
    for scale in (1.0, 2.0**12):
        loop, scaler = Loop(optimizer), torch.amp.GradScaler("cpu", init_scale=scale)
        wrapped = loop.optimizer
        if through == "accelerate":
            Accelerator(cpu=True)
            wrapped = AcceleratedOptimizer(loop.optimizer, device_placement=False, scaler=scaler)
        coordinator = Coordinator(loop.model, wrapped, REGULARIZED)
        if through == "hooks":
            hooks = StepHooks(REGULARIZED, partition_model)
            hooks.begin(loop.model, loop.optimizer, contextlib.nullcontext)
            assert hooks.coordinator is not None
            coordinator = hooks.coordinator
        for step in range(3):
            batch = make_batch("llava", 4, torch.float32, seed=step)
            scaler.scale(loop.model(**batch).loss).backward()
            if through == "accelerate":
                coordinator.step(batch)
            else:
                hooks.add(batch)
                scaler.step(loop.optimizer)
                scaler.update()
            loop.optimizer.zero_grad()
        found.append((values(loop.model), coordinator.metrics()))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))


class Faulty(torch.optim.SGD):
    """Raises an error in the middle of a step that is told."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().step(closure)


@pytest.mark.parametrize("after", ["next batch", "same batch"])
@pytest.mark.parametrize("where", ["before the step", "in the step"])
def test_error_under_loss_scaling_leaves_no_trace(where: str, after: str) -> None:
    """A scaler that believes it has unscaled the gradients would leave the next ones thousands of times too large."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    found = []
    for faulty in (True, False):
        model, partition = build("llava")
        optimizer, scaler = Faulty(partition.param_groups(lr=1e-2)), torch.amp.GradScaler("cpu", init_scale=2.0**12)
        wrapped = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
        coordinator = Coordinator(model, wrapped, REGULARIZED, partition)
        for step in range(4):
            if step == 2 and not faulty and after == "next batch":
                continue
            batch = make_batch("llava", 4, torch.float32, seed=step)
            scaler.scale(model(**batch).loss).backward()
            if step == 2 and faulty:
                optimizer.fails = where == "in the step"
                broken = batch if optimizer.fails else {**batch, "labels": batch["labels"][0]}
                with pytest.raises((torch.OutOfMemoryError, BatchError)):
                    coordinator.step(broken)
                optimizer.fails = False
            if step != 2 or after == "same batch":
                coordinator.step(batch)
            wrapped.zero_grad()
        found.append((values(model), scaler.state_dict()))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
