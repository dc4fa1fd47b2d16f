"""Every trainer gives the trajectory of the plain loop on the same data, bit for bit, and can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build, make_batch
from torch import Tensor, nn

from commit_tuning import CoMMITConfig, Coordinator, UserError

STEPS, SIZE, RATE = 8, 4, 3e-3
CONFIG = CoMMITConfig(probe_interval=1, lr_update_interval=2)
Trajectory = list[Tensor]


class Samples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The samples of all batches in order."""

    def __init__(self) -> None:
        batches = [make_batch("llava", SIZE, torch.float32, seed=step) for step in range(STEPS)]
        self.samples = [{key: value[row] for key, value in batch.items()} for batch in batches for row in range(SIZE)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples[index]


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def values(model: nn.Module) -> Trajectory:
    return [p.detach().clone() for p in model.parameters()]


@torch.no_grad()
def logits(trajectory: Trajectory) -> Tensor:
    """What a model of such values makes of a batch."""
    model, _ = build("llava")
    for parameter, value in zip(model.parameters(), trajectory, strict=True):
        parameter.copy_(value)
    return model.eval()(**make_batch("llava", SIZE, torch.float32)).logits


def plain_loop(clips_by_group: bool = False, autocast: bool = False) -> tuple[Trajectory, dict[str, float]]:
    """What all others have to give. The order in which the gradient norm is summed up shows in its last bits."""
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=RATE), weight_decay=0.0)
    coordinator = Coordinator(model, optimizer, CONFIG, partition)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for batch in torch.utils.data.DataLoader(Samples(), SIZE, collate_fn=collate):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(**batch).loss.backward()
        in_groups = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(in_groups if clips_by_group else model.parameters(), 1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            coordinator.step(batch)
        scheduler.step()
        optimizer.zero_grad()
    return values(model), coordinator.summary()


def trainer_arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": SIZE, "num_train_epochs": 1, "learning_rate": RATE,
        "lr_scheduler_type": "linear", "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_steps": 1,
        "report_to": "none", "use_cpu": True, "train_sampling_strategy": "sequential", "disable_tqdm": True,
        "save_strategy": "no", "remove_unused_columns": False, "optim": "adamw_torch", **changes,
    }  # fmt: skip


def with_trainer(folder: Path, **changes: Any) -> Any:
    from transformers import TrainingArguments

    from commit_tuning.integrations.transformers import CoMMITTrainer

    model, _ = build("llava")
    arguments = TrainingArguments(**trainer_arguments(folder, **changes))
    datasets = {"train_dataset": Samples(), "eval_dataset": Samples()}
    return CoMMITTrainer(model=model, args=arguments, data_collator=collate, commit=CONFIG, **datasets)


def transformers_trainer(folder: Path) -> tuple[Trajectory, dict[str, float]]:
    trainer = with_trainer(folder)
    trainer.train()
    return values(trainer.model), trainer.coordinator.summary()


def trl_trainer(folder: Path) -> tuple[Trajectory, dict[str, float]]:
    from datasets import Dataset
    from trl import SFTConfig

    from commit_tuning.integrations.trl import CoMMITSFTTrainer
    from commit_tuning.models.nano import load_processor

    model, _ = build("llava")
    samples = Dataset.from_list([{k: v.tolist() for k, v in sample.items()} for sample in Samples()])
    prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}, "bf16": False}
    trainer = CoMMITSFTTrainer(
        model=model, args=SFTConfig(**trainer_arguments(folder, **prepared)),
        train_dataset=samples.with_format("torch"),
        data_collator=collate, processing_class=load_processor("nano-llava"), commit=CONFIG,
    )  # fmt: skip
    trainer.train()
    return values(trainer.model), trainer.coordinator.summary()


def accelerate_loop(folder: Path, precision: str = "no") -> tuple[Trajectory, dict[str, float]]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    del folder
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=RATE), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    loader = torch.utils.data.DataLoader(Samples(), SIZE, collate_fn=collate)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    coordinator = Coordinator(model, optimizer, CONFIG, partition)
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        with accelerator.autocast():
            coordinator.step(batch)
        scheduler.step()
        optimizer.zero_grad()
    return values(model), coordinator.summary()


