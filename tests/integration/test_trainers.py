"""Every trainer gives the trajectory of the plain loop on the same data, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import (
    CONFIG,
    LOOPS,
    METHODS,
    SIZE,
    STEPS,
    Task,
    accelerate_loop,
    collate,
    plain_loop,
    trainer_arguments,
    transformers_trainer,
    with_trainer,
)
from tiny import build, make_batch
from torch import Tensor, nn

from commit_tuning import CoMMITConfig, Coordinator, UserError
from commit_tuning.errors import ConfigError


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    batch = make_batch("llava", SIZE, model.dtype)
    return model.eval()(**{**batch, "labels": None}).logits  # with labels, TRL 1.10 leaves it a loss alone


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")  # Lightning 2.6
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL 1.16
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(
    ("loop", "settings"),
    [
        pytest.param(loop, settings, id="-".join([loop, *map(str, settings.values())]))
        for loop in LOOPS
        for settings in ({}, *METHODS)
        if loop != "plain loop" and not (loop == "trl" and settings)  # TRL's is transformers' but for the loss
    ],
)
def test_trainer_follows_the_trajectory_of_the_plain_loop(loop: str, settings: dict[str, Any], tmp_path: Path) -> None:
    sums_in_another_order = loop == "trl"
    dtype = torch.float64 if sums_in_another_order else torch.float32
    task = Task(tmp_path, replace(CONFIG, **settings), dtype=dtype)
    expected, found = plain_loop(task, clips_by_group=loop == "lightning"), LOOPS[loop](task)
    summary, found_summary = expected.coordinator.summary(), found.coordinator.summary()
    if sums_in_another_order:  # and in float32, whatever the model is in
        assert found_summary == pytest.approx(summary, rel=1e-3)
        torch.testing.assert_close(logits(found.model), logits(expected.model), rtol=0, atol=1e-5)
    else:
        assert found_summary == summary
        assert all(torch.equal(a, b) for a, b in zip(expected.values(), found.values(), strict=True))
    assert settings or summary["lr/vision"] != summary["lr/language_model"]


def test_autocast_inside_the_model_measures_as_autocast_outside(tmp_path: Path) -> None:
    """Accelerate's autocast keeps casts of weights; one that outlives its weight would falsify every drift."""
    task = Task(tmp_path, autocast=True)
    expected = plain_loop(task).coordinator.summary()
    for loop in (accelerate_loop, transformers_trainer):
        assert loop(task).coordinator.summary() == pytest.approx(expected, rel=0.05)


def test_the_trainer_logs_kappa_beside_the_loss(tmp_path: Path) -> None:
    trainer = with_trainer(Task(tmp_path))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == STEPS
    assert {"kappa", "smoothed_kappa", "drift/vision", "drift/language_model", "lr/vision"} <= logs[-1].keys()


def test_accumulation_in_the_trainer_is_one_batch(tmp_path: Path) -> None:
    task = Task(tmp_path, dtype=torch.float64)
    expected, found = plain_loop(task), transformers_trainer(replace(task, accumulation=SIZE))
    assert found.coordinator.summary() == pytest.approx(expected.coordinator.summary(), rel=1e-6)
    torch.testing.assert_close(logits(found.model), logits(expected.model), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["llava", "plain"])  # a `forward` that takes any name, and one that does not
