"""Kappa of a LLaVA of real pretrained parts in float32 and in bfloat16: `python lab/benchmarks/precision_on_llava.py`.

A DINOv2-small tower, a fresh projector and SmolLM2-135M as a LLaVA (LoRA r = 8, Adam, learning rate 1e-4), tuned to
caption pictures. Every update is measured four times: in float32, and under bfloat16 autocast as the step left it, as
the probe takes it by itself, and without forward mode. Prints a Markdown table.

The parts are folders as `save_pretrained` writes them (or hub names, e.g. facebook/dinov2-small and
HuggingFaceTB/SmolLM2-135M-Instruct); the pictures a folder with `manifest.jsonl` (one object a line: image, caption).
"""

import argparse
import math
import statistics
import unittest.mock
from pathlib import Path

import torch
from pretrained_parts import PictureCaptioner, read_items
from tqdm import tqdm

from commit_tuning import partition_model
from commit_tuning.measure.balance import balance_coefficient
from commit_tuning.measure.batches import take_samples
from commit_tuning.measure.displacement import Displacement
from commit_tuning.measure.forward import forward_pass
from commit_tuning.measure.probe import DriftProbe

WAYS = {"step": "one step", "auto": "auto", "displaced": "without forward mode"}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", default="facebook/dinov2-small")
    parser.add_argument("--language", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--interval", type=int, default=3, help="steps between two measurements")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--probed", type=int, default=4, help="samples measured")
    parser.add_argument("--side", type=int, default=112, help="of the pictures, in pixels")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    captioner = PictureCaptioner(arguments.vision, arguments.language, arguments.side)
    model, items = captioner.model.to(arguments.device), read_items(arguments.pictures, "image")
    partition = partition_model(model)
    optimizer = torch.optim.Adam(partition.param_groups(lr=arguments.rate))
    displacements = {"float32": Displacement(1.0), "step": Displacement(1.0)}
    displacements |= {"auto": Displacement("auto"), "displaced": Displacement("auto")}
    rows = []
    for step in tqdm(range(arguments.steps)):
        chosen = [items[(step * arguments.batch + i) % len(items)] for i in range(arguments.batch)]
        batch = {name: value.to(arguments.device) for name, value in captioner(chosen).items()}
        model.train()(**batch).loss.backward()
        probes = probes_of(model, partition, batch, arguments) if step % arguments.interval == 0 else {}
        optimizer.step()
        optimizer.zero_grad()
        if probes:
            rows.append(
                (step, {way: measure(probes, way, displacements[way], arguments.device) for way in displacements})
            )
    report(rows)


def probes_of(model, partition, batch, arguments) -> dict[str, DriftProbe]:
    """Make one probe in float32 and one under autocast, for the same update."""
    samples = take_samples([batch], arguments.probed)
    exact = DriftProbe(forward_pass(model), partition, samples, shift=True)
    with torch.autocast(arguments.device, torch.bfloat16, cache_enabled=False):
        return {"float32": exact, "bfloat16": DriftProbe(forward_pass(model), partition, samples, shift=True)}


def measure(probes: dict[str, DriftProbe], way: str, displacement: Displacement, device: str) -> dict[str, float]:
    """Measure the drift of the last update in one way."""
    if way == "float32":
        return probes["float32"].measure(displacement).drift
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        if way == "displaced":
            with unittest.mock.patch.object(probes["bfloat16"], "limit", return_value=None):
                return probes["bfloat16"].measure(displacement).drift
        return probes["bfloat16"].measure(displacement).drift


def report(rows: list) -> None:
    """Print the table, and the median relative error of kappa."""
    print(
        "| step | d_X float32 | d_S float32 | kappa float32 | " + " | ".join(f"{w}, bf16" for w in WAYS.values()) + " |"
    )
    print("| --- | --- | --- | --- |" + " --- |" * len(WAYS))
    errors = {way: [] for way in WAYS}
    for step, drifts in rows:
        kappas = {way: balance_coefficient(drift["language_model"], drift["vision"]) for way, drift in drifts.items()}
        exact = drifts["float32"]
        cells = [f"{exact['language_model']:.1e}", f"{exact['vision']:.1e}", f"{kappas['float32']:.3g}"]
        print(f"| {step} | " + " | ".join([*cells, *(f"{kappas[way]:.3g}" for way in WAYS)]) + " |")
        for way in WAYS:
            errors[way].append(abs(kappas[way] / kappas["float32"] - 1))
    for way, label in WAYS.items():
        known = [error for error in errors[way] if not math.isnan(error)]
        print(
            f"\n{label}: median relative error {100 * statistics.median(known):.1f} %, worst {100 * max(known):.0f} %, "
            f"{len(errors[way]) - len(known)} of {len(errors[way])} refused"
        )


if __name__ == "__main__":
    main()
