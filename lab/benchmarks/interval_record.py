"""Record what any probe could have seen of a training: `python lab/benchmarks/interval_record.py`.

A nano model is trained on nano IconQA with the default controller. At every step the drift of each module is taken on
every sample of the batch, at the base rate. `interval_replay.py` reads the records: it needs no training to tell what
another interval, number of samples, window or estimator would have done. A run of 400 steps takes some minutes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from commit_tuning import Coordinator, partition_model
from commit_tuning.measure.divergence import by_rows, token_kl
from commit_tuning.measure.forward import evaluation_mode, forward_pass
from commit_tuning.measure.probe import DriftProbe, _cross_entropy
from commit_tuning.train.dataset import ensure_data, open_splits
from commit_tuning.train.model_setup import build_model
from commit_tuning.train.optimizers import build_optimizer
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.training import accumulate_gradients, build_scheduler, clip_gradients, step_batches

FOLDER = Path(__file__).resolve().parents[1] / "results" / "interval-replay"
MODELS = ("nano-llava-v2", "nano-blip2-v2")
DIGITS = 5


def main() -> None:
    """Record every run that is asked for and not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--schedule", default="cosine", choices=["constant", "linear", "cosine"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for model in arguments.models:
        for seed in arguments.seeds:
            path = arguments.output / f"{model}-{arguments.schedule}-seed-{seed}.json"
            if not path.exists():
                about = {"model": model, "schedule": arguments.schedule, "seed": seed}
                rows = record(model, arguments.schedule, seed, arguments.steps)
                head, lines = json.dumps(about), ",\n".join(json.dumps(row) for row in rows)
                path.write_text(f'{{"about": {head},\n"steps": [\n{lines}\n]}}\n')


def record(model_name: str, schedule: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """Train, and look at every step.

    Returns:
        For each step: `loss`, `tokens` (target tokens), `rates` (module to its rate over the base rate), `losses` (of
        every sample) and `drifts` (module to the drift of every sample at the base rate).
    """
    settings = [f"model.name={model_name}", f"train.scheduler={schedule}", f"train.steps={steps}", f"train.seed={seed}"]
    recipe = load_recipe(f"iconqa-{model_name.removesuffix('-v2')}", [*settings, "data.in_memory=false"])
    torch.manual_seed(seed)
    model, _ = build_model(recipe.model, "cpu")
    partition = partition_model(model)
    optimizer = build_optimizer(partition, recipe.train)
    scheduler = build_scheduler(optimizer, recipe.train)
    coordinator = Coordinator(model, optimizer, recipe.commit_config(), partition)
    trained = [parameter for name in partition for parameter in partition[name]]
    questions = open_splits(ensure_data(recipe.data), recipe.data, model_name, "cpu")["train"]
    batches, rows = step_batches(questions, recipe.train), []
    model.train()
    for _ in range(steps):
        [batch] = next(batches)
        loss = accumulate_gradients(model, [batch])
        clip_gradients(trained, recipe.train.max_grad_norm)
        probe = DriftProbe(forward_pass(model), partition, [batch], shift=True)
        schedule_now = coordinator._groups.schedule()
        rates = {name: factor * schedule_now[name] for name, factor in coordinator.multipliers.items()}
        coordinator.step(batch)
        rows.append({"loss": rounded(loss), "tokens": int((batch["labels"] != -100).sum()), "rates": rounded(rates)})
        rows[-1] |= look(model, probe, rates)
        scheduler.step()
        optimizer.zero_grad()
    return rows


def look(model: torch.nn.Module, probe: DriftProbe, rates: dict[str, float]) -> dict[str, Any]:
    """Loss and drift of every sample."""
    [seen] = probe._seen
    samples = seen.positions.mask.nonzero()[:, 0]

    def by_sample(values: torch.Tensor) -> torch.Tensor:
        total = values.new_zeros(len(seen.positions.mask))
        return total.index_add_(0, samples, values / seen.positions.tokens)

    drifts = {}
    with torch.no_grad(), evaluation_mode(model):
        losses = by_sample(by_rows(_cross_entropy, seen.logits, seen.positions.targets))
        for name, rate in rates.items():
            with probe._only(name):
                drift = by_sample(token_kl(seen.logits, probe._moved_logits(seen, name)))
            drifts[name] = rounded((drift.double() / rate**2).tolist() if rate else [])
    return {"losses": rounded(losses.tolist()), "drifts": drifts}


def rounded(value: Any) -> Any:
    """Numbers to a few digits, wherever they are."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [*map(rounded, value)] if isinstance(value, list) else float(f"{value:.{DIGITS}g}")


if __name__ == "__main__":
    main()
