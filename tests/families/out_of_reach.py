"""Families that are not measured: no gradient can reach their encoder, or none can be built here."""

from __future__ import annotations

from families.exceptions import Exceptions
from families.shrink import WIDTH

INDICES_OF_CODES = "turns images into the indices of codes"

EXCEPTIONS: dict[str, Exceptions] = {
    "Apertus1p5ForConditionalGeneration": Exceptions(
        changes={"image_token_offset": 80, "audio_token_offset": 96, "audio_config.codebook_dim": WIDTH},
        refusal=INDICES_OF_CODES,
    ),
    "ChameleonForConditionalGeneration": Exceptions(
        changes={"vocabulary_map": {"<image>": 1}}, refusal=INDICES_OF_CODES
    ),
    "Emu3ForConditionalGeneration": Exceptions(changes={"vocabulary_map": {"<image>": 1}}, refusal=INDICES_OF_CODES),
    "Gemma3nForConditionalGeneration": Exceptions(reason="its vision tower is a model of timm, which is not installed"),
    "GlmImageForConditionalGeneration": Exceptions(refusal=INDICES_OF_CODES),
}
