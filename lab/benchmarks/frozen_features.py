"""Time of a training whose tower is frozen, with kept features and without: `python lab/benchmarks/frozen_features.py`.

A random LLaVA whose tower has most of the step's work, as in small models of today, is trained for some epochs by
CoMMITTrainer. Both ways run in turn, each pair in a new folder; CPU time of this process. Losses and weights have to be
the same to the last bit.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, TrainingArguments

from commit_tuning.features.frozen import FrozenFeatures
from commit_tuning.integrations.transformers import CoMMITTrainer

PATCHES, VOCABULARY, WORDS = 64, 2000, 32


def main() -> None:
    """Print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = samples(arguments.samples)
    plain, kept, again = [], [], []
    for _ in range(arguments.pairs):
        with tempfile.TemporaryDirectory() as folder:
            first, seconds = trained(data, arguments.epochs, None)
            plain.append(seconds)
            for times in (kept, again):
                other, seconds = trained(data, arguments.epochs, folder)
                times.append(seconds)
                if not all(map(torch.equal, first, other)):
                    raise SystemExit("kept features change the training")
    for name, times in (("kept", kept), ("kept by an earlier run", again)):
        ratios = sorted(ours / theirs for ours, theirs in zip(times, plain, strict=True))
        told = {"features": name, "seconds": times, "plain": plain, "median": statistics.median(ratios)}
        print(json.dumps(told | {"range": [ratios[0], ratios[-1]], "epochs": arguments.epochs}))


def trained(data: list[dict[str, torch.Tensor]], epochs: int, folder: str | None) -> tuple[list[torch.Tensor], float]:
    """The weights after a training, and its CPU time."""
    model = build()
    with tempfile.TemporaryDirectory() as output:
        settings = TrainingArguments(
            output, per_device_train_batch_size=8, num_train_epochs=epochs, learning_rate=1e-3, use_cpu=True,
            report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        trainer = CoMMITTrainer(model=model, args=settings, train_dataset=data)
        started = time.process_time()
        with nullcontext() if folder is None else FrozenFeatures(model, folder):
            trainer.train()
        return list(model.state_dict().values()), time.process_time() - started


def build() -> LlavaForConditionalGeneration:
    """A LLaVA whose tower has five times the parameters of its language model's blocks."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=8,
        num_attention_heads=5,
        image_size=112,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=PATCHES)
    )
    model.get_encoder("image").requires_grad_(False)
    return model


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    """Random pictures and words, of which the last eight are the answer."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(4, VOCABULARY, (PATCHES + WORDS,), generator=generator)
        ids[:PATCHES] = 3
        labels = ids.clone()
        labels[:-8] = -100
        pixels = torch.randn(3, 112, 112, generator=generator)
        made.append(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
        )
    return made


if __name__ == "__main__":
    main()
