"""Lightning: one callback.

pip install '.[train,lightning]' ./lab
python examples/lightning_module.py --steps 20
"""

import argparse

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_questions import word_samples
from commit_tuning import partition_model
from commit_tuning.data.collate import VisionCollator
from commit_tuning.integrations.lightning import CoMMITCallback


class Finetuning(lightning.LightningModule):
    """A vision-language model and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        model, self.processor = load_nano("nano-llava-v2")  # or any vision-language model of transformers
        self.model = model.train()

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A parameter group for every module."""
        return torch.optim.AdamW(partition_model(self.model).param_groups(lr=1e-3, weight_decay=0.01))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    module = Finetuning()
    loader = DataLoader(word_samples(8 * steps), 8, collate_fn=VisionCollator(module.processor))
    trainer = lightning.Trainer(max_steps=steps, callbacks=[CoMMITCallback()], log_every_n_steps=5, logger=False)
    trainer.fit(module, loader)
    print({name: f"{float(value):.3g}" for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
