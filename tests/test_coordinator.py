"""The coordinator around an optimizer step: groups, schedulers, regulariser, baselines, and bad input."""

import copy
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import reference
import torch
from tiny import build, make_batch, plain_partition

from commit_tuning import BalanceMonitor, CoMMITConfig, Coordinator
from commit_tuning.config import PreviousStep, Probe, Switch, TrustRegion
from commit_tuning.control.groups import GroupRates
from commit_tuning.errors import BatchError, PartitionError

QUIET = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))


def backward(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()


def parameters_of(model):
    return [p.detach().clone() for p in model.parameters()]


SCHEDULERS = {
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
    "exponential": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    "multiplicative": lambda optimizer: torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.9),
    "one-cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 20, cycle_momentum=False),
    "warm-up": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_multipliers_sit_on_top_of_any_scheduler(name, tensor_lr):
    rates = []
    for method in ("constant", "language-lr-up"):
        model, partition = build("plain")
        lr = torch.tensor(1e-3) if tensor_lr else 1e-3
        optimizer = torch.optim.AdamW(partition.param_groups(lr=lr))  # one tensor for all groups, if it is one
        coordinator = Coordinator(model, optimizer, CoMMITConfig(method=method, probe=Probe(interval=None)), partition)
        scheduler = SCHEDULERS[name](optimizer)
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some schedulers convert tensor rates to floats with a warning
            for step in range(8):
                batch = make_batch("plain", 3, torch.float32, seed=step)
                backward(model, batch)
                coordinator.step(batch)
                seen.append(coordinator.learning_rates)
                scheduler.step(*([1.0] if name == "plateau" else []))
        rates.append(seen)
    for constant, raised in zip(*rates, strict=True):
        assert raised["vision"] == pytest.approx(constant["vision"], rel=1e-5)
        assert raised["language_model"] == pytest.approx(10 * constant["language_model"], rel=1e-5)


def by_hand(optimizer):
    """A schedule without a scheduler: half of the rate from the fourth step on."""

    class Halved:
        steps = 0

        def step(self):
            self.steps += 1
            if self.steps == 3:
                for group in optimizer.param_groups:
                    group["lr"] /= 2

    return Halved()


def from_zero(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 3, 1.0))


@pytest.mark.parametrize("name", ["cosine", "one-cycle", "warm-up", "plateau", "by hand", "from zero"])
def test_a_trust_region_leaves_a_schedule_its_shape(name):
    """Where the drift at a rate does not change, the rate is what the drift allows times what the schedule says."""
    model, partition = build("plain")
    optimizer = torch.optim.SGD(partition.param_groups(lr=1e-3))
    settings = {"probe": {"interval": 20, "samples": None}, "lr_update_interval": 1, "kappa_window": 1}
    coordinator = Coordinator(
        model, optimizer, CoMMITConfig(**settings, controller=TrustRegion(drift_target=1e-9)), partition
    )
    scheduler = {**SCHEDULERS, "by hand": by_hand, "from zero": from_zero}[name](optimizer)
    rates, batch = [], make_batch("plain", 3, torch.float32)
    for _ in range(8):
        backward(model, batch)
        scheduled = optimizer.param_groups[0]["lr"]
        coordinator.step(batch)
        rates.append(coordinator.learning_rates["vision"] / scheduled if scheduled else None)
        scheduler.step(*([1.0] if name == "plateau" else []))
    assert rates[2:] == pytest.approx([rates[-1]] * 6, rel=1e-6)
    assert rates[-1] > 0.02  # not the hundredth of the first step: measured at the first chance


def test_manual_warm_up_is_relative_to_highest_rate():
    _, partition = build("plain")
    optimizer = torch.optim.SGD(partition.param_groups(lr=0.0))
    groups = GroupRates(optimizer, partition)
    for rate, share in ((0.0, 0.0), (1e-7, 1.0), (1e-3, 1.0), (5e-4, 0.5)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        assert groups.schedule() == pytest.approx(dict.fromkeys(partition, share))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adafactor])
