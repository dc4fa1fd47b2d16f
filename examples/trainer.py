"""transformers' Trainer. Two lines make it CoMMIT: the import of the trainer and its name.

pip install '.[train]' ./lab
python examples/trainer.py --steps 20 --output runs/trainer
"""

import argparse

import torch
from transformers import TrainingArguments

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_questions import word_samples
from commit_tuning.data.collate import VisionCollator
from commit_tuning.integrations.transformers import CoMMITTrainer  # instead of: from transformers import Trainer


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/trainer")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    model, processor = load_nano("nano-llava-v2")  # or any vision-language model of transformers
    trainer = CoMMITTrainer(  # instead of: Trainer(
        model=model,
        train_dataset=word_samples(8 * arguments.steps),
        data_collator=VisionCollator(processor),
        learning_rates={"projector_lr": 2e-3},  # optional: other base rates than learning_rate, as in other trainers
        args=TrainingArguments(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            logging_steps=5,
            bf16=torch.cuda.is_available(),
            remove_unused_columns=False,
            report_to="none",
        ),
    )
    trainer.train()


if __name__ == "__main__":
    main()
