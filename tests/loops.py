"""The same training in every trainer; a new one joins by one line in `LOOPS`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from added_method import ADDED
from small_experiment import llava_processor
from tiny import build, make_batch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from commit_tuning import CoMMITConfig, Coordinator, ModulePartition, partition_model
from commit_tuning.config import Probe

EPOCHS, STEPS, SIZE, RATE = 2, 8, 6, 3e-3  # both halves of a batch have answers of the same lengths
CONFIG = CoMMITConfig(probe=Probe(interval=1), lr_update_interval=2)
METHODS: list[dict[str, Any]] = [
    {"method": "commit-clr", "controller": "compensated"},
    {"method": "commit", "regularizer": "lookahead"},
    {"method": "commit", "regularizer": "previous-step"},
    {
        "method": "commit",
        "regularizer": {"name": "previous-step", "step": "optimizer", "weight": 100.0},
    },
    {"method": "commit", "regularizer": {"name": "lookahead", "labels": "sampled"}},
    {"method": "feature-cd", "switch": {"window": 2}},
    {"method": ADDED},
]
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What to train, and from where on.

    Attributes:
        folder: For checkpoints.
        config: Settings of CoMMIT.
        kind: Of the model.
        dropout: In the attention of language model and encoder.
        accumulation: Micro-batches in a batch of `SIZE` samples.
        shuffled: Whether the order of samples is random; in a trainer with a sampler, that sampler's.
        saves: Whether to leave a checkpoint after every step.
        start: The step after whose checkpoint to go on; 0 begins.
        autocast: Whether to train in bfloat16.
        adapters: Whether the language model is trained through them, and the encoder in full.
        ranks: Processes among which a batch is shared out.
        dtype: Of weights and pixels; float64 where sums are taken in another order, which float32 would make visible.
    """

    folder: Path
    config: CoMMITConfig = CONFIG
    kind: str = "llava"
    dropout: float = 0.0
    accumulation: int = 1
    shuffled: bool = False
    saves: bool = False
    start: int = 0
    autocast: bool = False
    adapters: bool = False
    ranks: int = 1
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        """Samples in a micro-batch of one process."""
        return SIZE // self.accumulation // self.ranks

    def build(self) -> tuple[nn.Module, ModulePartition]:
        """The model and its partition."""
        model, partition = build(self.kind, self.dtype)
        for module in model.modules():
            for name in {"attention_dropout", "dropout"} & vars(module).keys():  # of Llama's attention, of CLIP's
                setattr(module, name, self.dropout)
        if self.adapters:
            model = adapted(model, modules_to_save=["vision_tower", "multi_modal_projector"])
            partition = partition_model(model)
        return model, partition

    def samples(self) -> list[Sample]:
        """Those of one epoch."""
        batches = [make_batch(self.kind, SIZE, self.dtype, seed=step) for step in range(STEPS // EPOCHS)]
        return [{key: value[row] for key, value in batch.items()} for batch in batches for row in range(SIZE)]

    def loader(self, make: Any = DataLoader) -> Any:
        """All epochs in one pass, for a loop of one's own."""
        order, samples = random.Random(0), self.samples()
        epochs = [order.sample(samples, len(samples)) if self.shuffled else samples for _ in range(EPOCHS)]
        own = torch.Generator()  # or it would draw a seed from the global one when it begins, in a resumed run too
        return make([*itertools.chain(*epochs)], self.size, collate_fn=collate, generator=own)

    def checkpoint(self, step: int) -> Path:
        """Where a loop of one's own keeps what a resume needs."""
        return self.folder / f"step={step}.ckpt"


@dataclass(frozen=True)
class Run:
    """What a training has left."""

    model: nn.Module
    optimizer: Any
    coordinator: Coordinator

    def values(self) -> list[Tensor]:
        """Of the parameters."""
        return values(self.model)

    def exact(self) -> dict[str, str]:
        """All of it to the last bit, as text: what is equal there is equal, NaN included."""
        parts = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "coordinator": self.coordinator.state_dict(),
            "summary": self.coordinator.summary(),
            "random states": [torch.get_rng_state(), random.getstate()],
        }
        return {
            name: repr(tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, Tensor) else leaf, part))
            for name, part in parts.items()
        }


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def adapted(model: nn.Module, **settings: Any) -> nn.Module:
    """Adapters on a LLaVA's language model, the encoder in full."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", **settings))
    for name, parameter in model.named_parameters():
        if "original_module" not in name and ("vision_tower" in name or "projector" in name):
            parameter.requires_grad = True
    return model


def collate(samples: list[Sample]) -> Sample:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def prepared(task: Task) -> tuple[nn.Module, Any, Any, ModulePartition]:
    """Model, optimizer, scheduler and partition."""
    model, partition = task.build()
    optimizer = torch.optim.AdamW(partition.param_groups(lr=RATE), weight_decay=0.0)
    last = STEPS * task.ranks  # Accelerate steps a scheduler once for every process
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / last), partition


def plain_loop(task: Task, clips_by_group: bool = False) -> Run:
    """What all others have to give. The order in which the gradient norm is summed up shows in its last bits."""
    model, optimizer, scheduler, partition = prepared(task)
    coordinator = Coordinator(model, optimizer, task.config, partition)
    parts = (model, optimizer, scheduler, coordinator)
    batches = itertools.islice(task.loader(), task.start * task.accumulation, None)
    if task.start:
        *states, random_state = torch.load(task.checkpoint(task.start))
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(random_state)
    for step in range(task.start + 1, STEPS + 1):
        micro_batches = [*itertools.islice(batches, task.accumulation)]
        with torch.autocast("cpu", torch.bfloat16, enabled=task.autocast):
            for batch in micro_batches:
                (model(**batch).loss / task.accumulation).backward()
        in_groups = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(in_groups if clips_by_group else model.parameters(), 1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=task.autocast):
            coordinator.step(micro_batches)
        scheduler.step()
        optimizer.zero_grad()
        if task.saves:
            torch.save([*(part.state_dict() for part in parts), torch.get_rng_state()], task.checkpoint(step))
    return Run(model, optimizer, coordinator)


def trainer_arguments(task: Task, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(task.folder), "per_device_train_batch_size": task.size,
        "gradient_accumulation_steps": task.accumulation, "num_train_epochs": EPOCHS, "learning_rate": RATE,
        "lr_scheduler_type": "linear", "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_steps": 1,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "optim": "adamw_torch", "bf16": task.autocast,
        "train_sampling_strategy": "random" if task.shuffled else "sequential", "remove_unused_columns": False,
        "save_strategy": "steps" if task.saves else "no", "save_steps": 1, **changes,
    }  # fmt: skip


def with_trainer(task: Task, **changes: Any) -> Any:
    from transformers import TrainingArguments

    from commit_tuning.integrations.transformers import CoMMITTrainer

    arguments = TrainingArguments(**trainer_arguments(task, **changes))
    datasets = {"train_dataset": task.samples(), "eval_dataset": task.samples()}
    return CoMMITTrainer(model=task.build()[0], args=arguments, data_collator=collate, commit=task.config, **datasets)


def trained(trainer: Any, task: Task) -> Run:
    trainer.train(resume_from_checkpoint=str(task.folder / f"checkpoint-{task.start}") if task.start else None)
    return Run(trainer.model, trainer.optimizer, trainer.coordinator)


def transformers_trainer(task: Task) -> Run:
    return trained(with_trainer(task), task)


def trl_trainer(task: Task) -> Run:
    from datasets import Dataset
    from trl import SFTConfig

    from commit_tuning.integrations.trl import CoMMITSFTTrainer

    samples = Dataset.from_list([{k: v.tolist() for k, v in sample.items()} for sample in task.samples()])
    arguments = SFTConfig(**trainer_arguments(task, dataset_kwargs={"skip_prepare_dataset": True}))
    trainer = CoMMITSFTTrainer(
        model=task.build()[0], args=arguments, train_dataset=samples.with_format("torch"), data_collator=collate,
        processing_class=llava_processor(), commit=task.config,
    )  # fmt: skip
    return trained(trainer, task)


def accelerate_loop(task: Task) -> Run:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=True, mixed_precision="bf16" if task.autocast else "no", gradient_accumulation_steps=task.accumulation,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )  # fmt: skip
    *parts, partition = prepared(task)
    model, optimizer, scheduler, loader = accelerator.prepare(*parts, task.loader())
    coordinator = Coordinator(model, optimizer, task.config, partition)
    accelerator.register_for_checkpointing(coordinator)
    if task.start:
        accelerator.load_state(str(task.checkpoint(task.start)))
        loader = accelerator.skip_first_batches(loader, task.start * task.accumulation)
    steps = itertools.count(task.start + 1)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            with accelerator.autocast():
                coordinator.step(batch)
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and task.saves:
            accelerator.save_state(str(task.checkpoint(next(steps))))
    return Run(accelerator.unwrap_model(model), optimizer, coordinator)


class ResumableLoader(DataLoader[Sample]):
    """Knows where it is, as torchdata's StatefulDataLoader does."""

    given = 0

    def __iter__(self) -> Iterator[Sample]:
        for batch in itertools.islice(super().__iter__(), self.given, None):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def lightning_trainer(task: Task) -> Run:
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    from commit_tuning.integrations.lightning import CoMMITCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer, self.scheduler, _ = prepared(task)

        def training_step(self, batch: Sample) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return [self.optimizer], [{"scheduler": self.scheduler, "interval": "step"}]

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # Lightning leaves random states to us
            checkpoint["random_state"] = torch.get_rng_state()

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            torch.set_rng_state(checkpoint["random_state"])

    module, callback = Module(), CoMMITCallback(task.config)
    saving = ModelCheckpoint(task.folder, "{step}", every_n_train_steps=1, save_top_k=-1 if task.saves else 0)
    trainer = lightning.Trainer(
        default_root_dir=task.folder, max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0, callbacks=[callback, saving],
        accumulate_grad_batches=task.accumulation,
    )  # fmt: skip
    trainer.fit(module, task.loader(ResumableLoader), ckpt_path=task.checkpoint(task.start) if task.start else None)
    assert callback.coordinator is not None
    return Run(module.model, module.optimizer, callback.coordinator)


LOOPS: dict[str, Callable[[Task], Run]] = {
    "plain loop": plain_loop,
    "transformers": transformers_trainer,
    "trl": trl_trainer,
    "accelerate": accelerate_loop,
    "lightning": lightning_trainer,
}