def test_any_optimizer(make):
    model, partition = build("plain")
    optimizer = make(partition.param_groups(lr=1e-3))
    config = CoMMITConfig(method="commit-clr", probe=Probe(interval=1), kappa_window=30)
    coordinator = Coordinator(model, optimizer, config, partition)
    backward(model, batch := make_batch("plain", 4, torch.float32))
    coordinator.step(batch)
    assert coordinator.kappa > 0


@pytest.mark.parametrize(("dtype", "first"), [(torch.float32, 0.01), (torch.bfloat16, 1.0)])
def test_first_trust_region_step_survives_rounding(dtype, first):
    """A hundredth of a rate rounds away in half precision, and what is left looks like a module that hardly moves."""
    model, partition = build("plain")
    model.to(dtype)
    optimizer = torch.optim.Adam(partition.param_groups(lr=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half precision is warned of
        coordinator = Coordinator(model, optimizer, CoMMITConfig(), partition)
    assert coordinator.multipliers == dict.fromkeys(partition, first)


def during_a_step(coordinator, batch):
    """The groups that the optimizer steps: (modules, rate, names) of each."""
    coordinator.before_step(batch)
    seen = [
        ({coordinator.partition.module_of(p) for p in group["params"]}, group["lr"], group.get("param_names"))
        for group in coordinator._optimizer.param_groups
    ]
    coordinator._optimizer.step()
    coordinator.after_step()
    return seen


def test_names_go_with_parameters_of_a_split_group():
    model, partition = build("plain")
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    coordinator = Coordinator(
        model, optimizer, CoMMITConfig(method="language-lr-up", probe=Probe(interval=None)), partition
    )
    backward(model, batch := make_batch("plain", 3, torch.float32))
    named = dict(model.named_parameters())
    seen = during_a_step(coordinator, batch)
    assert len(seen) == 2
    for modules, rate, names in seen:
        assert {partition.module_of(named[name]) for name in names} == modules
        assert rate == (1e-2 if modules == {"language_model"} else 1e-3)


@pytest.mark.parametrize("rate", [1e-7, 1e-5, 1e-3, 1e-2])
def test_trust_region_finds_one_rate_from_any_base(rate):
    """The higher orders of the first step's drift are all that differs, and they shrink with the base rate."""
    batch = make_batch("plain", 8, torch.float64)

    def rates_found(base: float) -> dict[str, float]:
        model, partition = build("plain", torch.float64)
        optimizer = torch.optim.Adam(partition.param_groups(lr=base))
        coordinator = Coordinator(model, optimizer, CoMMITConfig(probe=Probe(drift_scale=1.0)), partition)
        backward(model, batch)
        coordinator.step(batch)
        return {module: base * multiplier for module, multiplier in coordinator.multipliers.items()}

    assert rates_found(rate) == pytest.approx(rates_found(1e-6), rel=max(1e-6, 0.1 * rate))


def test_target_tokens_are_counted_in_all_micro_batches():
    """In a loop's own list, in micro-batches handed over one by one, and where a caller has counted them."""
    batches = [make_batch("plain", 24, torch.float32, seed=seed) for seed in (1, 2)]
    total = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert 48 < total < 192  # where the budget depends on it

    def multipliers(hand_over) -> dict[str, float]:
        model, partition = build("plain")
        optimizer = torch.optim.Adam(partition.param_groups(lr=1e-3))
        coordinator = Coordinator(model, optimizer, CoMMITConfig(probe=Probe(samples=4)), partition)
        for batch in batches:
            backward(model, batch)
        hand_over(coordinator, optimizer)
        return coordinator.multipliers

    def by_step(coordinator, optimizer):
        coordinator.step(batches)

    def one_by_one(coordinator, optimizer):
        optimizer.gradient_state = SimpleNamespace(sync_gradients=False)
        coordinator.step(batches[0])
        optimizer.gradient_state.sync_gradients = True
        coordinator.step(batches[1])

    def counted(answers):
        def hand_over(coordinator, optimizer):
            coordinator.before_step(batches[0], answers)
            optimizer.step()
            coordinator.after_step()

        return hand_over

    assert multipliers(by_step) == multipliers(one_by_one) == multipliers(counted(torch.tensor(total)))
    assert multipliers(by_step) != multipliers(counted(48))


def test_the_loss_that_a_measurement_reports():
    model, partition = build("plain", torch.float64)
    optimizer = torch.optim.SGD(partition.param_groups(lr=1e-3))
    config = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))
    monitor = BalanceMonitor(model, optimizer, config, partition)
    batches = [make_batch("plain", 3, torch.float64, seed=seed) for seed in (1, 2)]
    backward(model, batches[0])
    expected = []
    model.eval()
    for batch in batches:
        for row in range(3):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            expected.append(float(model(**one).loss.detach()))
    monitor.step(batches)
    assert monitor._balance.measurement.loss == pytest.approx(sum(expected) / 6)


