"""An Accelerate loop: mixed precision, several processes, gradient accumulation.

pip install '.[train,accelerate]' ./lab
accelerate launch examples/accelerate_loop.py --steps 20
"""

import argparse

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch.utils.data import DataLoader

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_questions import word_samples
from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.data.collate import VisionCollator


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # LLaVA takes features before the last layer
    accelerator = Accelerator(gradient_accumulation_steps=2, kwargs_handlers=[unused])
    model, processor = load_nano("nano-llava-v2")  # or any vision-language model of transformers
    optimizer = torch.optim.AdamW(partition_model(model.train()).param_groups(lr=1e-3, weight_decay=0.01))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * accelerator.num_processes)
    loader = DataLoader(word_samples(8 * steps * accelerator.num_processes), 4, collate_fn=VisionCollator(processor))
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
    coordinator = Coordinator(model, optimizer, CoMMITConfig())
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            with accelerator.autocast():  # so that the measurement rounds as the training does
                coordinator.step(batch)  # for optimizer.step()
            accelerator.print({name: f"{value:.3g}" for name, value in coordinator.summary().items()})
            scheduler.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()
