"""SALMONN: a language model that hears speech through Whisper and every other sound through BEATs.

Tang et al., "SALMONN: Towards Generic Hearing Abilities for Large Language Models", ICLR 2024 (arXiv 2310.13289). The
architecture is the paper's and that of the official code (bytedance/SALMONN); what transformers has is taken from it.
Importing this package registers the classes with transformers' auto classes.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from commit_tuning.models.salmonn.assemble import assemble
from commit_tuning.models.salmonn.beats import BeatsModel
from commit_tuning.models.salmonn.configuration import BeatsConfig, SalmonnConfig
from commit_tuning.models.salmonn.convert import LoadReport, load_beats, load_trained
from commit_tuning.models.salmonn.modeling import SalmonnForConditionalGeneration, SalmonnModel
from commit_tuning.models.salmonn.processing import SalmonnFeatureExtractor, SalmonnProcessor

__all__ = [
    "BeatsConfig",
    "BeatsModel",
    "LoadReport",
    "SalmonnConfig",
    "SalmonnFeatureExtractor",
    "SalmonnForConditionalGeneration",
    "SalmonnModel",
    "SalmonnProcessor",
    "assemble",
    "load_beats",
    "load_trained",
]

AutoConfig.register("beats", BeatsConfig, exist_ok=True)
AutoConfig.register("salmonn", SalmonnConfig, exist_ok=True)
AutoModel.register(BeatsConfig, BeatsModel, exist_ok=True)
AutoModel.register(SalmonnConfig, SalmonnModel, exist_ok=True)
AutoModelForImageTextToText.register(SalmonnConfig, SalmonnForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(SalmonnConfig, SalmonnForConditionalGeneration, exist_ok=True)
AutoFeatureExtractor.register(SalmonnConfig, SalmonnFeatureExtractor, exist_ok=True)
AutoProcessor.register(SalmonnConfig, SalmonnProcessor, exist_ok=True)
