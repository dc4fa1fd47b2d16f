"""Answering questions by greedy generation, scoring the answers, and the loss on given answers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from commit_tuning.measure.divergence import TargetPositions
from commit_tuning.measure.forward import forward_pass
from commit_tuning.metrics.score import METRICS
from commit_tuning.train.dataset import Questions, chunks
from commit_tuning.train.recipe.schema import Eval
from commit_tuning.train.record import IMAGES


def answer_questions(
    model: Any,
    processor: Any,
    questions: Questions,
    settings: Eval,
    *,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Ask the model every question.

    Args:
        model: A vision-language model with `generate`; left in evaluation mode.
        processor: Its processor.
        questions: What is asked.
        settings: Batch size and length of the answers.
        on_batch: Called with the number of questions answered so far.

    Returns:
        One mapping per question that can be decoded, in order: `id`, `kind`, `question`, `choices`, `truth` (what is
        trained on), `answers` (the references), `answer` (the model's; a letter that was asked for is written as its
        choice).
    """
    model.eval()
    rows: list[dict[str, Any]] = []
    for indices in chunks(list(range(len(questions))), settings.batch_size):
        asked_now, prompts = questions.prompts(indices)
        said = generate(model, processor, prompts, settings) if prompts else []
        for sample, text in zip(asked_now, said, strict=True):
            asked = {"id": sample.id, "kind": sample.kind, "question": sample.question, "choices": sample.choices}
            answer = questions.collator.meant(sample, text)
            rows.append({**asked, "truth": sample.answer, "answers": sample.answers, "answer": answer})
        on_batch(indices[-1] + 1)
    return rows


@torch.no_grad()
def generate(model: Any, processor: Any, prompts: dict[str, torch.Tensor], settings: Eval) -> list[str]:
    """The greedy answers to a left-padded batch of prompts, as text; they end where the model's positions do."""
    asked = prompts["input_ids"].shape[1]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    room = min(settings.max_new_tokens or 1, longest - asked)
    output = model.generate(**prompts, do_sample=False, max_new_tokens=room)
    answers = processor.batch_decode(output[:, asked:], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


@torch.no_grad()
def answer_loss(model: Any, questions: Questions, indices: Sequence[int], batch_size: int) -> float:
    """The loss of training, on the given answers to some questions.

    Args:
        model: A vision-language model; left in evaluation mode.
        questions: A split.
        indices: Positions in the split, at least one.
        batch_size: Questions at a time; only the answers' logits exist.

    Returns:
        Nats per answer token, end of the sequence included.
    """
    model.eval()
    forward, total, tokens = forward_pass(model), 0.0, 0
    for part in chunks(list(indices), batch_size):
        batch = questions.training(part)
        answers = TargetPositions.from_labels(batch["labels"])
        logits = forward.logits(batch, answers.mask, forward.features(batch)).float()
        total += float(torch.nn.functional.cross_entropy(logits, answers.targets, reduction="sum"))
        tokens += len(answers.targets)
    return total / tokens


def evenly(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, as far apart as can be, in their order.

    Example:
        >>> evenly(range(10), 4), evenly([5, 7], 3)
        ([0, 2, 5, 7], [5, 7])
    """
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def check_metric(metric: str) -> None:
    """Find out before any work is done that the metric cannot be computed.

    Raises:
        UserError: A package that it needs is not installed.
    """
    score([{"kind": "", "answer": "a", "answers": ("a",), "truth": "a", "choices": ("a",)}], metric)


def score(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The dataset's metric of answered questions.

    Args:
        rows: Of `answer_questions`.
        metric: A name in `commit_tuning.metrics.score.METRICS`.

    Returns:
        `accuracy`, the metric's mean over all questions, in [0, 1] whatever the metric; `by_kind`; `metric`, its name;
        the number of `questions`, and how many the metric leaves out.
    """
    found = METRICS[metric](
        {
            "kind": row["kind"],
            "prediction": row["answer"],
            "answers": row["answers"],
            "answer": row["truth"],
            "choices": row["choices"],
        }
        for row in rows
    )
    return {"accuracy": found.pop("score"), **found, "metric": METRICS[metric].name}


def pictures_of(questions: Questions, count: int) -> Iterator[tuple[str, bytes]]:
    """The pictures among the first `count` questions: each question's id, and its picture as a PNG file."""
    seen: set[str] = set()
    for sample in (questions[index] for index in range(min(count, len(questions)))):
        if sample.image is not None and sample.id not in seen:
            seen.add(sample.id)
            file = io.BytesIO()
            sample.image.save(file, "PNG")
            yield sample.id, file.getvalue()


def picture_name(number: int) -> str:
    """The file of a kept picture in the folder of a run; ids, which come from data, never become names of files."""
    return f"{IMAGES}/{number:04d}.png"
