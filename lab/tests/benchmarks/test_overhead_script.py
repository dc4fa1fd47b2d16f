"""The script that measures the cost, on a LLaVA of a width of 16; what it takes in time is not looked at."""

from __future__ import annotations

import json
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"width": 16, "layers": 1, "batch": 2, "text": 4, "answers": 2, "rank": 2}


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.fixture
def subject() -> Any:
    return import_module("overhead_subjects").random_llava(64, **SIZES)


def test_every_arm_makes_a_step_in_every_round(subject: Any) -> None:
    measures = import_module("overhead_measures")
    configs = {"plain": None, "every": measures.EVERY, "seldom": measures.SELDOM}
    rounds = measures.alternate(subject, configs, 4)
    assert [set(one) for one in rounds] == [set(configs)] * 4
    assert [next(iter(one)) for one in rounds] == ["plain", "every", "seldom", "plain"]
    assert not any(one["plain"][1] for one in rounds)
    assert all(one["every"][1] for one in rounds)
    assert not rounds[-1]["seldom"][1]


def test_arms_train_copies_and_share_what_is_fixed(subject: Any) -> None:
    before = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
    loop = subject.loop(None)
    for name, parameter in loop._model.named_parameters():
        own = dict(subject.model.named_parameters())[name]
        assert (parameter is own) is not own.requires_grad
    loop.step()
    assert all(torch.equal(p, before[name]) for name, p in subject.model.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in loop._model.named_parameters())


def test_counted_work_is_that_of_measuring(subject: Any) -> None:
    counts = import_module("overhead_measures").counts(subject)
    assert counts["unmeasured"] == counts["plain"]
    assert counts["measured"]["flop"] > counts["plain"]["flop"]
    assert counts["measured"]["vocabulary"] > counts["plain"]["vocabulary"]


def test_passes_over_a_vocabulary_are_counted_in_numbers() -> None:
    counter = import_module("overhead_measures")._Vocabulary(7)
    logits, weights = torch.ones(3, 7), torch.ones(2, 7)
    with counter:
        logits.exp()  # makes 21
        logits.sum(-1)  # reads 21
        torch.ones(3, 2) @ weights  # makes 21, and the 14 weights are no logits
        logits.t()  # a view
        torch.ones(5, 6).exp()
    assert counter.touched == 63


def test_a_measured_step_is_taken_apart(subject: Any) -> None:
    parts = import_module("overhead_measures").profile(subject, 1)
    assert "copies and the rest" in parts
    assert all(seconds >= 0 for seconds in parts.values())


def test_sizes_are_told(subject: Any) -> None:
    facts = subject.facts()
    assert (facts["vocabulary"], facts["batch"], facts["length"], facts["answers"]) == (64, 2, 20, 4)
    assert set(facts["trained"]) == {"vision", "language_model"}


def test_a_part_that_was_measured_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = import_module("overhead")
    calls: list[str] = []
    found: dict[str, Any] = {"rounds": []}
    monkeypatch.setattr(script, "apart", lambda function, *given, **named: function(*given, **named))
    monkeypatch.setattr(script, "parts", lambda quick: {"one": (lambda device: calls.append(device) or found, {})})
    path, arguments = tmp_path / "one.json", Namespace(quick=False, device="cpu")
    for _ in range(2):
        script.measure("one", arguments, path)
    assert calls == ["cpu"]
    monkeypatch.setattr(script, "source", lambda: "another")
    found = {"skipped": "no weights"}
    script.measure("one", arguments, path)
    assert calls == ["cpu"] * 2
    assert "rounds" in json.loads(path.read_text("utf-8"))  # what was measured once is not lost


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_part_that_cannot_run_says_why() -> None:
    script = import_module("overhead")
    assert script.apart(_broken, "cpu") == {"skipped": "ZeroDivisionError: none"}


def _broken(device: str) -> None:
    raise ZeroDivisionError("none")


def test_fp16_skips_overflowing_steps_and_measures_the_others() -> None:
    with pytest.warns(UserWarning, match="skipped"):
        import_module("overhead_gpu").fp16("cpu")


def test_the_large_shape_is_one_that_can_be_trained() -> None:
    subject = import_module("overhead_subjects").llava_7b("cpu", narrow=True)
    loop = subject.loop(import_module("overhead_measures").EVERY)
    loop.step()
    assert loop.measured
    assert 0 < loop.coordinator.kappa < float("inf")
