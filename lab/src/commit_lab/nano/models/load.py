"""Nano models with their weights, or untrained.

All are plain transformers models in the structure of their large namesakes (LLaVA-1.5, Liu et al. 2023; BLIP-2,
Li et al. 2023; InternVL2, Chen et al. 2024), or commit-tuning's SALMONN (Tang et al. 2024), with real processors, so
whatever works with them works with the large ones. ``lab/pretraining/pretrain_nano.py`` made their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from commit_lab.nano.models.build import build_model, known
from commit_tuning.models.load import load_model, load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def load_nano(name: str, pretrained: bool = True) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a nano model in evaluation mode (float32, CPU) and its processor.

    Args:
        name: One of `NANO_MODELS`.
        pretrained: False gives untrained weights, the same every time.

    Raises:
        UserError: Unknown name.
    """
    if pretrained:
        return load_model(known(name))
    processor = load_processor(known(name))
    return build_model(name, len(processor.tokenizer)), processor
