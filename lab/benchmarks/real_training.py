"""What CoMMIT does to a model of real pretrained parts: `python lab/benchmarks/real_training.py --modality image ...`.

The models and data of `pretrained_parts.py` in `CoMMITTrainer`; some items are held out. Arms are those of `arms.py`,
such as `default:1e-4` or `default:1e-4:controller.bound=1000`. Writes one JSON record per arm and seed (all
that the trainer logged, the held-out loss) and prints a Markdown table.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from arms import Arm
from pretrained_parts import PictureCaptioner, SoundCaptioner, read_items
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from commit_tuning.integrations.transformers import CoMMITTrainer

MEDIA = {"image": "image", "audio": "sound"}


class Items(Dataset):
    """Items as they are; the collator encodes them."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def main() -> None:
    """Train every arm, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--modality", choices=list(MEDIA), required=True)
    parser.add_argument("--encoder", required=True, help="DINOv2-small or Whisper-base: a folder or a hub name")
    parser.add_argument("--language", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--held-out", type=int, default=64, help="items, at most an eighth of all")
    parser.add_argument("--side", type=int, default=112, help="of the pictures, in pixels")
    parser.add_argument("--seconds", type=int, default=4, help="of the sounds")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            path = arguments.output / f"{arguments.modality}_{arm.replace(':', '_')}_seed-{seed}.json"
            record = json.loads(path.read_text("utf-8")) if path.is_file() else train(arm, seed, arguments)
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(row(record), flush=True)


def train(arm: str, seed: int, arguments: argparse.Namespace) -> dict:
    """Train one run."""
    parsed = Arm.parse(arm, arguments.steps)
    set_seed(seed)
    if arguments.modality == "image":
        captioner = PictureCaptioner(arguments.encoder, arguments.language, arguments.side)
    else:
        captioner = SoundCaptioner(arguments.encoder, arguments.language, arguments.seconds)
    items = read_items(arguments.data, MEDIA[arguments.modality])
    held_out = min(len(items) // 8, arguments.held_out)
    options = {
        "output_dir": str(arguments.output / "trainer"), "max_steps": arguments.steps, "learning_rate": parsed.rate,
        "per_device_train_batch_size": arguments.batch, "per_device_eval_batch_size": arguments.batch, "seed": seed,
        "lr_scheduler_type": "constant", "logging_steps": 5, "logging_first_step": True, "save_strategy": "no",
        "report_to": "none", "remove_unused_columns": False, "disable_tqdm": True, "eval_strategy": "steps",
        "eval_steps": max(arguments.steps // 2, 1), "use_cpu": not torch.cuda.is_available(),
        "label_names": ["labels"], "prediction_loss_only": True,
    }  # fmt: skip
    trainer = CoMMITTrainer(
        model=captioner.model, args=TrainingArguments(**options), data_collator=captioner, commit=parsed.config,
        train_dataset=Items(items[held_out:]), eval_dataset=Items(items[:held_out]),
    )  # fmt: skip
    start = time.monotonic()
    trainer.train()
    return {
        "arm": arm, "seed": seed, "modality": arguments.modality, "steps": arguments.steps, "batch": arguments.batch,
        "items": len(items), "held_out": held_out, "seconds": round(time.monotonic() - start, 1),
        "torch": torch.__version__, "log": trainer.state.log_history,
    }  # fmt: skip


def row(record: dict) -> str:
    """Write a line of the table: held-out loss in nats per token, and where the training ended."""
    losses = [entry["eval_loss"] for entry in record["log"] if "eval_loss" in entry]
    last = [entry for entry in record["log"] if "kappa" in entry][-1]
    rates = " | ".join(f"{value:.1e}" for key, value in last.items() if key.startswith("lr/"))
    cells = (record["arm"], record["seed"], " ".join(f"{loss:.3f}" for loss in losses), f"{last['smoothed_kappa']:.3g}")
    return "| " + " | ".join(map(str, cells)) + f" | {rates} | {record['seconds']:.0f} |"


if __name__ == "__main__":
    main()
