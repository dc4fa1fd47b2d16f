"""Questions kept in memory give the very batches of questions read each time."""

from pathlib import Path

import pytest
import torch

from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.iconqa import IconQA
from commit_tuning.data.nano_iconqa import build_nano_iconqa
from commit_tuning.errors import UserError
from commit_tuning.experiments.dataset import StoredQuestions, StreamedQuestions
from commit_tuning.models.nano import load_nano, load_processor


def test_stored_and_streamed_questions_are_the_same(tmp_path: Path) -> None:
    root = build_nano_iconqa(tmp_path / "data", train=9, val=3, test=3)
    for name in ("nano-llava", "nano-blip2"):
        collator = VisionCollator(load_nano(name)[1])
        samples = IconQA(root, "train")
        streamed, stored = StreamedQuestions(samples, collator), StoredQuestions(samples, collator)
        assert len(streamed) == len(stored) == 9
        for indices in ([0, 1, 2, 3], [8, 4]):
            for ours, theirs in (
                (stored.training(indices), streamed.training(indices)),
                (stored.prompts(indices), streamed.prompts(indices)),
            ):
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert stored[5].question == streamed[5].question


def test_what_cannot_be_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = IconQA(build_nano_iconqa(tmp_path / "data", train=4, val=3, test=3), "train")
    collator = VisionCollator(load_processor("nano-llava"))
    prompts, _ = collator.encode([samples[index] for index in range(4)])
    tiles = {"pixel_values": torch.zeros(5, 3, 8, 8)}
    monkeypatch.setattr(collator, "encode", lambda read: (prompts, tiles))
    with pytest.raises(UserError, match=r"pixel_values has not one row .* set data\.in_memory=false"):
        StoredQuestions(samples, collator)
