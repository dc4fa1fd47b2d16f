"""Which samples are measured, and when a batch can be cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import build, make_batch

from commit_tuning import CoMMITConfig, Coordinator
from commit_tuning.config import Probe
from commit_tuning.measure.batches import Collector, take_samples

IMAGE = 3  # the placeholder of the tiny LLaVA


def sizes(batches: Any) -> list[int]:
    return [len(batch["labels"]) for batch in batches]


def test_samples_come_first_and_packed_batches_stay_uncut() -> None:
    batches = [make_batch("plain", 4, torch.float32, seed=s) for s in range(3)]
    assert sizes(take_samples(batches, None)) == [4, 4, 4]
    assert sizes(take_samples(batches, 6)) == [4, 2]
    packed = {**batches[0], "pixels": torch.randn(9, 6)}  # patches of all images in one row, as Qwen-VL has them
    assert sizes(take_samples([packed, batches[1]], 2)) == [4]


def test_samples_and_batches_without_targets_are_skipped() -> None:
    batches = [make_batch("plain", 4, torch.float32, seed=s) for s in range(3)]
    batches[0]["labels"][:] = -100
    batches[1]["labels"][1] = -100
    pictures = [object() for _ in range(4)]
    [cut] = take_samples([{**batch, "pictures": pictures} for batch in batches], 2)
    assert torch.equal(cut["pixels"], batches[1]["pixels"][[0, 2]])
    assert cut["pictures"] == [pictures[0], pictures[2]]
    assert sizes(take_samples(batches, 5)) == [4, 2]
    assert sizes(take_samples(batches[:1], 3)) == [3]  # none has an answer
    only_first = batches[2]["labels"].clone().fill_(-100)
    only_first[0, 0] = 1  # which nothing predicts in a causal model
    assert sizes(take_samples([{**batches[2], "labels": only_first}, batches[1]], 2)) == [2]
    assert sizes(take_samples([{**batches[2], "labels": only_first}, batches[1]], 2, shift=False)) == [1, 1]


def with_images(*counts: int) -> dict[str, Any]:
    """A batch whose samples have so many images each, with four placeholders for one."""
    batch = make_batch("llava", len(counts), torch.float32)
    room = torch.full((len(counts), 4), 5)
    ids = torch.cat([batch["input_ids"][:, :4], room, batch["input_ids"][:, 4:]], 1)
    for row, count in enumerate(counts):
        ids[row, :8] = torch.tensor([IMAGE] * 4 * count + [5] * 4 * (2 - count))
    labels = torch.cat([torch.full((len(counts), 4), -100), batch["labels"]], 1)
    pixels = make_batch("llava", sum(counts), torch.float32)["pixel_values"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


@pytest.mark.parametrize("counts", [(2, 1, 1, 1, 1, 1, 1, 0), (0, 1, 1, 1, 1, 1, 1, 2), (1, 1, 1, 1)])
def test_unevenly_spread_images_are_not_cut_by_sample(counts: tuple[int, ...]) -> None:
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(probe=Probe(samples=3)), partition)
    batch = with_images(*counts)
    model(**batch).loss.backward()
    coordinator.step(batch)
    assert coordinator.kappa > 0
    assert sizes(take_samples([batch], 3, placeholders=[IMAGE])) == [3 if set(counts) == {1} else len(counts)]


UNSURE = {
    "pictures of fewer samples": [torch.ones(3, 2, 2)] * 3,
    "a mapping": {"pictures": [torch.ones(3, 2, 2)] * 4},
    "a number for the whole batch": torch.tensor(4),
}


@pytest.mark.parametrize("what", UNSURE)
def test_what_cannot_be_cut_is_taken_whole(what: str) -> None:
    batch = {**make_batch("plain", 4, torch.float32), "more": UNSURE[what]}
    assert take_samples([batch], 2)[0] is batch


def test_three_axes_of_positions_are_not_three_samples() -> None:
    batch = {**make_batch("llava", 3, torch.float32), "position_ids": torch.zeros(3, 3, 9)}
    assert sizes(take_samples([batch], 2, placeholders=[IMAGE])) == [3]


def test_list_of_one_picture_per_sample_is_cut() -> None:
    pictures = [torch.full((3, 2, 2), float(row)) for row in range(4)]
    batch = {**make_batch("plain", 4, torch.float32), "pictures": pictures, "sizes": ((2, 2),) * 4, "cached": False}
    [cut] = take_samples([batch], 2)
    assert cut["pictures"] == pictures[:2]
    assert cut["sizes"] == ((2, 2),) * 2
    assert cut["cached"] is False
    assert len(cut["pixels"]) == 2


def test_collector_keeps_measured_batches_and_forgets_them() -> None:
    batches = [make_batch("plain", 2, torch.float32, seed=s) for s in range(4)]
    few, every = Collector(3), Collector(None)
    for batch in batches:
        few.add(batch, batch)
        every.add(batch, batch)
    answers = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert few.take() == (batches[:2], answers)  # of all that came, not of what is kept
    assert every.take() == (batches, answers)
    assert few.take() == ([], 0)
    for batch in batches[2:]:
        few.add(batch, batch)
    assert few.take()[0] == batches[2:]


def of_kind(kind: str, size: int = 4, **others: Any) -> dict[str, Any]:
    """A batch of text (T), with images (I), or with images and sounds (B)."""
    batch = make_batch("plain", size, torch.float32)
    pixels = batch.pop("pixels")
    return {**batch, **{"I": {"pixels": pixels}, "B": {"pixels": pixels, "sound": pixels}}.get(kind, {}), **others}


@pytest.mark.parametrize(
    ("kinds", "samples", "sizes_taken"),
    [
        ("TI", 4, [2, 2]),
        ("IT", 4, [2, 2]),
        ("TTTI", 4, [2, 2]),
        ("TIB", 4, [2, 1, 1]),
        ("TI", 5, [3, 2]),
        ("TITI", 7, [4, 3]),
        ("TITI", 12, [4, 4, 2, 2]),
        ("TTI", 11, [4, 3, 4]),  # all of the images there are, and text for the rest
        ("TIB", 1, [1, 1, 1]),  # each kind is seen in any case
        ("TI", 8, [4, 4]),
        ("TI", 99, [4, 4]),
        ("TTT", 6, [4, 2]),
    ],
)
def test_every_kind_has_its_share(kinds: str, samples: int, sizes_taken: list[int]) -> None:
    assert sizes(take_samples([of_kind(kind) for kind in kinds], samples)) == sizes_taken


def test_a_kind_without_answers_has_no_share() -> None:
    text = of_kind("T")
    text["labels"] = torch.full_like(text["labels"], -100)
    assert sizes(take_samples([text, of_kind("I")], 3)) == [3]


@pytest.mark.parametrize("nothing", [None, torch.empty(0, 6), [], 3, "left", False])
def test_an_empty_input_makes_no_kind(nothing: Any) -> None:
    assert sizes(take_samples([of_kind("T"), of_kind("T", pixels=nothing)], 4)) == [4]


def test_collector_keeps_few_batches_of_every_kind() -> None:
    collector = Collector(6)
    for _ in range(50):
        for kind in "TTTI":
            collector.add(of_kind(kind), kind)
    assert "".join(collector.take()[0]) == "TTII"


@pytest.mark.parametrize("regularizer", [None, "lookahead"])
def test_changed_weights_raise_only_with_a_regulariser(regularizer: str | None) -> None:
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    config = CoMMITConfig(method="constant", probe=Probe(interval=None), regularizer=regularizer)
    coordinator = Coordinator(model, optimizer, config, partition)
    batch = make_batch("llava", 4, torch.float32)
    model(**batch).loss.backward()
    coordinator.before_step(batch)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    if regularizer is None:
        optimizer.step()
    else:
        with pytest.raises(RuntimeError, match=r"changed between before_step\(\) and optimizer.step"):
            optimizer.step()