def test_mixed_group_is_split_during_steps_only():
    """The same weights as with a group for each module, and between steps the user's own groups."""
    states = []
    for mixed in (False, True):
        model, partition = build("plain")
        optimizer = torch.optim.AdamW(model.parameters() if mixed else partition.param_groups(lr=1e-3), lr=1e-3)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01
        group, own = optimizer.param_groups[0], dict(optimizer.param_groups[0])
        config = CoMMITConfig(probe=Probe(interval=1, samples=None), lr_update_interval=1)
        coordinator = Coordinator(model, optimizer, config, partition)
        for step in range(4):
            batch = make_batch("plain", 3, torch.float32, seed=step)
            backward(model, batch)
            coordinator.step(batch)
            assert optimizer.param_groups[0] is group
            assert group == own
        assert len(set(coordinator.learning_rates.values())) == 2
        states.append(parameters_of(model))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", [*SCHEDULERS, "plateau with a list"])
def test_schedulers_serve_a_mixed_group(name, before):
    """Made before the coordinator or after it, a scheduler finds its own group."""
    lists = {"plateau with a list": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, min_lr=[1e-6])}
    make = {**SCHEDULERS, **lists}[name]
    rates = []
    for method in ("constant", "language-lr-up"):
        model, partition = build("plain")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scheduler = make(optimizer) if before else None
        config = CoMMITConfig(method=method, probe=Probe(interval=None))
        coordinator = Coordinator(model, optimizer, config, partition)
        scheduler, seen = scheduler or make(optimizer), []
        for step in range(5):
            backward(model, batch := make_batch("plain", 3, torch.float32, seed=step))
            coordinator.step(batch)
            seen.append(coordinator.learning_rates)
            scheduler.step(*([1.0] if "plateau" in name else []))
        rates.append(seen)
    for constant, raised in zip(*rates, strict=True):
        assert raised["vision"] == constant["vision"]
        assert raised["language_model"] == pytest.approx(10 * constant["language_model"], rel=1e-12)


def test_module_outside_the_optimizer_is_named():
    model, partition = build("plain")
    with pytest.raises(PartitionError, match="'vision'"):
        BalanceMonitor(model, torch.optim.SGD(partition["language_model"], lr=0.1), QUIET, partition)


def test_optimizer_with_part_of_a_module_is_refused():
    model, partition = build("plain")
    vectors = [p for p in model.parameters() if p.ndim == 1]
    with pytest.raises(
        PartitionError, match=r"'embed.weight' \(and 3 more\) of module 'language_model' is in no group"
    ):
        Coordinator(model, torch.optim.SGD(vectors, lr=0.1), QUIET, partition)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)  # what is frozen may be left out, when the partition was made too
    Coordinator(model, torch.optim.SGD(vectors, lr=0.1), QUIET, partition)


@pytest.mark.parametrize("added", [False, True])
def test_later_unfrozen_parameter_is_named_at_next_measurement(added):
    model, _ = build("plain")
    late = model.embed.weight.requires_grad_(False)
    partition = plain_partition(model)
    of_a_loss = torch.nn.Parameter(torch.zeros(1))  # what the optimizer has besides the model is nobody's business
    own = [*partition["vision"], *partition["language_model"], of_a_loss]
    optimizer = torch.optim.SGD(own if added else [*own, late], lr=1e-3)
    monitor = BalanceMonitor(model, optimizer, replace(QUIET, probe=replace(QUIET.probe, interval=2)), partition)
    batch = make_batch("plain", 3, torch.float32)
    for step in range(3):
        backward(model, batch)
        if step == 1:
            late.requires_grad_(True)
            if added:
                optimizer.add_param_group({"params": [late]})
        if step == 2:
            with pytest.raises(PartitionError, match="was unfrozen or added after the start"):
                monitor.step(batch)
        else:
            monitor.step(batch)


