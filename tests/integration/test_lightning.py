"""What is Lightning's own: where the callback finds things, and how a checkpoint comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import CONFIG, Task, collate, values
from tiny import build
from torch import Tensor
from torch.utils.data import DataLoader

from commit_tuning import UserError
from commit_tuning.integrations.lightning import CoMMITCallback

lightning: Any = pytest.importorskip("lightning.pytorch")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),  # Lightning 2.6
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class Module(lightning.LightningModule):
    """One optimizer, its single group of all modules."""

    def __init__(self) -> None:
        super().__init__()
        self.model, _ = build("llava")

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loader() -> DataLoader:
    """The same batch again and again, so that it does not matter where a resumed run begins."""
    return DataLoader(Task(Path()).samples()[:4] * 4, 4, collate_fn=collate)


def fit(
    module: Any, callback: CoMMITCallback | None, folder: Path, steps: int = 4, start: int = 0, validated: Any = None
) -> Any:
    """Train, with a checkpoint after every step, from one on if that is wanted."""
    saving = lightning.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = lightning.Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[saving, *([callback] if callback else [])],
    )  # fmt: skip
    trainer.fit(module, loader(), validated, ckpt_path=folder / f"step={start}.ckpt" if start else None)
    return trainer


def test_mixed_group_is_split_before_checkpoint_is_loaded(tmp_path: Path) -> None:
    whole, resumed = Module(), Module()
    for module, start in ((whole, 0), (resumed, 2)):
        fit(module, CoMMITCallback(CONFIG), tmp_path, start=start)
    assert all(torch.equal(a, b) for a, b in zip(values(whole), values(resumed), strict=True))


def test_mixed_group_under_a_scheduler_is_served(tmp_path: Path) -> None:
    class Scheduled(Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]

    module, callback = Scheduled(), CoMMITCallback(CONFIG)
    trainer = fit(module, callback, tmp_path)
    assert callback.coordinator is not None
    assert callback.coordinator.kappa > 0
    assert len(trainer.optimizers[0].param_groups) == 1


def test_manual_optimization_is_named(tmp_path: Path) -> None:
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(UserError, match=r"one optimizer, and Module has manual optimization; call"):
        fit(module, CoMMITCallback(CONFIG), tmp_path)


def test_callback_asks_for_a_missing_model(tmp_path: Path) -> None:
    module = Module()
    module.network = module.model
    del module.model
    with pytest.raises(UserError, match=r"Module has no module `model`; .*CoMMITCallback\(model="):
        fit(module, CoMMITCallback(CONFIG), tmp_path)
    callback = CoMMITCallback(CONFIG, model=lambda module: module.network)
    module.training_step = lambda batch: module.network(**batch).loss
    fit(module, callback, tmp_path, steps=1)
    assert callback.coordinator is not None


def test_a_checkpoint_made_without_the_callback_is_refused(tmp_path: Path) -> None:
    fit(Module(), None, tmp_path, steps=1)
    with pytest.raises(UserError, match=r"step=1.ckpt has no state of CoMMIT"):
        fit(Module(), CoMMITCallback(CONFIG), tmp_path, start=1)


def test_a_validated_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    module, callback = Module(), CoMMITCallback(CONFIG)
    module.validation_step = lambda batch: None
    trainer = fit(module, callback, tmp_path, steps=2, validated=loader())
    trainer.validate(module, loader(), ckpt_path=tmp_path / "step=2.ckpt", verbose=False)
    fit(module, callback, tmp_path, steps=1, validated=loader())
    assert callback.coordinator is not None
    assert callback.coordinator.state_dict()["steps"] == 1


def tuned_rate(trainer: Any, module: Any) -> None:
    from lightning.pytorch.tuner import Tuner

    Tuner(trainer).lr_find(module, num_training=8, min_lr=1e-5, max_lr=1e-2, update_attr=True, attr_name="rate")


def tuned_size(trainer: Any, module: Any) -> None:
    from lightning.pytorch.tuner import Tuner

    Tuner(trainer).scale_batch_size(module, steps_per_trial=1, max_trials=2)


class Tunable(Module):
    """What Lightning's tuners change: a learning rate and a batch size."""

    rate, batch_size = 1e-3, 2

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Task(Path()).samples(), self.batch_size, collate_fn=collate)


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
@pytest.mark.parametrize("tune", [tuned_rate, tuned_size])
@pytest.mark.parametrize("trained_before", [False, True])
def test_tuners_find_the_same_with_the_callback(tune: Any, trained_before: bool, tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [CoMMITCallback(replace(CONFIG, method="constant"))]):
        if trained_before and callbacks:
            fit(Module(), callbacks[0], tmp_path, steps=2)
        trainer = lightning.Trainer(
            default_root_dir=tmp_path, max_steps=3, accelerator="cpu", logger=False, callbacks=[*callbacks],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = Tunable()
        tune(trainer, module)
        trainer.fit(module)
        found.append((module.rate, module.batch_size, values(module)))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))
    assert callbacks[0].coordinator is not None
    assert callbacks[0].coordinator.state_dict()["steps"] == 3


class Faulty(torch.optim.SGD):
    """Raises an error in the middle of its third step, which control does not try out."""

    steps = -9  # of the copy

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.steps += 1
        if self.steps == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")  # an exception checkpoint is looked for
def test_exception_checkpoint_holds_the_optimizer_as_made(tmp_path: Path) -> None:
    class Failing(Module):
        def configure_optimizers(self) -> Any:
            self.optimizer = Faulty(self.parameters(), lr=0.1)
            return self.optimizer

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.optimizer.steps = 0

    trainer = lightning.Trainer(
        default_root_dir=tmp_path, max_steps=4, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=True,
        callbacks=[
            lightning.callbacks.OnExceptionCheckpoint(tmp_path, "broken"),
            CoMMITCallback(replace(CONFIG, method="language-lr-up")),
        ],
    )  # fmt: skip
    module = Failing()
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(module, loader())
    assert [group["lr"] for group in module.optimizer.param_groups] == [0.1]
    (saved,) = torch.load(tmp_path / "broken.ckpt", weights_only=False)["optimizer_states"]
    assert [group["lr"] for group in saved["param_groups"]] == [0.1]
