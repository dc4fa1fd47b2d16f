"""The loss on given answers, and what is compared with it."""

from __future__ import annotations

import pytest
import torch
from tiny import PlainModel, build, make_batch

from commit_tuning.train.recipe.schema import Train
from commit_tuning.train.scoring import answer_loss, evenly
from commit_tuning.train.training import clip_gradients, questions_seen


class Questions:
    """Questions whose training batches are rows of one made-up batch."""

    def __init__(self, kind: str) -> None:
        self.batch = make_batch(kind, 5, torch.float32)

    def training(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {key: value[indices] for key, value in self.batch.items()}


def test_loss_averages_target_tokens_in_evaluation_mode(kind: str) -> None:
    model, _ = build(kind)
    questions = Questions(kind)
    found = answer_loss(model, questions, [0, 2, 3, 4], batch_size=3)  # type: ignore[arg-type]
    assert not model.training
    batch = questions.training([0, 2, 3, 4])
    with torch.no_grad():
        log_p = model(**batch).logits.log_softmax(-1)
    losses = [
        -float(log_p[row, place - 1, label])
        for row, labels in enumerate(batch["labels"].tolist())
        for place, label in enumerate(labels)
        if label != -100
    ]
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_seen_questions_follow_the_order_of_the_run() -> None:
    assert sorted(questions_seen(6, Train(steps=2, batch_size=4))) == [0, 1, 2, 3, 4, 5]
    seen = questions_seen(100, Train(steps=3, batch_size=4, seed=1))
    assert len(seen) == len(set(seen)) == 12
    assert seen[:4] == questions_seen(100, Train(steps=1, batch_size=4, seed=1))
    assert evenly(seen, 3) == [seen[0], seen[4], seen[8]]


@pytest.mark.parametrize("limit", [1.0, 1e9, None])
def test_the_norm_before_clipping_is_returned(limit: float | None) -> None:
    model = PlainModel()
    parameters = [model.head.weight, model.head.bias, model.embed.weight]
    model.head.weight.grad = torch.zeros_like(model.head.weight)
    model.head.weight.grad[0, 0] = 3.0
    model.head.bias.grad = torch.zeros_like(model.head.bias)
    model.head.bias.grad[0] = 4.0
    assert clip_gradients(parameters, limit) == pytest.approx(5.0)
    assert float(model.head.bias.grad[0]) == pytest.approx(4.0 if limit != 1.0 else 0.8)
