"""One question about a picture or a sound, whatever dataset it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

CAPTION = "caption"
"""Kind of a sample whose answers are descriptions, not votes on one answer."""

DIRECT = "direct_answer"
"""Kind of a question whose answers are what several people wrote (VQA)."""

CONVERSATION = "conversation"
"""Kind of a sample whose question is a whole instruction, as a user wrote it."""


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound in one channel.

    Attributes:
        samples: float32 (T,), about -1 to 1.
        rate: Sampling rate in Hz.
    """

    samples: NDArray[np.float32]
    rate: int


@dataclass(frozen=True)
class Sample:
    """One question, with what it is about.

    Attributes:
        id: Its id, unique in its split.
        kind: Kind of question, such as choose_txt, direct_answer or caption; results are split by it.
        question: The instruction, as the dataset has it.
        choices: Option texts (for IconQA's choose_img places or letters); None if the answer is free.
        answers: Every accepted or reference answer, at least one, in the dataset's order. Some may be empty: of
            annotators who said nothing.
        image: RGB of 8 bits, upright, on white; or None.
        audio: The sound, or None.
    """

    id: str
    kind: str
    question: str
    choices: tuple[str, ...] | None
    answers: tuple[str, ...]
    image: Image.Image | None = None
    audio: Audio | None = None

    @property
    def answer(self) -> str:
        """What is trained on: the first caption, else the most frequent answer that is not empty, of equals the first.

        >>> Sample("1", "direct_answer", "Which brand?", None, ("nokia", "htc", "htc", "nokia")).answer
        'nokia'
        """
        return self.answers[0] if self.kind == CAPTION else max(self.answers, key=self._votes)

    def _votes(self, answer: str) -> int:
        return self.answers.count(answer) if answer else 0
