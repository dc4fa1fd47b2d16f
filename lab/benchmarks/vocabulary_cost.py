"""What a large vocabulary costs a measured step: `python lab/benchmarks/vocabulary_cost.py [--json FILE]`.

Processor time of one core, everything taken in turn; medians, with the least and the most. Three tables:

- KL of 64 rows of logits in nanoseconds a logit, as it is and in the form that came before it (two log-softmaxes over
  2^24 logits at once). The time is linear in the vocabulary where this is constant.
- How far both are from the exact number, at the worst row.
- A measured step of a LLaVA of random weights in plain steps (forward, backward, AdamW), its extra alone: as it is, and
  with what came before it. Every measurement before looked at the rounding of the logits, too. The embeddings and the
  head are frozen, as under LoRA; `--full` trains them, which makes plain steps longer.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import Probe
from commit_tuning.measure import divergence, probe
from commit_tuning.measure.displacement import Displacement
from commit_tuning.measure.divergence import token_kl

VOCABULARIES = (32 * 1024, 128 * 1024, 256 * 1024)
ROWS, STEPS = 64, (1e-4, 1e-2, 0.3)
SAMPLES, TEXT, ANSWER, PATCHES, WIDTH, PLACEHOLDER = 8, 16, 8, 16, 128, 3
Figures = list[float]


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--full", action="store_true", help="train embeddings and head, too")
    parser.add_argument("--json", type=Path, help="where all figures go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"kl": {}, "error": {}, "step": {}}
    print("| vocabulary | step of the logits | ns a logit | before | ratio | worst error | before |\n|" + " --- |" * 7)
    for size in given.vocabularies:
        for step in STEPS:
            logits = some_logits(size, step)
            times, errors = kl_times(*logits, given.rounds), kl_errors(*logits)
            found["kl"][f"{size}, {step:g}"], found["error"][f"{size}, {step:g}"] = times, errors
            ratio = [a / b for a, b in zip(times["now"], times["before"], strict=True)]
            cells = [shown(times["now"]), shown(times["before"]), shown(ratio, 3)]
            cells += [f"{errors[name]:.0e}" for name in ("now", "before")]
            print(f"| {size} | {step:g} | " + " | ".join(cells) + " |", flush=True)
    print("\n| vocabulary | plain step, ms | extra of a measured step, plain steps | before |\n|" + " --- |" * 4)
    for size in given.vocabularies:
        seconds = found["step"][str(size)] = step_times(size, given.rounds, given.full)
        extra = {name: [t / p - 1 for t, p in zip(seconds[name], seconds["plain"], strict=True)] for name in seconds}
        plain = [1e3 * value for value in seconds["plain"]]
        print(f"| {size} | {shown(plain, 0)} | {shown(extra['now'])} | {shown(extra['before'])} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps({**vars(given), "json": None, **found}, indent=1) + "\n")


def shown(values: Figures, digits: int = 2) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Figures]:
    """Processor seconds of each in every round; the first of them is left out."""
    seconds: dict[str, Figures] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            started = time.process_time()
            function()
            seconds[name].append(time.process_time() - started)
    return {name: values[1:] for name, values in seconds.items()}


def kl_before(old: Tensor, new: Tensor) -> Tensor:
    """Two log-softmaxes over 2^24 logits at once."""
    rows = max(1, (1 << 24) // old.shape[-1])
    return torch.cat([_rows_before(*part) for part in zip(old.split(rows), new.split(rows), strict=True)])


def _rows_before(old: Tensor, new: Tensor) -> Tensor:
    log_p, log_q = old.log_softmax(-1), new.log_softmax(-1)
    p = log_p.exp()
    delta = (log_q - log_p).masked_fill(p == 0, 0)
    series = p * delta**2 * (1 / 2 + delta * (1 / 6 + delta * (1 / 24 + delta / 120)))
    return torch.where((delta.abs() < 0.02) & (p > 0), series, log_q.exp() - p - p * delta).sum(-1)


def some_logits(vocabulary: int, step: float) -> tuple[Tensor, Tensor]:
    """Normal ones of spread 3, and those moved by normal numbers."""
    generator = torch.Generator().manual_seed(0)
    old = 3 * torch.randn(ROWS, vocabulary, generator=generator)
    return old, old + step * torch.randn(ROWS, vocabulary, generator=generator)


def kl_times(old: Tensor, new: Tensor, rounds: int) -> dict[str, Figures]:
    """Nanoseconds a logit."""
    seconds = in_turn({"now": lambda: token_kl(old, new), "before": lambda: kl_before(old, new)}, rounds)
    return {name: [1e9 * value / old.numel() for value in values] for name, values in seconds.items()}


def kl_errors(old: Tensor, new: Tensor) -> dict[str, float]:
    """Relative errors at the worst of the first eight rows, against float64."""
    old, new = old[:8], new[:8]
    exact = token_kl(old.double(), new.double())
    found = {"now": token_kl(old, new), "before": kl_before(old, new)}
    return {name: float(((kl - exact) / exact).abs().max()) for name, kl in found.items()}


def step_times(vocabulary: int, rounds: int, full: bool) -> dict[str, Figures]:
    """Processor seconds of plain steps and of measured ones."""
    measuring = CoMMITConfig(method="constant", probe=Probe(interval=1))
    plain, now, before = (trainer(vocabulary, config, full) for config in (None, measuring, measuring))

    def step_before() -> None:
        with as_before():
            before()

    return in_turn({"plain": plain, "now": now, "before": step_before}, rounds)


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Measure with large chunks, two log-softmaxes, and a look at the rounding each time."""
    with (
        mock.patch.object(probe, "token_kl", kl_before),
        mock.patch.object(divergence, "_CPU_CHUNK", 1 << 24),
        mock.patch.object(Displacement, "looks_at_floor", return_value=True),
    ):
        yield


def trainer(vocabulary: int, config: CoMMITConfig | None, full: bool) -> Callable[[], None]:
    """A function that trains for a step, always on the same batch."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH // 2, intermediate_size=2 * WIDTH, num_hidden_layers=4, num_attention_heads=2, image_size=56,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    sizes = LlavaConfig(vision_config=vision, text_config=text, image_token_index=PLACEHOLDER, image_seq_length=PATCHES)
    model = LlavaForConditionalGeneration(sizes)
    if not full:
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    partition = partition_model(model)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-4))
    coordinator = Coordinator(model, optimizer, config, partition) if config else None
    ids = torch.randint(PLACEHOLDER + 1, vocabulary, (SAMPLES, PATCHES + TEXT))
    ids[:, :PATCHES] = PLACEHOLDER
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    batch["pixel_values"] = torch.randn(SAMPLES, 3, 56, 56)

    def step() -> None:
        model(**batch).loss.backward()
        if coordinator:
            coordinator.step(batch)
        else:
            optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
