"""Batches for vision-language models, made with the model's own processor.

This module is the one place that knows the prompt: :func:`question_text` and :func:`build_prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from commit_tuning.data.sample import Sample
from commit_tuning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
_CUE = "Answer:"


def question_text(sample: Sample) -> str:
    """The words of a question: ``What is shown? Options: heart, star. Answer:``."""
    options = f" Options: {', '.join(sample.choices)}." if sample.choices else ""
    return f"{sample.question}{options} {_CUE}"


def build_prompt(processor: Any, sample: Sample) -> str:
    """The text that goes to the processor, with the image placeholder where the processor wants one.

    A processor with a chat template gets one user turn; without, the plain words. LLaVA's processor expands an image
    token in the text; BLIP-2's puts its query tokens in front by itself.
    """
    text = question_text(sample)
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    if hasattr(processor, "num_query_tokens"):
        return text
    return f"{processor.image_token}\n{text}"


class VisionCollator:
    """Turns samples into a model's batch.

    Prompt and answer are tokenised apart and joined, so a training row is exactly the prompt of generation plus the
    answer and the end-of-sequence token.

    Args:
        processor: A transformers processor of one image per text (such as LlavaProcessor or Blip2Processor).
        device: Where the tensors go; None leaves them on the CPU.

    Raises:
        UserError: The processor has no tokenizer, image processor or end-of-sequence token.
    """

    def __init__(self, processor: Any, device: torch.device | str | None = None) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or getattr(processor, "image_processor", None) is None:
            raise UserError(f"{type(processor).__name__} is no vision-language processor: load one with AutoProcessor")
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token")
        self.processor = processor
        self.device = device
        self._eos: int = tokenizer.eos_token_id
        self._pad: int = self._eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._answers: dict[str, list[int]] = {}
        self._cue: list[int] = tokenizer(_CUE, add_special_tokens=False)["input_ids"]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Training batch, padded on the right.

        Args:
            samples: B questions.

        Returns:
            input_ids, attention_mask, labels: int64 (B, L), labels are -100 on prompt and padding; pixel_values:
            float (B, 3, H, W).
        """
        prompts, pixels = self.encode(samples)
        return self.training_batch(prompts, [self.answer_ids(sample.answer) for sample in samples], pixels)

    def prompts(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Batch for generation: the prompts alone, padded on the left.

        Args:
            samples: B questions.

        Returns:
            input_ids, attention_mask: int64 (B, L); pixel_values: float (B, 3, H, W).
        """
        return self.prompt_batch(*self.encode(samples))

    def training_batch(
        self, prompts: list[list[int]], answers: list[list[int]], images: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What `__call__` returns, from encoded samples."""
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        labels = [[IGNORED] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
        batch = {
            "input_ids": _pad(rows, self._pad),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0),
            "labels": _pad(labels, IGNORED),
        }
        return self._place(batch | images)

    def prompt_batch(self, prompts: list[list[int]], images: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `prompts` returns, from encoded samples."""
        batch = {
            "input_ids": _pad(prompts, self._pad, left=True),
            "attention_mask": _pad([[1] * len(row) for row in prompts], 0, left=True),
        }
        return self._place(batch | images)

    def encode(self, samples: Sequence[Sample]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids of the prompts, not padded, and the tensors of the images."""
        if not samples:
            raise UserError("a batch needs at least one sample")
        texts = [build_prompt(self.processor, sample) for sample in samples]
        encoded = self.processor(images=[sample.image for sample in samples], text=texts)
        prompts = [list(row[:-1] if row[-1] == self._eos and len(row) > 1 else row) for row in encoded["input_ids"]]
        images = {name: _stack(value) for name, value in encoded.items() if name not in {"input_ids", "attention_mask"}}
        return prompts, images

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer as it is written after the cue, and the end of the sequence."""
        if answer not in self._answers:
            ids = self.processor.tokenizer(f"{_CUE} {answer}", add_special_tokens=False)["input_ids"]
            if ids[: len(self._cue)] != self._cue or len(ids) == len(self._cue):
                raise UserError(f"the tokenizer cannot write the answer {answer!r} after {_CUE!r}")
            self._answers[answer] = [*ids[len(self._cue) :], self._eos]
        return self._answers[answer]

    def _place(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch if self.device is None else {name: value.to(self.device) for name, value in batch.items()}


def _stack(values: Any) -> Tensor:
    """Stack one array or tensor per image."""
    return values if isinstance(values, torch.Tensor) else torch.stack([torch.as_tensor(value) for value in values])


def _pad(rows: list[list[int]], value: int, *, left: bool = False) -> Tensor:
    """Rows of unequal length as one int64 tensor (B, longest)."""
    longest = max(map(len, rows))
    gaps = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])
