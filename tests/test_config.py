import dataclasses
import json
import re

import pytest

from commit_tuning import CoMMITConfig
from commit_tuning.config import (
    METHODS,
    MOVED,
    Bounded,
    Compensated,
    DriftPenalty,
    Lookahead,
    Probe,
    TrustRegion,
    setting_keys,
)
from commit_tuning.errors import ConfigError


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        CoMMITConfig(method="comit", controller="pid", kappa_window=0, probe={"interval": 1.5, "samples": 0})
    message = str(caught.value)
    assert message.startswith("5 faults")
    for part in ("method='comit'", "controller='pid'", "kappa_window=0", "probe.interval=1.5", "probe.samples=0"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"method": "commit", "regularizer": None}, "'commit-clr'"),
        ({"method": "commit-clr", "regularizer": "lookahead"}, "'commit'"),
        ({"method": "commit", "regularizer": "drift-penalty"}, "rewards drift"),
        ({"method": "commit-clr", "probe": {"interval": None}}, "needs kappa"),
        ({"method": "commit", "regularizer": {"step": "raw"}}, "regularizer.step is no setting of 'lookahead'"),
        ({"kappa_window": True}, "kappa_window=True"),
        ({"regularizer": {"labels": "none"}}, "regularizer.labels='none' is not one of given, sampled"),
        (
            {"controller": {"name": "bounded", "drift_target": 1e-3}},
            "its settings: kappa_target, bound, normalization, warmup",
        ),
        ({"controller": {"bound": float("nan")}}, "controller.bound=nan"),
        ({"controller": Probe()}, "controller=Probe("),
        ({"controller": {"name": ["literal"]}}, "is not one of trust-region, compensated, bounded, literal"),
        ({"controller": Bounded(warmup=21)}, "kappa_window=20"),
        ({"probe": "often"}, "probe='often'"),
        ({"switch": None}, "switch=None is not a mapping"),
        ({"regularizer": {"weight": -1.0}}, "regularizer.weight=-1.0"),
    ],
)
def test_what_is_not_valid_says_what_to_do(settings, hint):
    with pytest.raises(ConfigError, match="CoMMITConfig") as caught:
        CoMMITConfig(**settings)
    assert hint in str(caught.value)


def test_a_nested_setting_alone_names_its_faults():
    with pytest.raises(ConfigError, match=r"2 faults in Probe: interval=0 .*; drift_scale=-1 "):
        Probe(interval=0, drift_scale=-1)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_flat_name_says_where_it_is_now(old, new):
    part, name = new.split(".")
    with pytest.raises(ConfigError, match=re.escape(f"{old} is {part}={{'{name}': ...}} now")):
        CoMMITConfig(**{old: 1})
    assert new in setting_keys()


def test_names_and_mappings_stand_for_nested_settings():
    assert CoMMITConfig(controller="bounded").controller == Bounded()
    assert CoMMITConfig(controller={"bound": 7}).controller == TrustRegion(bound=7)
    assert CoMMITConfig(controller={"name": "compensated", "warmup": 3}).controller == Compensated(warmup=3)
    assert CoMMITConfig(method="commit", regularizer={"weight": 2}).regularizer == Lookahead(weight=2)
    assert CoMMITConfig(probe={"interval": 9}).probe == Probe(interval=9)


@pytest.mark.parametrize(
    "config",
    [
        CoMMITConfig(),
        CoMMITConfig.paper(),
        CoMMITConfig(controller=Compensated(normalization="product")),
        CoMMITConfig(method="constant", regularizer=DriftPenalty(step="optimizer")),
    ],
)
def test_plain_values_make_the_same_settings(config):
    plain = json.loads(json.dumps(config.to_dict()))
    assert CoMMITConfig(**plain) == config
    nested = {f"{key}.{name}" for key, value in plain.items() if isinstance(value, dict) for name in value}
    assert {*plain, *nested} <= {*setting_keys()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_valid_defaults(method):
    config = CoMMITConfig(method=method)
    assert (config.regularizer is not None) == (method == "commit")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.method = "constant"


def test_the_paper_to_the_letter():
    config = CoMMITConfig.paper()
    assert (config.method, config.controller.name, config.kappa_estimator) == ("commit", "literal", "arithmetic")
    assert (config.probe.interval, config.probe.samples, config.regularizer) == (1, None, Lookahead())
    assert CoMMITConfig.paper(method="commit-clr").regularizer is None
    assert CoMMITConfig.paper(probe={"samples": 8}).probe == Probe(interval=1, samples=8, drift_scale=1.0)
    assert CoMMITConfig.paper(probe=Probe(samples=4)).probe == Probe(samples=4)