def test_probe_omits_inputs_that_only_the_loss_uses(kind, tmp_path, monkeypatch) -> None:
    from transformers import TrainingArguments

    from commit_tuning.integrations.transformers import CoMMITTrainer

    class Weighted(CoMMITTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            weight = inputs.pop("weight").mean()
            return weight * model(input_ids=inputs.pop("input_ids"), **inputs).loss

    seen = []
    step = Coordinator.before_step
    monkeypatch.setattr(
        Coordinator, "before_step", lambda self, batches, *more: (seen.extend(batches), step(self, batches, *more))
    )
    task = Task(tmp_path, kind=kind)
    samples = [{**sample, "weight": torch.tensor(0.5)} for sample in task.samples()]
    model, partition = task.build()
    arguments = TrainingArguments(**trainer_arguments(task, max_steps=2))
    partitions = {"partition": lambda _: partition}
    Weighted(model=model, args=arguments, train_dataset=samples, data_collator=collate, **partitions).train()
    assert [set(batch) for batch in seen] == [samples[0].keys() - {"weight"}] * 2


def test_a_second_training_starts_anew(tmp_path: Path) -> None:
    trainer = with_trainer(Task(tmp_path, saves=True), max_steps=4)
    trainer._learning_rates = {"projector_lr": 1e-3}
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.coordinator.state_dict()["steps"] == 4
    trainer.args.max_steps = 2
    trainer.train()
    assert trainer.coordinator.state_dict()["steps"] == 2


def test_rates_that_a_subclass_sets_stay(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from commit_tuning.integrations.transformers import CoMMITTrainerMixin

    class Own(Trainer):
        def create_optimizer(self, model=None):
            head = [*self.model.lm_head.parameters()]
            others = [p for p in self.model.parameters() if p is not head[0]]
            self.optimizer = torch.optim.AdamW([{"params": head, "lr": 1e-5}, {"params": others, "lr": 2e-6}])
            return self.optimizer

    class Mine(CoMMITTrainerMixin, Own):
        pass

    model, _ = build("llava")
    trainer = Mine(
        model=model, args=TrainingArguments(**trainer_arguments(Task(tmp_path))), train_dataset=Task(tmp_path).samples()
    )
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-5, 2e-6}


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    kept = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = with_trainer(
        Task(tmp_path, saves=True), load_best_model_at_end=True, metric_for_best_model="eval_loss", **kept
    )
    trainer.train()
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), trainer.model.parameters(), strict=True))


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    with_trainer(Task(tmp_path, saves=True), max_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    other = with_trainer(Task(tmp_path, CoMMITConfig(method="constant")), max_steps=4)
    with pytest.raises(ValueError, match="resume with those settings"):
        other.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "commit.pt").unlink()
    with pytest.raises(UserError, match="a trainer without CoMMIT"):
        with_trainer(Task(tmp_path), max_steps=4).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("other", ["groups", "parameters"])
def test_a_checkpoint_of_other_groups_is_one_line(other: str, tmp_path: Path) -> None:
    first = with_trainer(Task(tmp_path, saves=True), max_steps=2)
    first._learning_rates = {"projector_lr": 1e-3} if other == "groups" else {}
    first.train()
    resumed = with_trainer(Task(tmp_path), max_steps=4)
    resumed.model.lm_head.weight.requires_grad_(other == "groups")
    with pytest.raises(ConfigError, match=r"checkpoint-2 is of an optimizer with other parameter groups \(") as told:
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "\n" not in str(told.value)


def test_model_only_checkpoint_restarts_control_and_optimizer(tmp_path: Path) -> None:
    with_trainer(Task(tmp_path, saves=True), max_steps=2, save_only_model=True).train()
    resumed = with_trainer(Task(tmp_path), max_steps=4)
    with pytest.warns(UserWarning, match="holds the model only .*CoMMIT begin anew"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.coordinator.state_dict()["steps"] == 2
    assert resumed.state.global_step == 4


def test_training_step_must_prepare_its_inputs(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    from commit_tuning.integrations.transformers import CoMMITTrainer

    class Own(CoMMITTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = model(**inputs).loss
            self.accelerator.backward(loss)
            return loss.detach()

    task = Task(tmp_path)
    arguments = TrainingArguments(**trainer_arguments(task))
    own = Own(model=task.build()[0], args=arguments, train_dataset=task.samples(), data_collator=collate)
    with pytest.raises(UserError, match=r"`training_step` of your own has to call self\._prepare_inputs\(inputs\)"):
        own.train()
