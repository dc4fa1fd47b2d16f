"""Recipes: what is read, and the one line that every fault gets."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from small_experiment import EXAMPLE

from commit_tuning.errors import UserError
from commit_tuning.train.recipe.load import FOLDERS, load_recipe, override
from commit_tuning.train.recipe.yaml_text import parse_value

SHIPPED = sorted(path.stem for path in FOLDERS[0].glob("*.yaml"))
DATA = "data: {dataset: iconqa, root: there}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid_and_found_by_name(name: str) -> None:
    assert load_recipe(name).data.dataset in name


def test_there_is_a_shipped_recipe() -> None:
    assert SHIPPED == ["llava-textvqa"]


def test_values_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, DATA + "model: {name: m}\ntrain: {learning_rate: 1e-3, steps: 5}\n")
    recipe = load_recipe(path, ["train.steps=7", "commit.method=constant", "model.lora.r=2", "data.val_limit=null"])
    assert (recipe.train.learning_rate, recipe.train.steps, recipe.model.lora) == (1e-3, 7, recipe.model.lora)
    assert recipe.model.lora is not None
    assert recipe.model.lora.r == 2
    assert recipe.commit_config().method == "constant"
    assert recipe.train.rates == {"language_model": 1e-3, "vision": 1e-3}
    assert load_recipe(path, ["train.encoder_learning_rate=2e-3"]).train.rates["vision"] == 2e-3


def test_override_revalidates() -> None:
    recipe = load_recipe(EXAMPLE)
    assert override(recipe, {"train.seed": 4}).train.seed == 4
    with pytest.raises(UserError, match=r"train\.steps"):
        override(recipe, {"train.steps": 0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {name: m}\ntrain: {stesp: 3}",
            r"unknown key train\.stesp in .*mine\.yaml; did you mean train\.steps\?",
        ),
        ("model: {name: m}\ntrian: {steps: 3}", r"unknown key trian in .*; did you mean train\?"),
        ("model: {name: m, lora: {rank: 3}}", r"unknown key model\.lora\.rank"),
        (
            "model: {name: m}\ncommit: {kappa_windw: 3}",
            r"commit\.kappa_windw in .*; did you mean commit\.kappa_window\?",
        ),
        (DATA + "model: {name: m}\ncommit: {method: comit}", r"method='comit' is not one of constant"),
        ("model: {name: m}\ncompare: {methods: [comit]}", r"compare\.methods: 'comit' is not one of constant"),
        ("model: {name: m}\ncompare: {seeds: 1, screen_seeds: 2}", r"screen_seeds \(2\) exceeds"),
        ("model: {name: m}\ntrain: {steps: many}", r"train\.steps in .*: input should be a valid integer, got many"),
        ("model: {name: m}\ntrain: {steps: true}", r"train\.steps in .*valid integer"),
        ("model: {name: m}\ntrain: {learning_rate: .nan}", r"train\.learning_rate in .*finite"),
        ("model: {name: m}\ntrain: {learning_rate: -1}", r"train\.learning_rate in .*greater than 0, got -1"),
        (DATA + "model: {name: m}\ntrain: {batch_size: 8, micro_batch_size: 3}", r"no multiple of micro_batch_size"),
        ("model: {name: m}\ndata: {dataset: iconqa}", r"data\.root is missing"),
        ("train: {steps: 3}", r"model is missing in .*; add it"),
        ("model: {name: m}\ntrain: {steps: 2024-99-99}", r"train\.steps in .*valid integer, got 2024-99-99"),
        ("model: {name: !!binary aGVsbG8=}", r"line 1: could not determine a constructor for the tag .*binary"),
        ("model: {name: !!set {a}}", r"line 1: could not determine a constructor for the tag .*set"),
        ("model: {name: m}\ntrain: {steps: !!int many}", r"line 2: 'many' is no int"),
        ("model: {name: m}\ntrain: {steps: !!bool maybe}", r"line 2: 'maybe' is no bool"),
        ("model: {name: m}\ntrain: {seed: " + "9" * 5000 + "}", r"line 2: '9{50,}\.\.\. is no int"),
        ('model: {name: "\\ud800"}', r"mine\.yaml: .*surrogates not allowed"),
        ('model: {name: "\\U99999999"}', r"mine\.yaml is not valid YAML"),
        ('model: {name: "a\\0b"}', r"model\.name in .*no control characters, got a\\x00b"),
        ("model: {name: m" + "m" * 1000 + "}", r"model\.name in .*at most 1000 characters, got m+\.\.\."),
        ("model: &a [*a]", r"holds more than 10,000 values, its aliases written out"),
        ("[" * 50_000, r"is nested more than 20 deep"),
        ("#" * 300_000, r"is too long"),
        (
            DATA + "model: {name: m}\ncommit: {kappa_window: [" + "1, " * 2000 + "]}",
            r"kappa_window=\[1, 1, .*\.\.\. must be",
        ),
        (DATA + "model: {name: m}\ncommit: {regularizer: [a]}", r"regularizer=\['a'\] is not one of"),
        ("model: llava", r"model in .*, got llava"),
        ("- a\n- b", r"is not a recipe: .* found a list"),
        ("", r"is not a recipe: .* found nothing"),
        ("plain words", r"is not a recipe: .* found plain text"),
        ("model: {name: m", r"mine\.yaml, line 1 is not valid YAML"),
        ("model: {name: a}\nmodel: {name: b}", r"line 2: key 'model' is given twice"),
        ("model: !!python/object/apply:os.system ['touch pwned']", r"line 1: could not determine a constructor"),
    ],
)
def test_faults_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize("text", [BOMB, BOMB.replace("[x, x]", "{x: 1}").replace("[*", "{<<: [*").replace("]", "]}")])
def test_aliases_do_not_grow_without_bound(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="holds more than 10,000 values, its aliases written out"):
        load_recipe(write(tmp_path, text))


def test_an_alias_may_repeat_a_value(tmp_path: Path) -> None:
    text = DATA + "model: {name: m}\ncompare: {rates: &r [1e-3, 1e-2], static_grid: {learning_rate: *r}}"
    compare = load_recipe(write(tmp_path, text)).compare
    assert compare.static_grid is not None
    assert compare.static_grid.learning_rate == compare.rates == (1e-3, 1e-2)


@pytest.mark.parametrize("section", ["", "commit: ", "train: "])
def test_many_unknown_keys_are_counted(tmp_path: Path, section: str) -> None:
    keys = ", ".join(f"k{'x' * 90}{number}: 1" for number in range(2000))
    whole = f"{DATA}model: {{name: m}}\n{section}{{{keys}}}"
    text = whole if section else f"{{{DATA.strip()}, model: {{name: m}}, {keys}}}"
    with pytest.raises(UserError, match=r"unknown key .*; and 1,995 more$") as caught:
        load_recipe(write(tmp_path, text))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("key", "most", "beyond"),
    [
        ("train.seed", 2**32 - 1, 2**32),
        ("train.seed", 0, 2**64),
        ("train.steps", 10**9, 10**12),
        ("train.batch_size", 2**16, 10**9),
        ("train.micro_batch_size", 16, 10**9),
        ("train.learning_rate", 1e30, 1e300),
        ("train.encoder_learning_rate", 1e30, float("inf")),
        ("train.weight_decay", 1e6, -1.0),
        ("train.warmup_steps", 10**9, 10**10),
        ("train.max_grad_norm", 1e30, 0.0),
        ("train.device", "cuda:1", "meta"),
        ("train.device", "cuda:1", "cpu\n"),
        ("model.lora.r", 2**16, 10**9),
        ("model.lora.alpha", 1e6, float("nan")),
        ("model.lora.target_modules", ["q"], [""]),
        ("model.freeze", ["a"] * 1000, ["a"] * 1001),
        ("data.root", "a", "a\0"),
        ("data.train_limit", 10**9, 10**12),
        ("eval.batch_size", 2**16, 10**9),
        ("eval.max_new_tokens", 2**16, 10**9),
        ("eval.images", 10**5, 10**9),
        ("compare.seeds", 10**4, 10**9),
        ("compare.first_seed", 2**31, 2**64),
        ("compare.rates", [1e-3], [0.0]),
        ("compare.static_grid.learning_rate", [1e-3], [-1e-3]),
        ("commit.kappa_window", 10**9, 10**12),
        ("commit.probe.samples", 10**9, 10**12),
        ("commit.controller.bound", 1e9, 1e300),
        ("commit.regularizer.weight", 1e9, float("inf")),
        ("commit.controller.kappa_target", 1e9, 10**400),
    ],
)
def test_every_number_has_a_range(key: str, most: object, beyond: object) -> None:
    recipe = load_recipe(EXAMPLE, ["commit.method=commit"] if "regularizer" in key else [])
    override(recipe, {key: most})
    with pytest.raises(UserError, match=key.rsplit(".", maxsplit=1)[-1]) as caught:
        override(recipe, {key: beyond})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".yaml", "a\0b", "\udcff", "a\nb"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match="no recipe") as caught:
        load_recipe(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_python_tags_do_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "pwned"
    with pytest.raises(UserError):
        load_recipe(
            write(
                tmp_path,
                f"model: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]",
            )
        )
    assert not mark.exists()


def test_a_missing_file_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe .*llava-textvqa"):
        load_recipe(tmp_path / "none.yaml")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="cannot read recipe"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.stesp=3", r"unknown key train\.stesp in .*; did you mean train\.steps\?"),
        ("train.steps", r"write it as section\.key=value"),
        ("train.steps=[", "is not valid YAML"),
        ("train.steps=!!python/name:os.system x", "could not determine a constructor"),
    ],
)
def test_faults_in_overrides(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(EXAMPLE, [setting])


def test_recipe_survives_json() -> None:
    recipe = load_recipe(EXAMPLE)
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


NEWER_KEYS = (
    ("model", "trust_remote_code"),
    ("data", "max_tokens"),
    ("data", "too_long"),
    ("train", "gradient_checkpointing"),
)


@pytest.mark.parametrize(("section", "key"), NEWER_KEYS)
def test_record_without_newer_key_is_of_the_recipe(section: str, key: str) -> None:
    recipe = load_recipe(EXAMPLE)
    stored = recipe.for_record()
    del stored[section][key]
    assert recipe.differences(stored) == []
    assert override(recipe, {"train.steps": 7}).differences(stored) == ["commit.switch.latest", "train.steps"]


def test_record_with_a_dropped_key_matches_the_recipe() -> None:
    recipe = load_recipe(EXAMPLE)
    stored = recipe.for_record()
    stored["train"]["checkpoint_interval"] = 5
    assert recipe.differences(stored) == []


@pytest.mark.parametrize("stored", [{}, {"model": 1}, {"model": {"name": "m"}, "commit": {}}])
def test_record_of_no_recipe_differs(stored: dict[str, object]) -> None:
    assert load_recipe(EXAMPLE).differences(stored)


def test_missing_setting_of_the_method_is_a_difference() -> None:
    recipe = load_recipe(EXAMPLE)
    stored = recipe.for_record()
    del stored["commit"]["kappa_window"]
    assert recipe.differences(stored) == ["commit.kappa_window"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0400", 400),
        ("-0400", -400),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("08", 8),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0b11", "0b11"),
        ("1e3", 1e3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e-3", -1.5e-3),
        ("-.inf", float("-inf")),
        (".", "."),
        ("-", "-"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_numbers_are_read_as_in_yaml_1_2(text: str, value: object) -> None:
    read = parse_value(f"[{text}]" if text != "-" else "'-'", source="it")
    read = read[0] if isinstance(read, list) else read
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("text", ["!!int 1:30", "!!int 0b1", "1__0", "!!int [1]"])
def test_whole_numbers_of_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is no int|expected a scalar"):
        parse_value(text, source="it")
