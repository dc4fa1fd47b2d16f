"""The benchmarks of the paper's open questions, at a size of seconds."""

from __future__ import annotations

import itertools
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa
from commit_tuning.errors import UserError
from commit_tuning.shown import markdown_text
from commit_tuning.train.record import read_lines

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
ARMS = ["constant:1e-3", "default:1e-3:probe.interval=1"]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nano_iconqa(tmp_path_factory.mktemp("iconqa") / "data", train=32, val=6, test=9)


def main(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> ModuleType:
    """Run a script as the command line does."""
    script = import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    script.main()
    return script


def lines_of(printed: str, arm: str) -> list[list[str]]:
    """The cells of an arm's lines."""
    start = f"| {markdown_text(arm)} |"
    return [line.strip("| \n").split(" | ") for line in printed.splitlines() if line.startswith(start)]


def plain_subject(evaluate: Any = lambda: {"accuracy": 50.0}) -> Any:
    torch.manual_seed(3)
    model, partition = tiny.build("plain")
    order = ([number] for number in itertools.count())
    collate = lambda indices: tiny.make_batch("plain", 4, torch.float32, seed=indices[0])  # noqa: E731
    return import_module("course").Subject(model, partition, order, collate, evaluate)


def test_arms_are_methods_at_rates() -> None:
    parse = import_module("arms").Arm.parse
    default, literal = parse("default:1e-3:controller.bound=50", 400), parse("literal-clr:3e-4", 400)
    assert (default.rate, default.config.controller.bound, default.config.method) == (1e-3, 50, "commit-clr")
    assert (literal.config.controller.name, literal.config.probe.samples, literal.config.regularizer) == (
        "literal",
        None,
        None,
    )
    assert parse("literal:1e-4", 400).config.regularizer.name == "lookahead"
    assert parse("feature-cd:1e-4", 400).config.switch.latest == 200


def test_interrupted_course_resumes_exactly(tmp_path: Path) -> None:
    course = import_module("course")
    arm, stops = import_module("arms").Arm.parse("default:1e-2:probe.interval=2", 6), [3, 6]
    whole = course.follow(lambda seed: plain_subject(), arm, 0, stops, tmp_path / "whole", {})
    looks = iter([{"accuracy": 50.0}])
    with pytest.raises(StopIteration):
        course.follow(lambda seed: plain_subject(lambda: next(looks)), arm, 0, stops, tmp_path / "cut", {})
    resumed = course.follow(lambda seed: plain_subject(), arm, 0, stops, tmp_path / "cut", {})
    assert resumed["resumed_at"] == [3]
    of_time = ("seconds", "memory_mib")
    for one, other in zip(whole["stops"], resumed["stops"], strict=True):
        assert {k: v for k, v in one.items() if k not in of_time} == {
            k: v for k, v in other.items() if k not in of_time
        }
    assert read_lines(tmp_path / "whole" / "history.jsonl") == read_lines(tmp_path / "cut" / "history.jsonl")
    assert course.follow(None, arm, 0, stops, tmp_path / "cut", {}) == json.loads(json.dumps(resumed))
    with pytest.raises(UserError, match="holds a run with other settings"):
        course.follow(None, arm, 0, [3], tmp_path / "cut", {})
    assert not list(tmp_path.rglob("checkpoint*"))


def test_long_run_prints_a_line_for_every_stop(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"data.root={data}", "train.batch_size=4"]
    main("long_run", monkeypatch, "--arms", *ARMS, "--stops", 1, 2, "--output", tmp_path, "--settings", *settings)
    printed = capsys.readouterr().out
    assert [line[1] for arm in ARMS for line in lines_of(printed, arm)] == ["1", "2", "1", "2"]
    assert lines_of(printed, ARMS[0])[1][9] == "1.0e-03"


def test_alignment_starts_from_a_fresh_bridge(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from commit_lab.nano.models.load import load_nano

    settings = [f"data.root={data}", "train.batch_size=4", "data.in_memory=false"]
    options = ["--arms", ARMS[0], "--stops", 1, "--seeds", 0, "--output", tmp_path, "--settings", *settings]
    script = main("alignment", monkeypatch, *options)
    assert len(lines_of(capsys.readouterr().out, ARMS[0])) == 2
    kept, fresh, other = (load_nano("nano-llava-v2")[0] for _ in range(3))
    script.renew("nano-llava-v2", fresh, 0)
    script.renew("nano-llava-v2", other, 1)
    for (name, value), new, another in zip(
        kept.named_parameters(), fresh.parameters(), other.parameters(), strict=True
    ):
        renewed = name.startswith("model.multi_modal_projector")
        assert torch.equal(value, new) != renewed, name
        assert torch.equal(new, another) != (renewed and name.endswith("weight")), name


def test_linear_probe_finds_signal_and_not_noise(tmp_path: Path) -> None:
    probe = import_module("encoder_probe")
    generator = torch.Generator().manual_seed(0)
    classes = {split: torch.arange(60) % 3 for split in ("train", "val", "test")}
    noise = {split: torch.randint(3, (60,), generator=generator) for split in classes}
    for width in (10, 90):
        axes = torch.randn(3, width, generator=generator)
        inputs = {s: axes[c] + 0.1 * torch.randn(60, width, generator=generator) for s, c in classes.items()}
        found = probe.linear_probes(inputs, {"shown": classes, "noise": noise})
        assert found["shown"] == 1.0
        assert found["noise"] < 0.6
    features = torch.randn(20, 6, generator=generator)
    turned = 3 * features @ torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert probe.alike(features, turned) == pytest.approx(1)
    assert probe.alike(features, torch.randn(20, 6, generator=generator)) < 0.6
    assert probe.effective_rank(features[:, :1] @ torch.ones(1, 6)) == pytest.approx(1, abs=1e-3)


def test_the_probe_reads_runs_with_weights(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from commit_tuning.train.recipe.load import load_recipe
    from commit_tuning.train.runner import train

    settings = [f"data.root={data}", "train.steps=1", "train.learning_rate=3e-2", "commit.method=constant"]
    train(load_recipe("iconqa-nano-blip2", [*settings, "eval.images=0"]), tmp_path / "run")
    main("encoder_probe", monkeypatch, tmp_path, "--output", tmp_path / "probes.json", "--pictures", 45)
    untuned, tuned = json.loads((tmp_path / "probes.json").read_text("utf-8"))
    assert untuned["encoder: CKA with untuned"] == pytest.approx(1)
    assert tuned["encoder: CKA with untuned"] < 0.999
    assert untuned["encoder: colour (one)"] > 40
    assert "| language model | constant, 0.03 | 1 |" in capsys.readouterr().out
    train(load_recipe("iconqa-nano-blip2", [*settings, "eval.images=0", "model.lora.alpha=4"]), tmp_path / "scaled")
    with pytest.raises(SystemExit, match="is of another model than"):
        main("encoder_probe", monkeypatch, tmp_path, "--output", tmp_path / "both.json", "--pictures", 45)


def test_a_flamingo_is_blind_at_first(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--train", 32, "--test", 9, "--stops", 1, 2, "--seeds", 0, "--root", data, "--output", tmp_path]
    script = main("cross_attention", monkeypatch, "--cross-attention", "own", "--arms", ARMS[1], *options)
    assert len(lines_of(capsys.readouterr().out, ARMS[1])) == 2
    model, batch = script.build(0), script.Questions(data, 4, 4).batch("train", [0, 1])
    model(**batch).loss.backward()
    towers = script.share_out(model, "language_model")
    assert all(p.grad is None or not p.grad.any() for p in towers["vision"])
    crossing = set(script.share_out(model, "own").named_parameters("cross"))
    assert crossing
    assert crossing <= set(towers.named_parameters("language_model"))
    assert crossing < set(script.share_out(model, "vision").named_parameters("vision"))


def test_three_modalities_have_a_kappa_for_each_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from commit_lab.nano.models.build import build_model, build_processor
    from commit_lab.nano.models.salmonn import build_salmonn_tokenizer
    from commit_lab.nano.sounds.nano_clothoaqa import nano_clothoaqa_vocabulary

    tokenizer, listener = build_salmonn_tokenizer(nano_clothoaqa_vocabulary()), tmp_path / "listener"
    build_model("nano-salmonn", len(tokenizer)).save_pretrained(listener)
    build_processor("nano-salmonn", tokenizer).save_pretrained(listener)
    options = ["--listener", listener, "--train", 6, "--test", 3, "--stops", 1, 2, "--seeds", 0]
    script = main("three_modalities", monkeypatch, "--arms", ARMS[1], *options, "--output", tmp_path / "runs")
    (_, last) = lines_of(capsys.readouterr().out, ARMS[1])
    assert float(last[8]) > 0
    assert float(last[9]) > 0
    items = script.Items(str(listener), {"train": 6})
    assert items.tokenizer.tokenize("hear a heart") == ["hear", "a", "heart"]  # a new word inside a known one
    model, _ = script.build(items, str(listener), 0)
    batch = items.batch("train", [2])
    logits = model(**batch).logits
    for name in ("pixel_values", "input_features"):
        assert not torch.allclose(model(**batch | {name: -batch[name]}).logits, logits)


def test_what_is_heard_says_where_to_look() -> None:
    make_item = import_module("three_modalities").make_item
    items = [make_item("train", number) for number in range(12)]
    assert [item.kind for item in items[:3]] == ["picture", "sound", "both"]
    for item in items:
        assert item.choices is not None
        assert len(set(item.choices)) == 4
        assert item.answer in item.choices
    assert [item.choices.index(item.answer) for item in items if item.kind == "both" and item.choices] == [0, 1, 2, 3]
    assert make_item("train", 5).question == items[5].question
