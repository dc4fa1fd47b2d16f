"""Conversion of a dataset's text to tokens: a spelt special token, such as ``<image>`` or ``</s>``, stays text."""

from __future__ import annotations

import re
from typing import Any

from commit_tuning.data.files import FaultError


class PlainTokens:
    """Tokenises text that people wrote, with a processor's tokenizer.

    A tokenizer takes the spelling of its special tokens for the tokens themselves: for a picture that is not there, or
    for the end of an answer. Answers are tokenised apart, so they are split as any text. A question goes through the
    processor, which also expands the placeholder of the real picture, so each spelling gets a space after its first
    letter: ``< image>``.

    Args:
        processor: A transformers processor with a tokenizer.
    """

    def __init__(self, processor: Any) -> None:
        self._tokenizer = processor.tokenizer
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        placeholders = [value for name, value in vars(processor).items() if name.endswith("_token")]
        named = [*self._tokenizer.all_special_tokens, *placeholders, *(str(token) for token in added if token.special)]
        spelt = sorted({text for text in named if isinstance(text, str) and len(text) > 1}, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, spelt)) or r"(?!)", re.IGNORECASE)
        self._special = set(self._tokenizer.convert_tokens_to_ids(spelt)) - {self._tokenizer.unk_token_id}

    def question(self, text: str) -> str:
        """Return the text for a processor, unchanged where it spells no special token.

        Raises:
            FaultError: The tokenizer finds a special token in it all the same.
        """
        if not self._spelt.search(text):
            return text
        apart = self._spelt.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        self._check(self._tokenizer(apart, add_special_tokens=False)["input_ids"], text)
        return apart

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without beginning and end of the sequence.

        Raises:
            FaultError: The tokenizer finds a special token in it although it should split them.
        """
        split = {"split_special_tokens": True} if self._spelt.search(text) else {}
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, **split)["input_ids"]
        if split:
            self._check(ids, text)
        return ids

    def _check(self, ids: list[int], text: str) -> None:
        if self._special & set(ids):
            found = self._spelt.search(text)
            raise FaultError(
                f"the tokenizer reads {found[0] if found else text[:60]!r} as a special token, not as text"
            )
