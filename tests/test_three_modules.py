"""Vision, audio and a language model under one coordinator (method for M modules)."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from commit_tuning import CoMMITConfig, Coordinator, ModulePartition
from commit_tuning.config import Bounded
from commit_tuning.control.equation8 import learning_rate_multipliers

ENCODERS = ("vision", "audio")


class Listener(nn.Module):
    """Two encoders of different scale in front of a small language model."""

    def __init__(self):
        super().__init__()
        self.vision, self.audio = nn.Linear(6, 8), nn.Linear(4, 8)
        self.embed = nn.Embedding(12, 8)
        self.mixer = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 12)

    def forward(self, input_ids, pixels, sound, labels):
        hidden = self.embed(input_ids) + (self.vision(pixels) + 0.2 * self.audio(sound))[:, None]
        logits = self.head(self.mixer(hidden)[0])
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 12, (6, 7), generator=generator)
    pixels, sound = (torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (6, 4))
    return {"input_ids": ids, "pixels": pixels, "sound": sound, "labels": ids.clone()}


def start(**settings):
    torch.manual_seed(0)
    model = Listener().double()  # so that no processor's rounding grows into a trajectory of its own
    named = {name: list(getattr(model, name).named_parameters(prefix=name)) for name in ENCODERS}
    rest = [(n, p) for n, p in model.named_parameters() if not n.startswith(ENCODERS)]
    partition = ModulePartition({"language_model": rest, **named})
    optimizer = torch.optim.Adam(partition.param_groups(lr=1e-3))
    base = {"probe": {"interval": 1}, "kappa_window": 8, "lr_update_interval": 2, "starvation_patience": 1000}
    return model, optimizer, Coordinator(model, optimizer, CoMMITConfig(**{**base, **settings}), partition)


def run(model, optimizer, coordinator, steps):
    """Train; log kappa of each encoder at every step."""
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        model(**(data := batch(step))).loss.backward()
        coordinator.step(data)
        seen.append({name: math.log(kappa) for name, kappa in coordinator.kappas.items()})
    return seen


@pytest.mark.parametrize("normalization", ["sum", "product"])
def test_rates_follow_the_smoothed_kappas(normalization):
    model, optimizer, coordinator = start(controller=Bounded(normalization=normalization, bound=1e6))
    run(model, optimizer, coordinator, 4)
    expected = learning_rate_multipliers(coordinator.smoothed_kappas, normalization)
    assert set(coordinator.kappas) == set(ENCODERS)
    assert coordinator.multipliers == pytest.approx(expected)
    together = sum(expected.values()) / 3 if normalization == "sum" else math.prod(expected.values())
    assert together == pytest.approx(1.0)
    record = coordinator.metrics()
    assert record["kappa/audio"] == coordinator.kappas["audio"] > record["kappa/vision"]
    assert expected["audio"] > 2 * expected["vision"] > 0  # audio moves least, so its rate is raised most
    run(model, optimizer, coordinator, 1)
    rates = coordinator.learning_rates
    assert rates["audio"] / rates["vision"] == pytest.approx(expected["audio"] / expected["vision"])


def test_control_brings_both_encoders_nearer_to_balance():
    """Mean log kappa, last 20 of 40 steps: Eq. 8 leaves a third of its distance from zero, compensation nothing."""
    distance = {}
    for name, settings in {
        "constant": {"method": "constant"}, "bounded": {"controller": {"name": "bounded", "bound": 1e3}},
        "compensated": {"controller": {"name": "compensated", "bound": 1e3}},
        "trust-region": {"controller": {"bound": 1e4, "drift_target": 1e-6}},
    }.items():  # fmt: skip
        seen = run(*start(**settings), 40)[20:]
        distance[name] = {e: abs(sum(row[e] for row in seen) / len(seen)) for e in ENCODERS}
    for encoder in ENCODERS:
        assert distance["bounded"][encoder] == pytest.approx(distance["constant"][encoder] / 3, rel=0.2)
        assert distance["compensated"][encoder] < 0.2
        assert distance["trust-region"][encoder] < 0.2


def test_literal_controller_uses_each_kappa_in_equation_8():
    config = {"controller": "literal", "kappa_estimator": "geometric", "kappa_window": 20}
    model, optimizer, coordinator = start(**config)
    run(model, optimizer, coordinator, 2)
    kappas = coordinator.smoothed_kappas
    total = 1 + kappas["vision"] + kappas["audio"]
    assert coordinator.multipliers == pytest.approx(
        {"language_model": 3 / total, "vision": 3 * kappas["vision"] / total, "audio": 3 * kappas["audio"] / total}
    )


def test_starving_module_is_named_in_metrics_and_warning():
    model, optimizer, coordinator = start(controller=Bounded(bound=1.1, warmup=4), starvation_patience=4)
    run(model, optimizer, coordinator, 7)
    assert coordinator.starving == {}
    with pytest.warns(UserWarning, match="'language_model' starves since optimizer step 5: .* 0.938 of") as caught:
        run(model, optimizer, coordinator, 5)
    assert len(caught) == 1
    assert coordinator.starving == {"language_model": 5}
    assert coordinator.metrics()["starving/language_model"] == 5
    assert coordinator.metrics()["starving/vision"] is None
