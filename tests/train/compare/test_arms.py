"""Which arms a comparison has, and the recipes of their runs."""

from __future__ import annotations

import re

import pytest
from small_experiment import EXAMPLE

from commit_tuning.config import DriftPenalty, Lookahead, PreviousStep
from commit_tuning.errors import UserError
from commit_tuning.train.compare.arms import Arm, choose, reference_of, screening_arms, static_pairs, variations
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.recipe.schema import StaticGrid

PLAN = ("compare.rates=[1e-3, 1e-2]", "compare.methods=[commit-clr]", "compare.static_grid={}")


def test_screening_arms_cover_all_rates_and_pairs() -> None:
    arms = screening_arms(load_recipe(EXAMPLE, PLAN))
    assert [(arm.method, arm.rates) for arm in arms] == [
        ("constant", "0.001"),
        ("constant", "0.01"),
        ("commit-clr", "0.001"),
        ("commit-clr", "0.01"),
        ("static", "0.001 / 0.01"),
        ("static", "0.01 / 0.001"),
    ]
    assert len({arm.slug for arm in arms}) == len(arms)


def test_static_pairs_leave_out_the_diagonal() -> None:
    grid = StaticGrid(learning_rate=(1.0, 2.0), encoder_learning_rate=(2.0,))
    assert static_pairs(grid, (5.0,)) == [(1.0, 2.0)]
    assert static_pairs(None, (1.0, 2.0)) == []


def test_axis_varies_only_the_methods_it_affects() -> None:
    axes = (("commit.kappa_window", (10, 50)), ("train.optimizer", ("adamw", "sgd")))
    assert len(variations("commit-clr", axes)) == 4
    assert variations("constant", axes) == [(("train.optimizer", "adamw"),), (("train.optimizer", "sgd"),)]
    assert variations("commit-clr", (("commit.regularizer.weight", (1, 2)),)) == [()]
    assert len(variations("commit", (("commit.regularizer.weight", (1, 2)),))) == 2
    readings = ("commit.regularizer", ("lookahead", "drift-penalty"))
    weights = ("commit.regularizer.weight", (0.1, 1.0))
    assert len(variations("constant", (readings, weights))) == 1 + 4
    assert len(variations("commit-clr", (readings, weights))) == 1 + 2
    assert len(variations("commit", (readings, weights))) == 2
    assert len(variations("feature-cd", (("commit.switch.window", (1, 2)),))) == 2


AXES = {
    "model.lora.r": (2, 8, 32, None),
    "model.lora": (None,),
    "model.projector": ("encoder", "language_model", "own"),
    "train.optimizer": ("adamw", "sgd"),
    "commit.probe.samples": (1, 4, None),
    "commit.probe.interval": (1, 5, 20),
    "commit.kappa_estimator": ("arithmetic", "geometric", "ratio"),
    "commit.controller": ("literal", "bounded", "compensated"),
    "commit.probe.drift_scale": ("auto", 1.0),
}


@pytest.mark.parametrize("key", AXES)
def test_nested_keys_and_null_give_separate_valid_runs(key: str) -> None:
    base = load_recipe(EXAMPLE, [*PLAN, "commit.controller.kappa_target=2"])
    arms = screening_arms(base, ((key, AXES[key]),))
    varied = [arm for arm in arms if arm.variation]
    assert {arm.variation for arm in varied} == {((key, value),) for value in AXES[key]}
    assert all(re.fullmatch(r"[\w.+-]+", arm.slug) for arm in arms)
    assert len({arm.slug for arm in arms}) == len({arm.family + arm.rates for arm in arms}) == len(arms)
    for arm in varied:
        arm.recipe(base, seed=0)


def test_null_rank_means_full_tuning_others_keep_adapter() -> None:
    base = load_recipe(EXAMPLE)
    full, low = (Arm("commit-clr", 1e-3, 1e-3, (("model.lora.r", rank),)) for rank in (None, 2))
    assert full.recipe(base, 0).model.lora is None
    assert full.recipe(base, 0).for_record()["model"]["lora"] is None
    lora = low.recipe(base, 0).model.lora
    assert lora is not None
    assert (lora.r, lora.target_modules) == (2, ("q_proj", "v_proj"))
    assert (full.family, low.family) == ("CoMMIT-CLR (lora r null)", "CoMMIT-CLR (lora r 2)")


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"commit-clr_lr-0\.001_commit\.kappa_window-10; give every rate"):
        screening_arms(load_recipe(EXAMPLE, PLAN), (("commit.kappa_window", (10, 10)),))


