"""Base learning rates by the names of other trainers."""

import pytest
import torch
from tiny import build

from commit_tuning.control.base_rates import base_rates, set_base_rates
from commit_tuning.errors import ConfigError

PROJECTOR = "multi_modal_projector"


def rates_by_name(rates):
    model, partition = build("llava")
    chosen = base_rates(model, partition, rates)
    return {name: chosen.get(id(parameter), 1e-4) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["projector_lr", "aligner_lr", "merger_lr", "mm_projector_lr"])
def test_the_projector_goes_before_its_encoder(name):
    found = rates_by_name({"vision_lr": 1e-5, name: 1e-3})
    assert {rate for parameter, rate in found.items() if PROJECTOR in parameter} == {1e-3}
    assert {rate for parameter, rate in found.items() if "vision_tower" in parameter} == {1e-5}
    assert {rate for parameter, rate in found.items() if "language_model" in parameter} == {1e-4}


def test_expressions_precede_names_and_the_first_wins():
    found = rates_by_name({"vit_lr": 1e-5, r"layers\.0\.": 2e-5, r"vision_tower.*layers": 3e-5})
    assert found["model.vision_tower.encoder.layers.0.mlp.fc1.weight"] == 2e-5
    assert found["model.vision_tower.encoder.layers.1.mlp.fc1.weight"] == 3e-5
    assert found["model.vision_tower.post_layernorm.weight"] == 1e-5


def test_the_groups_are_split_and_keep_their_options():
    model, partition = build("llava")
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-4
    )
    set_base_rates(optimizer, model, partition, {"projector_lr": 1e-3})
    kinds = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert kinds == {(1e-4, 0.1), (1e-4, 0.0), (1e-3, 0.1), (1e-3, 0.0)}
    owners = [{partition.module_of(p) for p in group["params"]} for group in optimizer.param_groups]
    assert all(len(owner) == 1 for owner in owners)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*model.parameters()])


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"vision_lr": -1.0}, "must be a finite number"),
        ({"vision_lr": True}, "must be a finite number"),
        ({"vision_lr": 1e-5, "vit_lr": 1e-5}, "is the same as 'vision_lr'"),
        ({"audio_lr": 1e-5}, "no encoder 'audio'"),
        ({"visoin_lr": 1e-5}, "no trainable parameter has a name with it"),
        ({"layers[": 1e-5}, "not a regular expression"),
    ],
)
def test_a_wrong_rate_is_named(rates, message):
    with pytest.raises(ConfigError, match=message):
        rates_by_name(rates)
