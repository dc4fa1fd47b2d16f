"""The metric of each dataset behind one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commit_tuning.errors import UserError
from commit_tuning.metrics import aokvqa, captions, clothoaqa, iconqa, vqa
from commit_tuning.metrics.means import mean_by_kind

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A score of predictions.

    Attributes:
        name: What the number is called in a table.
        of: The score of one question in [0, 1]; None if the metric leaves the question out.
    """

    name: str
    of: Callable[[Record], float | None]

    def __call__(self, records: Iterable[Record]) -> dict[str, Any]:
        """Score predictions.

        Args:
            records: Mappings with ``prediction`` (text), ``answers`` (the reference answers, at least one), ``kind``,
                and where there are choices, ``choices`` and ``answer`` (the right one). For A-OKVQA's direct answers
                ``difficult_direct_answer``, if it is known.

        Returns:
            ``score`` in [0, 1], the mean over questions; ``by_kind``, the same for each kind; ``questions``, how many
            were scored; ``left_out``, how many the metric does not score.

        Raises:
            UserError: Nothing to score, or a record lacks something.
        """
        scores = [(record["kind"], self.of(record)) for record in map(_checked, records)]
        kept = [(kind, score) for kind, score in scores if score is not None]
        if scores and not kept:
            raise UserError(f"{self.name} leaves out all {len(scores)} questions; take another metric")
        means = mean_by_kind(kept)
        return {
            "score": means.pop("all"),
            "by_kind": means,
            "questions": len(kept),
            "left_out": len(scores) - len(kept),
        }


def _checked(record: Record) -> Record:
    missing = [key for key in ("prediction", "answers", "kind") if key not in record]
    if missing:
        raise UserError(f"a record to score has no {', '.join(missing)}: {dict(record)}")
    if isinstance(record["answers"], str) or not record["answers"]:
        raise UserError(f"a record to score needs a sequence of at least one reference in answers: {dict(record)}")
    return record


def _against_answers(score: Callable[[str, Sequence[str]], float | None]) -> Callable[[Record], float | None]:
    return lambda record: score(record["prediction"], record["answers"])


def _multiple_choice(record: Record) -> float:
    choices, answer = record.get("choices"), record.get("answer")
    if not choices or answer is None:
        raise UserError(f"multiple choice needs choices and answer in a record: {dict(record)}")
    return aokvqa.multiple_choice(record["prediction"], choices, answer)


def _direct_answer(record: Record) -> float | None:
    if record.get("difficult_direct_answer"):
        return None
    return aokvqa.direct_answer(record["prediction"], record["answers"])


_ROUGE_COCO = Metric("ROUGE-L", _against_answers(captions.rouge_l_coco))
_ROUGE_F1 = Metric("ROUGE-L F1", _against_answers(captions.rouge_l_f1))

METRICS: dict[str, Metric] = {
    "iconqa": Metric("accuracy", _against_answers(iconqa.any_match)),
    "textvqa": Metric("VQA accuracy", _against_answers(vqa.soft_accuracy)),
    "aokvqa": Metric("multiple-choice accuracy", _multiple_choice),
    "aokvqa/direct-answer": Metric("direct-answer accuracy", _direct_answer),
    "clothoaqa": Metric("accuracy", _against_answers(clothoaqa.agreement)),
    "clothoaqa/majority": Metric("accuracy (majority)", _against_answers(clothoaqa.majority)),
    "clothoaqa/unanimous": Metric("accuracy (unanimous)", _against_answers(clothoaqa.unanimous)),
    "clothoaqa/any": Metric("accuracy (any)", _against_answers(iconqa.any_match)),
    "macs": _ROUGE_COCO,
    "macs/f1": _ROUGE_F1,
    "song-describer": _ROUGE_COCO,
    "song-describer/f1": _ROUGE_F1,
}
"""The metric of each dataset, by the dataset's name, and the others in use, as ``dataset/metric``."""
