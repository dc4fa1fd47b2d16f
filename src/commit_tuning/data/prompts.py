"""The prompts of published models, each with its source.

`plain` is this project's own and the default. The processor adds what surrounds a prompt (the roles of a chat, the
place of the picture), see :mod:`commit_tuning.data.collate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from commit_tuning.data.pictures import LETTERS
from commit_tuning.data.sample import CAPTION, CONVERSATION, Sample
from commit_tuning.errors import UserError
from commit_tuning.metrics.aokvqa import named_choice
from commit_tuning.plugins import load_plugins

DESCRIBE_SOUND = "Please describe the audio."
"""SALMONN's ``audiocaption`` (https://github.com/bytedance/SALMONN, prompts/test_prompt.json)."""

DESCRIBE_MUSIC = "Listen to this music clip and describe the music."
"""SALMONN's ``music_description`` (as above)."""


@dataclass(frozen=True)
class Prompt:
    """A way to ask.

    Attributes:
        free: Template of a question with a free answer; `{question}` stands for it.
        choice: Template of a question with choices, which stand at `{options}`.
        instruction: Template of an instruction: a caption or a conversation.
        between: What stands between two choices.
        lettered: Whether the choices are `A. heart`, and the answer is the letter.
        source: Where it was published.
    """

    free: str
    choice: str
    instruction: str
    between: str
    lettered: bool
    source: str

    def question(self, sample: Sample) -> str:
        """Return the words of a sample's question."""
        if sample.kind in {CAPTION, CONVERSATION}:
            return self.instruction.format(question=sample.question)
        if not sample.choices:
            return self.free.format(question=sample.question)
        letters = [f"{letter}. " if self.lettered else "" for letter in LETTERS]
        options = [letter + text for letter, text in zip(letters, sample.choices, strict=False)]
        return self.choice.format(question=sample.question, options=self.between.join(options))

    def answer(self, sample: Sample) -> str:
        """Return the trained words."""
        return LETTERS[sample.choices.index(sample.answer)] if self.lettered and sample.choices else sample.answer

    def meant(self, sample: Sample, said: str) -> str:
        """Return a model's answer; if a letter was asked for and names a choice, return that choice."""
        place = named_choice(said, sample.choices) if self.lettered and sample.choices else None
        return said if place is None or sample.choices is None else sample.choices[place]


PROMPTS = {
    "plain": Prompt(
        "{question} Answer:",
        "{question} Options: {options}. Answer:",
        "{question} Answer:",
        ", ",
        False,
        "this project",
    ),
    "llava-1.5": Prompt(
        "{question}\nAnswer the question using a single word or phrase.",
        "{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
        "{question}",
        "\n",
        True,
        "LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744), response format prompts",
    ),
    "instructblip": Prompt(
        "Question: {question} Short answer:",
        "Question: {question} Options: {options}. Short answer:",
        "{question}",
        ", ",
        False,
        "InstructBLIP (Dai et al. 2023, arXiv 2305.06500), appendix: instructions of evaluation",
    ),
    "salmonn": Prompt(
        "{question}",
        "{question} Options: {options}.",
        "{question}",
        ", ",
        False,
        "SALMONN (Tang et al. 2024, arXiv 2310.13289), prompts/test_prompt.json: the bare question",
    ),
}


def find_prompt(name: str) -> Prompt:
    """Find a prompt by its name.

    Raises:
        UserError: There is none.
    """
    load_plugins()
    if name not in PROMPTS:
        raise UserError(f"no prompt {name!r}: there are {', '.join(PROMPTS)}")
    return PROMPTS[name]