@pytest.mark.parametrize(("regularizer", "sign"), [("lookahead", 1), ("previous-step", 1), ("drift-penalty", -1)])
def test_regularised_step_adds_the_drift_gradient(kind, regularizer, sign):
    """Theta = plain step + lr x weight x gradient of the drift (Eq. 9-10), module by module, in float64."""
    batches = [make_batch(kind, 4, torch.float64, seed=s) for s in range(2)]
    config = CoMMITConfig(
        method="constant", regularizer={"name": regularizer, "weight": 0.5}, probe=Probe(interval=None, samples=None)
    )
    model, partition = build(kind, torch.float64)
    coordinator = Coordinator(model.eval(), torch.optim.SGD(partition.param_groups(lr=0.1)), config, partition)
    modules = {name: list(partition.named_parameters(name)) for name in partition}
    history = []
    for batch in batches:
        before = copy.deepcopy(model)
        backward(model, batch)
        plain = copy.deepcopy(model)
        with torch.no_grad():
            for own, source in zip(plain.parameters(), model.parameters(), strict=True):
                if source.grad is not None:
                    own.sub_(source.grad, alpha=0.1)
        coordinator.step(batch)
        history.append((before, plain))
    before, plain = history[1]
    if regularizer == "lookahead":
        gradients = reference.lookahead_gradients(before, plain, modules, batches[1])
    else:
        gradients = reference.previous_step_gradients(history[0][0], before, modules, batches[1])
    found, start = dict(model.named_parameters()), dict(plain.named_parameters())
    for module, names in modules.items():
        ascent = torch.cat([(found[n] - start[n]).flatten() for n in names])
        expected = torch.cat([g.flatten() for g in gradients[module]]) * sign * 0.1 * 0.5
        assert expected.norm() > 1e-9
        assert (ascent - expected).norm() <= 1e-6 * expected.norm()


def test_the_regulariser_through_the_optimizer_enters_the_gradient():
    model, partition = build("plain", torch.float64)
    config = CoMMITConfig(method="constant", regularizer=PreviousStep(step="optimizer"), probe=Probe(interval=None))
    coordinator = Coordinator(model.eval(), torch.optim.SGD(partition.param_groups(lr=0.1)), config, partition)
    batch = make_batch("plain", 4, torch.float64)
    for step in range(2):
        backward(model, batch)
        plain = [p.grad.clone() for p in model.parameters()]
        coordinator.before_step(batch)
        changed = any(not torch.equal(g, p.grad) for g, p in zip(plain, model.parameters(), strict=True))
        assert changed == (step == 1)
        coordinator._optimizer.step()
        coordinator.after_step()


@pytest.mark.parametrize(("method", "first"), [("feature-cd", "vision"), ("language-cd", "language_model")])
def test_coordinate_descent_moves_the_sides_in_turn(method, first):
    model, partition = build("plain")
    config = CoMMITConfig(method=method, lr_update_interval=2, switch=Switch(latest=6, tolerance=1e-9))
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2, weight_decay=0.1))
    coordinator = Coordinator(model, optimizer, config, partition)
    second = next(name for name in partition if name != first)
    for step in range(10):
        before = {name: [p.detach().clone() for p in partition[name]] for name in partition}
        backward(model, batch := make_batch("plain", 4, torch.float32, seed=step))
        coordinator.step(batch)
        moved = {n: any(not torch.equal(a, b) for a, b in zip(before[n], partition[n], strict=True)) for n in partition}
        assert moved == {first: step < 6, second: step >= 6}
        assert math.isnan(coordinator.kappa)
        assert (coordinator.state_dict()["controller"]["weights"] is None) == (step >= 5)  # no longer needed, nor kept


