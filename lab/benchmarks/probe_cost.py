"""What measuring and coordinating cost per optimizer step: `python lab/benchmarks/probe_cost.py [--model MODEL]`.

Times whole training steps (forward, backward, optimizer, coordinator) on nano IconQA, settings taken in turn so that a
slow moment of the machine hits all of them, and prints the median over rounds as a ratio to plain training.
"""

import argparse
import statistics
import time

import torch

from commit_lab.nano.pictures.nano_iconqa import default_nano_iconqa_root
from commit_tuning import Coordinator, partition_model
from commit_tuning.config import CoMMITConfig, DriftPenalty, Lookahead, PreviousStep, Probe
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.train.model_setup import build_model
from commit_tuning.train.recipe.load import load_recipe

SETTINGS = {
    "plain training": None,
    "measuring, default (8 samples every 5 steps)": CoMMITConfig(method="constant"),
    "commit-clr, default": CoMMITConfig(),
    "commit, default (lookahead on 8 samples)": CoMMITConfig(method="commit"),
    "commit, default, on sampled answers": CoMMITConfig(method="commit", regularizer=Lookahead(labels="sampled")),
    "commit-clr, drift penalty on 8 samples": CoMMITConfig(regularizer=DriftPenalty()),
    "measuring every sample at every step": CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None)),
    "commit, the paper to the letter (lookahead)": CoMMITConfig.paper(),
    "commit, previous-step": CoMMITConfig.paper(regularizer=PreviousStep()),
}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano-llava-v2", choices=["nano-llava-v2", "nano-blip2-v2"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per round, a multiple of 5")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainers = {name: make_trainer(arguments.model, config) for name, config in SETTINGS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(arguments.rounds):
        for name, run in trainers.items():
            started = time.perf_counter()
            run(arguments.steps)
            seconds[name].append((time.perf_counter() - started) / arguments.steps)
    plain = seconds["plain training"]
    print("| setting | ms per step | ratio to plain training, median (min, max over rounds) |\n| --- | --- | --- |")
    for name, values in seconds.items():
        ratios = sorted(v / p for v, p in zip(values, plain, strict=True))
        middle = statistics.median(ratios)
        print(f"| {name} | {1e3 * statistics.median(values):.1f} | {middle:.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f}) |")


def make_trainer(model_name: str, config: CoMMITConfig | None):
    """Make a function that trains for some steps on one batch of 16 questions."""
    recipe = load_recipe(f"iconqa-{model_name}")
    model, processor = build_model(recipe.model, "cpu")
    samples = IconQA(default_nano_iconqa_root(), "train", limit=16)
    batch = VisionCollator(processor)([samples[i] for i in range(len(samples))])
    partition = partition_model(model)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-4))
    coordinator = Coordinator(model, optimizer, config, partition) if config else None
    model.train()

    def run(steps: int) -> None:
        for _ in range(steps):
            model(**batch).loss.backward()
            if coordinator:
                coordinator.step(batch)
            else:
                optimizer.step()
            optimizer.zero_grad()

    return run


if __name__ == "__main__":
    main()
