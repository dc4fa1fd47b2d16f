"""A-OKVQA's two settings (Schwenk et al. 2022, arXiv 2206.01718), as allenai/aokvqa's ``eval_predictions.py``.

Multiple choice is over all questions; the script asks for a prediction that is a choice, word for word. Its companion
``map_to_choices`` gives free text the choice whose averaged GloVe vector has the highest cosine, so that every text,
an empty one too, becomes a choice. We do not: it needs a download of word vectors, and turns text that answers nothing
into a guess. A text that names no choice is wrong here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from commit_tuning.errors import UserError
from commit_tuning.metrics.iconqa import exact_match

_LETTERED = re.compile(r"\(?(?P<letter>[a-z])(?:[).:]+(?P<text>.*))?", re.IGNORECASE | re.DOTALL)


def named_choice(prediction: str, choices: Sequence[str]) -> int | None:
    """Return the choice that a text names.

    A text names a choice if it equals it (:func:`~commit_tuning.metrics.iconqa.exact_match`), or is its letter
    (``B``, ``(b)``, ``B.``), or its letter and then itself (``B. bus``, ``b) bus``). The text counts before the letter
    alone; a letter and another choice's text name nothing.

    Returns:
        Its index, the first of equal choices; None if the text names no choice.

    Example:
        >>> [named_choice(text, ["cab", "bus"]) for text in ("The bus.", "B", "(B) bus", "A. bus", "taxi")]
        [1, 1, 1, None, None]
    """
    said, verbatim = prediction.strip(), list(map(_lower, choices))
    if said and _lower(said) in verbatim:
        return verbatim.index(_lower(said))
    equal, lettered = _place(said, choices), _LETTERED.fullmatch(said)
    if lettered is None:
        return equal
    index, text = ord(lettered["letter"].lower()) - ord("a"), (lettered["text"] or "").strip()
    by_letter = _place(choices[index], choices) if index < len(choices) else None
    by_text = _place(text, choices)
    if by_text is not None:
        return by_text if by_text == by_letter else None
    return equal if equal is not None or text else by_letter


def _lower(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()


def _place(text: str, choices: Sequence[str]) -> int | None:
    equal = (index for index, choice in enumerate(choices) if text == choice or exact_match(text, choice))
    return next(equal, None) if text else None


def multiple_choice(prediction: str, choices: Sequence[str], answer: str) -> float:
    """Return 1 if the prediction names the right choice, else 0.

    Args:
        prediction: The model's text.
        choices: The choices' texts.
        answer: The right one, or its letter.

    Raises:
        UserError: The answer names no choice.
    """
    right = named_choice(answer, choices)
    if right is None:
        raise UserError(f"the answer {answer!r} is none of the choices {', '.join(choices)}; correct the record")
    return float(named_choice(prediction, choices) == right)


def direct_answer(prediction: str, answers: Sequence[str]) -> float:
    """Return min(1, matches / 3) without leaving answers out; texts match only exactly (``Cab`` is not ``cab``).

    The script leaves out questions whose ``difficult_direct_answer`` is true; the caller does that. With fewer than
    three answers (there are ten) all of them suffice.

    Args:
        prediction: The model's text; white space around texts does not count.
        answers: What people said, at least one.

    Returns:
        In [0, 1].
    """
    said = prediction.strip()
    matches = sum(said == answer.strip() for answer in answers) if said else 0
    return min(1.0, matches / min(3, len(answers)))
