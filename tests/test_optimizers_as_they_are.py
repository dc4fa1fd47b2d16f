"""What a monitor, or a controller without rates, leaves of an optimizer (all of it), and what control needs of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from added_method import ADDED
from tiny import build, make_batch
from torch import nn
from torch.optim import Optimizer

from commit_tuning import BalanceMonitor, CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import PreviousStep, Probe
from commit_tuning.control.groups import split_groups
from commit_tuning.control.step_watch import inner_optimizer
from commit_tuning.errors import ConfigError

WATCH = CoMMITConfig(method="constant", probe=Probe(interval=1))
EVERY_STEP = CoMMITConfig(probe=Probe(interval=1), lr_update_interval=1)
Parameters = list[nn.Parameter]


class Pair(Optimizer):
    """Muon for matrices and AdamW for the rest behind one face that shows the very groups of both."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        if not hasattr(torch.optim, "Muon"):
            pytest.skip(f"torch {torch.__version__} has no Muon")
        own = [*parameters]
        self.parts = (
            torch.optim.Muon([p for p in own if p.ndim == 2], lr=1e-3),
            torch.optim.AdamW([p for p in own if p.ndim != 2], lr=1e-3),
        )
        super().__init__(own, {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


class Lookahead:
    """A wrapper that is no torch optimizer and shares the groups of the one inside (Zhang et al. 2019)."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self) -> None:
        self.inner.step()

    def zero_grad(self) -> None:
        self.inner.zero_grad()


class Wrapper:
    """A wrapper that is no torch optimizer and changes parameters after the step of the one inside."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        old = [p.clone() for group in self.param_groups for p in group["params"]]
        self.optimizer.step()
        now = [p for group in self.param_groups for p in group["params"]]
        torch._foreach_lerp_(now, old, 0.5)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


class GroupCounter(torch.optim.AdamW):
    """Counts its steps in its groups, as apex's FusedAdam does."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        return super().step(closure)


class TensorCounter(torch.optim.AdamW):
    """Counts its steps in a tensor and in a list of its groups, in place."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group.setdefault("count", torch.zeros(())).add_(1)
            group.setdefault("log", []).append(len(group["log"]))
        return super().step(closure)


class GroupMemory(torch.optim.SGD):
    """Keeps in its groups what depends on their rates and on nothing else."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["last"] = group["lr"]
        return super().step(closure)


class RateInMomentum(Optimizer):
    """Momentum of the steps, not of the gradients, so that earlier rates are in every step."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                step = self.state[p].setdefault("step", torch.zeros_like(p))
                p.sub_(step.mul_(0.9).add_(p.grad, alpha=group["lr"]))


def of_package(name: str) -> Any:
    """A package that this one does not need; without it, its tests are skipped."""
    return pytest.importorskip(name)


def schedule_free(parameters: Any) -> Optimizer:
    optimizer: Any = of_package("schedulefree").AdamWScheduleFree(parameters, lr=1e-3)
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]


def relative_adafactor(parameters: Any) -> Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(parameters)  # type: ignore[no-any-return]


CONTROLLED = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")
OWN_WAY = ("ASGD", "Rprop")
MAKERS: dict[str, Callable[[Any], Any]] = {
    **{name: getattr(torch.optim, name) for name in (*CONTROLLED, *OWN_WAY)},
    "AdamW fused": lambda ps: torch.optim.AdamW(ps, fused=True),
    "AdamW foreach": lambda ps: torch.optim.AdamW(ps, foreach=True),
    "AdamW tensor rate": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(1e-3)),
    "Muon and AdamW": Pair,
    "Lookahead": lambda ps: Lookahead(torch.optim.AdamW(ps)),
    "Prodigy": lambda ps: of_package("prodigyopt").Prodigy(ps),
    "DoG": lambda ps: of_package("dog").DoG(ps),
    "LDoG": lambda ps: of_package("dog").LDoG(ps),
    "schedule-free": schedule_free,
    "Adafactor relative": relative_adafactor,
    "averaging wrapper": lambda ps: Wrapper(torch.optim.AdamW(ps)),
    "counter in groups": GroupCounter,
    "tensor counter in groups": TensorCounter,
    "rate in momentum": RateInMomentum,
}
SERVED = (
    *CONTROLLED, "AdamW fused", "AdamW foreach", "AdamW tensor rate", "Muon and AdamW", "Lookahead",
    "averaging wrapper",
    "counter in groups", "tensor counter in groups",
)  # fmt: skip
REFUSED = (*OWN_WAY, "Prodigy", "DoG", "LDoG", "schedule-free", "Adafactor relative", "rate in momentum")


def look(optimizer: Any) -> list[Any]:
    """Every object that somebody may hold: groups, what is in them, lists."""
    groups = optimizer.param_groups
    return [id(groups), *((id(group), {key: id(value) for key, value in group.items()}) for group in groups)]


