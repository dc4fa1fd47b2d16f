"""Pre-training on sounds: what is heard is what is said, and none of it as the datasets say it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "pretraining"))

from nano_pretraining import listener, sound_forms, sound_scenes

from commit_lab.nano.models.build import build_model, build_processor
from commit_lab.nano.models.salmonn import build_salmonn_tokenizer
from commit_lab.nano.sounds.nano_clothoaqa import nano_clothoaqa_vocabulary


@pytest.fixture(scope="module")
def subject():
    tokenizer = build_salmonn_tokenizer({*nano_clothoaqa_vocabulary(), *sound_forms.WORDS.split()})
    model = build_model("nano-salmonn", len(tokenizer))
    processor = build_processor("nano-salmonn", tokenizer)
    return listener.Listener(model, processor, sound_scenes.SoundBook(0, clips=4), 0)


def scenes_of(subject, layout, number=40):
    rng = random.Random(3)
    return [sound_scenes.draw_scene(rng, subject.book, (layout,)) for _ in range(number)]


@pytest.mark.parametrize("layout", ["row", "together", "phrase"])
def test_texts_fit_the_vocabulary_and_the_length(subject, layout):
    rng = random.Random(4)
    pairs = [sound_forms.make_pairs(rng, scene, subject.book, 4) for scene in scenes_of(subject, layout)]
    encoded = subject.encode(pairs)
    assert subject.processor.tokenizer.unk_token_id not in encoded["input_ids"]
    assert encoded["input_ids"].shape[1] <= subject.model.config.text_config.max_position_embeddings


def test_symbols_say_what_the_forms_ask_for(subject):
    for scene in scenes_of(subject, "phrase"):
        shares, notes = subject.symbols([scene])
        assert int(notes[0, :, 0].sum()) == len(scene.phrase.notes)
        assert shares[0, :, subject.book.names.index(scene.events[0].name)].any()
    for scene in scenes_of(subject, "row"):
        present = subject.symbols([scene])[0][0, :, : len(subject.book.names)]
        first = {name: int(present[:, subject.book.names.index(name)].argmax()) for name in subject.book.names}
        order = [event.name for event in scene.events]
        assert sorted(order, key=lambda name: first[name]) == order
        assert int(present.any(0).sum()) == len(order)


def test_features_are_those_of_the_processor(subject):
    scene = scenes_of(subject, "phrase", 2)
    heard = subject.hear(scene, random.Random(5))
    sounds = list(sound_scenes.mix(scene, subject.book, random.Random(5)))
    wanted = subject.processor.feature_extractor(sounds, sampling_rate=16_000, return_tensors="pt")
    for name, features in heard.items():
        torch.testing.assert_close(features, wanted[name], atol=2e-3, rtol=1e-3)


def test_a_mix_is_loud_where_its_events_are(subject):
    for scene, samples in zip(
        scenes_of(subject, "phrase"),
        sound_scenes.mix(scenes_of(subject, "phrase"), subject.book, random.Random(6)),
        strict=True,
    ):
        assert np.isfinite(samples).all()
        loudest = max(np.sqrt((samples[at : at + 1600] ** 2).mean()) for at in range(0, 46_400, 400))
        assert (loudest > 0.05) == (scene.events[0].level == "loud")
