"""Every multimodal family of transformers, tiny and random, held to one contract.

A new family joins by itself. `make test-all` runs all of them, `pytest -m wide -k NAME` one of the rest.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from families.catalogue import EXCEPTIONS, OTHERS, families
from families.contract import check
from packaging.version import Version

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
IN_EVERY_RUN = (  # one of each kind: projector, Q-Former, grid of patches, tiles, sounds, cross-attention, refusal
    "Blip2ForConditionalGeneration",
    "Blip2ForConditionalGeneration (T5)",
    "ChameleonForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "GraniteSpeechForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "InstructBlipForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "MllamaForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5OmniThinkerForConditionalGeneration",
)


def _marked(name: str) -> object:
    return pytest.param(name, id=name, marks=() if name in IN_EVERY_RUN else pytest.mark.wide)


@pytest.mark.parametrize("name", [_marked(name) for name in families()])
def test_a_family_keeps_the_contract(name: str) -> None:
    outcome = check(name)
    if outcome.reason:
        pytest.skip(outcome.reason)


NAMED, (OF_PAGE,) = (
    re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for pattern in (r"^\| `(.+?)` \|", r"of transformers (\d\S*) is held")
)
lacks_families = pytest.mark.skipif(
    Version(transformers.__version__) < Version(OF_PAGE), reason=f"transformers lacks families of {OF_PAGE}"
)


@lacks_families
def test_what_is_named_here_is_a_family() -> None:
    assert {*IN_EVERY_RUN, *EXCEPTIONS, *OTHERS} <= {*families()}


@lacks_families
def test_the_page_of_families_is_up_to_date() -> None:
    assert sorted(NAMED) == sorted(families()), "run: python scripts/model_families.py"