def train(name: str, config: CoMMITConfig | None, monitor: bool = False) -> tuple[list[torch.Tensor], list[Any], Any]:
    model, partition = build("plain")
    optimizer = MAKERS[name](list(model.parameters()))
    seen = look(optimizer)
    torch.manual_seed(0)
    coordinator = config and (BalanceMonitor if monitor else Coordinator)(model, optimizer, config, partition)
    assert look(optimizer) == seen
    rates = []
    for step in range(4):
        batch = make_batch("plain", 4, torch.float32, seed=step)
        model(**batch).loss.backward()
        coordinator.step(batch) if coordinator else optimizer.step()
        optimizer.zero_grad()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return [p.detach().clone() for p in model.parameters()], rates, coordinator


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("monitor", [False, True])
def test_watched_optimizer_is_the_plain_one(name: str, monitor: bool) -> None:
    plain, rates, _ = train(name, None)
    watched, found, coordinator = train(name, WATCH, monitor)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert found == rates
    assert coordinator.drift["language_model"] > 0
    assert coordinator.drift["vision"] > 0


@pytest.mark.parametrize("method", ["commit-clr", "language-lr-up", ADDED])
@pytest.mark.parametrize("name", SERVED)
def test_control_leaves_nothing_between_steps(name: str, method: str) -> None:
    """And the rates in force are what the coordinator reports."""
    model, partition = build("plain")
    optimizer = MAKERS[name](list(model.parameters()))
    config = CoMMITConfig(method=method, probe=Probe(interval=1), lr_update_interval=1)
    coordinator = Coordinator(model, optimizer, config, partition)
    seen = look(optimizer)
    for step in range(3):
        batch = make_batch("plain", 4, torch.float32, seed=step)
        model(**batch).loss.backward()
        coordinator.step(batch)
        optimizer.zero_grad()
    after = look(optimizer)
    if "counter in groups" in name:
        assert optimizer.param_groups[0].pop("count") == 3
        optimizer.param_groups[0].pop("log", None)
        after = look(optimizer)
    assert after == seen