def test_coordinate_descent_switches_when_the_weights_are_stable():
    model, partition = build("plain")
    config = CoMMITConfig(
        method="feature-cd", lr_update_interval=1, switch=Switch(window=2), probe=Probe(interval=None)
    )
    optimizer = torch.optim.SGD(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, config, partition)
    for step in range(8):
        if step == 4:
            optimizer.param_groups[-1]["lr"] = optimizer.param_groups[-2]["lr"] = 1e-9  # the encoder's: it stands still
        backward(model, batch := make_batch("plain", 4, torch.float32))
        coordinator.step(batch)
        assert coordinator.multipliers["vision"] == float(step < 5)


def test_step_without_movement_warns_and_gives_no_kappa():
    model, partition = build("plain")
    optimizer = torch.optim.SGD(partition.param_groups(lr=0.1))
    monitor = BalanceMonitor(model, optimizer, QUIET, partition)
    model.zero_grad()
    with pytest.warns(UserWarning, match="no kappa can be taken"):
        monitor.step(make_batch("plain", 3, torch.float32))  # no backward: nothing moves
    assert math.isnan(monitor.kappa)
    assert monitor.metrics()["kappa"] is None
    assert monitor.metrics()["drift/vision"] == 0.0


MEASURED = ("drift", "drift_scale", "noise_floor", "lr", "grad_norm", "step_norm", "theta_norm", "h", "starving")


def test_metrics_hold_values_only_at_measured_steps():
    model, partition = build("llava")
    config = CoMMITConfig(method="constant", probe=Probe(interval=2))
    monitor = BalanceMonitor(model, torch.optim.SGD(partition.param_groups(lr=0.1)), config, partition)
    records = []
    for _ in range(2):
        backward(model, batch := make_batch("llava", 4, torch.float32))
        monitor.step(batch)
        records.append(monitor.metrics())
    names = {f"{key}/{m}" for key in MEASURED for m in partition}
    assert set(records[0]) == {"kappa", "smoothed_kappa"} | names
    assert {records[0].pop(f"starving/{m}") for m in partition} == {None}
    assert all(value is not None and value > 0 for value in records[0].values())
    assert {k for k, v in records[1].items() if v is not None} == {"smoothed_kappa", "lr/language_model", "lr/vision"}


BAD_BATCHES = {
    "no labels": ({"labels": None}, "'labels'"),
    "all labels -100": ({"labels": torch.full((3, 9), -100)}, "every label is -100"),
    "flat labels": ({"labels": torch.zeros(27, dtype=torch.long)}, r"\[batch, length\]"),
}


@pytest.mark.parametrize("fault", BAD_BATCHES)
def test_bad_batch_raises_and_moves_nothing(fault):
    change, hint = BAD_BATCHES[fault]
    model, partition = build("plain")
    config = replace(QUIET, starvation_patience=1)  # looks at batches without an answer
    coordinator = Coordinator(model, torch.optim.SGD(partition.param_groups(lr=0.1)), config, partition)
    batch = make_batch("plain", 3, torch.float32)
    backward(model, batch)
    before = parameters_of(model)
    with pytest.raises(BatchError, match=hint):
        coordinator.step({**batch, **change})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.training
    coordinator.step(batch)
    assert coordinator.kappa > 0


@pytest.mark.parametrize("batches", [[], [1], "text"])
def test_what_is_no_batch_is_refused(batches):
    model, partition = build("plain")
    coordinator = Coordinator(model, torch.optim.SGD(partition.param_groups(lr=0.1)), QUIET, partition)
    with pytest.raises(BatchError):
        coordinator.before_step(batches)


def test_the_two_calls_come_in_pairs():
    model, partition = build("plain")
    coordinator = Coordinator(model, torch.optim.SGD(partition.param_groups(lr=0.1)), QUIET, partition)
    batch = make_batch("plain", 3, torch.float32)
    with pytest.raises(RuntimeError, match="without before_step"):
        coordinator.after_step()
    coordinator.before_step(batch)
    with pytest.raises(RuntimeError, match="called twice"):
        coordinator.before_step(batch)