def lightning_trainer(folder: Path) -> tuple[Trajectory, dict[str, float]]:
    import lightning.pytorch as lightning

    from commit_tuning.integrations.lightning import CoMMITCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.partition = build("llava")

        def training_step(self, batch: dict[str, Tensor]) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.partition.param_groups(lr=RATE), weight_decay=0.0)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    module, callback = Module(), CoMMITCallback(CONFIG)
    trainer = lightning.Trainer(
        default_root_dir=folder, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Samples(), SIZE, collate_fn=collate))
    assert callback.coordinator is not None
    return values(module.model), callback.coordinator.summary()


LOOPS: dict[str, Callable[[Path], tuple[Trajectory, dict[str, float]]]] = {
    "transformers": transformers_trainer,
    "trl": trl_trainer,
    "accelerate": accelerate_loop,
    "lightning": lightning_trainer,
}


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")  # Lightning 2.6
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL 1.16
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("loop", list(LOOPS))
def test_a_trainer_gives_the_trajectory_of_the_plain_loop(loop: str, tmp_path: Path) -> None:
    expected, summary = plain_loop(clips_by_group=loop == "lightning")
    found, found_summary = LOOPS[loop](tmp_path)
    if loop == "trl":  # its loss adds the tokens up in another order, which Adam blows up where a gradient is zero
        assert found_summary == pytest.approx(summary, rel=1e-3)
        assert torch.allclose(logits(found), logits(expected), atol=1e-5)
    else:
        assert found_summary == summary
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert summary["lr/vision"] != summary["lr/language_model"]


def test_autocast_inside_the_model_measures_as_autocast_outside(tmp_path: Path) -> None:
    """Accelerate's autocast keeps casts of weights; one that outlives its weight would falsify every drift."""
    _, expected = plain_loop(autocast=True)
    _, accelerated = accelerate_loop(tmp_path, precision="bf16")
    trainer = with_trainer(tmp_path, bf16=True)
    trainer.train()
    assert accelerated == pytest.approx(expected, rel=0.05)
    assert trainer.coordinator.summary() == pytest.approx(expected, rel=0.05)


def test_the_trainer_logs_kappa_beside_the_loss(tmp_path: Path) -> None:
    trainer = with_trainer(tmp_path)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == STEPS
    assert {"kappa", "smoothed_kappa", "drift/vision", "drift/language_model", "lr/vision"} <= logs[-1].keys()


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_trainer_gives_the_uninterrupted_trajectory(stop: int, tmp_path: Path) -> None:
    expected, summary = plain_loop()
    with_trainer(tmp_path, save_strategy="steps", save_steps=stop, max_steps=STEPS).train()
    resumed = with_trainer(tmp_path, save_strategy="steps", save_steps=stop, max_steps=STEPS)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.coordinator.summary() == summary
    assert all(torch.equal(a, b) for a, b in zip(expected, values(resumed.model), strict=True))


def test_accumulation_in_the_trainer_is_one_batch(tmp_path: Path) -> None:
    expected, summary = plain_loop()
    trainer = with_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=SIZE)
    trainer.train()
    assert trainer.coordinator.summary() == pytest.approx(summary, rel=1e-3)
    assert torch.allclose(logits(values(trainer.model)), logits(expected), atol=1e-5)


def test_a_second_training_starts_anew(tmp_path: Path) -> None:
    trainer = with_trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=4)
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
    trainer = Mine(model=model, args=TrainingArguments(**trainer_arguments(tmp_path)), train_dataset=Samples())
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-5, 2e-6}


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    kept = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = with_trainer(tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_loss", **kept)
    trainer.train()
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(values(best), values(trainer.model), strict=True))


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    with_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    other = with_trainer(tmp_path, max_steps=4)
    other.commit_config = CoMMITConfig(method="constant")
    with pytest.raises(ValueError, match="resume with those settings"):
        other.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "commit.pt").unlink()
    with pytest.raises(UserError, match="a trainer without CoMMIT"):
        with_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(checkpoint))
