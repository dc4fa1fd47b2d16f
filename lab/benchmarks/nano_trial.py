"""A nano model in training, for the benchmarks that look at single optimizer steps."""

import torch

from commit_lab.nano.pictures.nano_iconqa import default_nano_iconqa_root
from commit_tuning import partition_model
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.readers.iconqa import IconQA
from commit_tuning.train.dataset import data_order
from commit_tuning.train.model_setup import build_model
from commit_tuning.train.recipe.load import load_recipe

BATCH = 16


class Trial:
    """The model of a nano recipe, its optimizer, and batches of nano IconQA in a fixed order.

    Args:
        model_name: nano-llava-v2 or nano-blip2-v2.
        seed: Of the LoRA weights and the order of the questions.
    """

    def __init__(self, model_name: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model, processor = build_model(load_recipe(f"iconqa-{model_name}").model, "cpu")
        questions, collate = IconQA(default_nano_iconqa_root(), "train", limit=100 * BATCH), VisionCollator(processor)
        order = data_order(len(questions), BATCH, seed)
        self._batches = [collate([questions[i] for i in next(order)]) for _ in range(100)]
        self._done = 0
        self.partition = partition_model(self.model)
        self.optimizer = torch.optim.AdamW(self.partition.param_groups(lr=1e-4))

    def backward(self, context=None) -> dict[str, torch.Tensor]:
        """Compute the gradients of the next batch, under a context such as autocast, and return the batch."""
        batch = self._batches[self._done % len(self._batches)]
        self._done += 1
        self.model.train()
        if context is None:
            loss = self.model(**batch).loss
        else:
            with context:
                loss = self.model(**batch).loss
        loss.backward()
        return batch

    def update(self, rate: float) -> None:
        """Take the optimizer's step at a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, rate: float, steps: int) -> None:
        """Train for some plain steps."""
        for _ in range(steps):
            self.backward()
            self.update(rate)