@pytest.mark.parametrize("key", ["commit.kapa", "train.seed", "commit.method", "compare.seeds"])
def test_axis_must_be_a_free_setting(key: str) -> None:
    with pytest.raises(UserError, match=key):
        variations("commit", ((key, (1,)),))


def test_the_recipe_of_a_run() -> None:
    base = load_recipe(EXAMPLE, ["commit.regularizer=previous-step", "commit.method=commit"])
    clr = Arm("commit-clr", 1e-3, 1e-3, (("commit.kappa_window", 7),)).recipe(base, seed=3)
    assert (clr.commit_config().method, clr.commit_config().kappa_window, clr.train.seed) == ("commit-clr", 7, 3)
    assert clr.commit_config().regularizer is None
    assert not clr.train.save_weights
    assert Arm("commit", 1e-3, 1e-3).recipe(base, 0).commit_config().regularizer == PreviousStep()
    sampling = load_recipe(EXAMPLE, ["commit.regularizer.labels=sampled", "commit.method=commit"])
    penalised = Arm("constant", 1e-3, 1e-3, (("commit.regularizer", "drift-penalty"),))
    recipes = [arm.recipe(sampling, 0) for arm in (Arm("commit", 1e-3, 1e-3), penalised, Arm("constant", 1e-3, 1e-3))]
    readings = [recipe.commit_config().regularizer for recipe in recipes]
    assert readings == [Lookahead(labels="sampled"), DriftPenalty(), None]
    static = Arm("static", 1e-3, 1e-2).recipe(base, 0)
    assert static.commit_config().method == "constant"
    assert static.train.rates == {"language_model": 1e-3, "vision": 1e-2}


def test_an_impossible_combination_is_refused() -> None:
    with pytest.raises(UserError, match="kappa_window"):
        Arm("commit-clr", 1e-3, 1e-3, (("commit.kappa_window", 0),)).recipe(load_recipe(EXAMPLE), 0)


def test_recipe_penalty_is_not_dropped_silently() -> None:
    base = load_recipe(EXAMPLE, ["commit.regularizer=drift-penalty"])
    with pytest.raises(UserError, match="give it as --axis"):
        Arm("commit-clr", 1e-3, 1e-3).recipe(base, 0)


def test_validation_chooses_one_arm_per_family() -> None:
    low, high = Arm("constant", 1e-3, 1e-3), Arm("constant", 1e-2, 1e-2)
    clr_low, clr_high = Arm("commit-clr", 1e-3, 1e-3), Arm("commit-clr", 1e-2, 1e-2)
    scores = {low: 0.5, high: 0.5, clr_low: 0.4, clr_high: 0.6}
    assert choose(list(scores), scores) == [low, clr_high]


def test_reference_arm_shares_settings_outside_the_method() -> None:
    sgd, adam = (("train.optimizer", "sgd"),), (("train.optimizer", "adamw"),)
    constants = [Arm("constant", 1e-2, 1e-2, sgd), Arm("constant", 1e-3, 1e-3, adam)]
    arm = Arm("commit-clr", 1e-3, 1e-3, (*adam, ("commit.kappa_window", 7)))
    assert reference_of(arm, [*constants, arm]) == constants[1]


def test_long_axis_values_make_short_distinct_names() -> None:
    recipe = load_recipe(EXAMPLE)
    names = tuple("\N{LATIN SMALL LETTER E WITH ACUTE}" * 300 + end for end in "ab")
    slugs = [arm.slug for arm in screening_arms(recipe, (("model.name", names),))]
    assert len(set(slugs)) == len(slugs)
    assert all(len(slug.encode()) <= 200 for slug in slugs)


def test_plan_of_too_many_runs_is_refused() -> None:
    axes = tuple((key, tuple(range(1, 1000))) for key in ("commit.kappa_window", "train.steps", "train.batch_size"))
    with pytest.raises(UserError, match=r"has up to [\d,]+ runs, and 20,000 are the most"):
        screening_arms(load_recipe(EXAMPLE), axes)