@pytest.mark.parametrize("name", REFUSED)
def test_control_is_refused_when_made(name: str) -> None:
    """By what the optimizer does with a rate; nothing of it, of the model or of random states changes."""
    model, partition = build("plain")
    rate = 1.0 if name in {"DoG", "LDoG", "Prodigy"} else 1e-3
    optimizer = MAKERS[name](partition.param_groups(lr=rate) if name != "Adafactor relative" else model.parameters())
    before = [look(optimizer), repr(optimizer.state_dict()), [p.clone() for p in model.parameters()]]
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"cannot be controlled|has no learning rate") as refused:
        Coordinator(model, optimizer, CoMMITConfig(), partition)
    assert "\n" not in str(refused.value)
    assert [look(optimizer), repr(optimizer.state_dict())] == before[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[2], model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_module_values_in_a_mixed_group_are_refused() -> None:
    model, partition = build("plain")
    with pytest.raises(ConfigError, match=r"GroupMemory keeps 'last' in its parameter groups.*param_groups\(lr="):
        Coordinator(model, GroupMemory(model.parameters(), lr=0.1), CoMMITConfig(), partition)
    Coordinator(model, GroupMemory(partition.param_groups(lr=0.1)), CoMMITConfig(), partition)


def test_optimizer_that_cannot_be_tried_is_said() -> None:
    model, partition = build("plain")
    with pytest.warns(UserWarning, match=r"SparseAdam follows its learning rate could not be tried out"):
        Coordinator(model, torch.optim.SparseAdam(model.parameters()), CoMMITConfig(), partition)


def closure_of(model: nn.Module, optimizer: Any, batch: Any) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(**batch).loss
        loss.backward()
        return loss

    return closure


def test_closure_called_often_is_one_measured_step() -> None:
    weights = []
    for watched in (False, True):
        model, partition = build("plain")
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        coordinator = Coordinator(model, optimizer, WATCH, partition)
        batch = make_batch("plain", 4, torch.float32)
        closure = closure_of(model, optimizer, batch)
        for _ in range(2):
            closure()
            coordinator.step(batch, closure) if watched else optimizer.step(closure)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert coordinator.kappa > 0
    with pytest.raises(ConfigError, match="calls a closure in its step"):
        Coordinator(model, optimizer, CoMMITConfig(), partition)


@pytest.mark.parametrize("name", ["AdamW", "Muon and AdamW", "Lookahead"])
def test_control_of_a_wrapper_reaches_the_step(name: str) -> None:
    """A schedule, too: the language model moves ten times what it does at a constant rate, by the first step."""
    moved = []
    for method in ("constant", "language-lr-up"):
        model, partition = build("plain")
        optimizer = MAKERS[name](list(model.parameters()))
        config = CoMMITConfig(method=method, probe=Probe(interval=None))
        coordinator = Coordinator(model, optimizer, config, partition)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
            group["lr"] *= 0.5  # a schedule by hand
        before = {module: [p.detach().clone() for p in partition[module]] for module in partition}
        batch = make_batch("plain", 4, torch.float32)
        model(**batch).loss.backward()
        coordinator.step(batch)
        moved.append({m: [p.detach() - q for p, q in zip(partition[m], before[m], strict=True)] for m in partition})
    for plain, scaled in zip(moved[0]["language_model"], moved[1]["language_model"], strict=True):
        torch.testing.assert_close(scaled, 10 * plain, rtol=1e-2, atol=1e-6)
    for plain, scaled in zip(moved[0]["vision"], moved[1]["vision"], strict=True):
        assert torch.equal(scaled, plain)


@pytest.mark.parametrize("config", [WATCH, EVERY_STEP])
def test_lora_fa_keeps_its_pairs(config: CoMMITConfig) -> None:
    """Its groups hold frozen halves, and lists of names and factors by parameter."""
    import peft
    from peft.optimizers import create_lorafa_optimizer

    adapters = peft.LoraConfig(
        r=2, target_modules=r".*(language_model.*|vision.*layers\.0)\.self_attn\.(q_proj|v_proj)"
    )
    weights = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = peft.get_peft_model(build("llava")[0], adapters)
        optimizer = create_lorafa_optimizer(model=model, r=2, lora_alpha=8, lr=1e-3)
        coordinator = Coordinator(model, optimizer, config, partition_model(model)) if watched else None
        seen = look(optimizer)
        for step in range(3):
            batch = make_batch("llava", 4, torch.float32, seed=step)
            model(**batch).loss.backward()
            coordinator.step(batch) if coordinator else optimizer.step()
            optimizer.zero_grad()
        assert look(optimizer) == seen
        weights.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    assert coordinator is not None
    same = all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert same == (config is WATCH)
    if config is EVERY_STEP:
        assert len(set(coordinator.learning_rates.values())) == 2


def test_tensor_counter_of_a_split_group_counts_once() -> None:
    _, _, coordinator = train("tensor counter in groups", EVERY_STEP)
    (group,) = coordinator._optimizer.param_groups
    assert float(group["count"]) == 4
    assert group["log"] == [0, 1, 2, 3]


def test_split_groups_have_their_own_tensor_counters() -> None:
    model, partition = build("plain")
    optimizer = TensorCounter(list(model.parameters()))
    optimizer.step()
    split_groups(optimizer, partition.module_of)
    optimizer.step()
    assert [float(group["count"]) for group in optimizer.param_groups] == [2, 2]


def test_step_of_a_wrapper_is_measured_whole() -> None:
    """The hooks of the optimizer inside would begin the measurement too early."""
    _, _, monitor = train("averaging wrapper", WATCH, monitor=True)
    _, _, plain = train("AdamW", WATCH, monitor=True)
    assert inner_optimizer(monitor._optimizer) is monitor._optimizer
    assert monitor.metrics()["step_norm/vision"] < plain.metrics()["step_norm/vision"]


def test_wrappers_of_trainers_are_looked_into() -> None:
    lightning = pytest.importorskip("lightning")
    from accelerate import Accelerator
    from lightning.pytorch.core.optimizer import LightningOptimizer

    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    fabric = lightning.Fabric(accelerator="cpu")
    _, of_fabric = fabric.setup(nn.Linear(1, 1), inside := torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    assert inner_optimizer(LightningOptimizer(optimizer)) is optimizer
    assert inner_optimizer(Accelerator(cpu=True).prepare(optimizer)) is optimizer
    assert inner_optimizer(of_fabric) is inside


REGULARIZED = CoMMITConfig(
    method="constant", probe=Probe(interval=None), regularizer=PreviousStep(weight=10.0, step="optimizer"))  # fmt: skip


@pytest.mark.parametrize("config", [REGULARIZED, CoMMITConfig(method="feature-cd", probe=Probe(interval=None))])
def test_closure_is_the_step_without_one(config: CoMMITConfig) -> None:
    """What is done to the gradients before the step is done to those of the closure, too."""
    results = []
    for given in (True, False):
        model, partition = build("plain")
        model.eval()
        optimizer = torch.optim.AdamW(model.parameters())
        coordinator = Coordinator(model, optimizer, config, partition)
        for step in range(4):
            closure = closure_of(model, optimizer, batch := make_batch("plain", 4, torch.float32, seed=step))
            closure()
            coordinator.step(batch, closure if given else None)
        state = {index: float(kept["step"]) for index, kept in optimizer.state_dict()["state"].items()}
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append(([p.detach().clone() for p in model.parameters()], gradients, state))
    for first, second in zip(*(weights + gradients for weights, gradients, _ in results), strict=True):
        assert torch.equal(first, second)
    assert results[0][2] == results[1][2]
