import dataclasses

import pytest

from commit_tuning import CoMMITConfig
from commit_tuning.config import METHODS
from commit_tuning.errors import ConfigError


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        CoMMITConfig(method="comit", controller="pid", kappa_window=0, probe_interval=1.5, kappa_bound=float("nan"))
    message = str(caught.value)
    assert message.startswith("5 faults")
    for part in ("method='comit'", "controller='pid'", "kappa_window=0", "probe_interval=1.5", "kappa_bound=nan"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"method": "commit", "regularizer": None}, "'commit-clr'"),
        ({"method": "commit-clr", "regularizer": "lookahead"}, "'commit'"),
        ({"method": "commit", "regularizer": "drift-penalty"}, "rewards drift"),
        ({"method": "commit-clr", "probe_interval": None}, "needs kappa"),
        ({"method": "commit", "regularizer_step": "optimizer"}, "must be 'raw'"),
        ({"kappa_window": True}, "kappa_window=True"),
        ({"regularizer_labels": "none"}, "is not one of given, sampled"),
        ({"method": "constant", "regularizer_labels": "sampled"}, "does nothing without a regularizer"),
        ({"regularizer_weight": -1.0}, "regularizer_weight=-1.0"),
    ],
)
def test_what_is_not_valid_says_what_to_do(settings, hint):
    with pytest.raises(ConfigError, match="CoMMITConfig") as caught:
        CoMMITConfig(**settings)
    assert hint in str(caught.value)


def test_the_bound_is_wider_where_a_budget_in_drift_sets_the_rates():
    assert CoMMITConfig().kappa_bound == 1000
    assert CoMMITConfig(controller="bounded").kappa_bound == CoMMITConfig(method="hypergradient").kappa_bound == 100
    assert CoMMITConfig(kappa_bound=7).kappa_bound == CoMMITConfig(controller="bounded", kappa_bound=7).kappa_bound == 7


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_valid_defaults(method):
    config = CoMMITConfig(method=method)
    assert (config.regularizer is not None) == (method == "commit")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.method = "constant"


def test_the_paper_to_the_letter():
    config = CoMMITConfig.paper()
    assert (config.method, config.controller, config.kappa_estimator) == ("commit", "literal", "arithmetic")
    assert (config.probe_interval, config.probe_samples, config.regularizer_weight) == (1, None, 1.0)
    assert CoMMITConfig.paper(method="commit-clr").regularizer is None
