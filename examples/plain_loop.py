"""A loop of your own in plain PyTorch, with gradient accumulation.

pip install '.[train]' ./lab
python examples/plain_loop.py --steps 20
"""

import argparse

import torch
from torch.utils.data import DataLoader

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_questions import word_samples
from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.data.collate import VisionCollator

ACCUMULATION = 2


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    model, processor = load_nano("nano-llava-v2")  # or any vision-language model of transformers
    partition = partition_model(model.train())
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3, weight_decay=0.01))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(), partition)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = DataLoader(word_samples(8 * steps), 8 // ACCUMULATION, collate_fn=VisionCollator(processor))
    micro_batches = []
    for batch in loader:
        (model(**batch).loss / ACCUMULATION).backward()
        micro_batches.append(batch)
        if len(micro_batches) == ACCUMULATION:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            coordinator.step(micro_batches)  # optimizer.step(), the measurement, the learning rates
            scheduler.step()
            optimizer.zero_grad()
            micro_batches = []
            print({name: f"{value:.3g}" for name, value in coordinator.summary().items()})


if __name__ == "__main__":
    main()
