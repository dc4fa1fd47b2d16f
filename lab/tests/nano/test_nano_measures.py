"""Drifts and kappa of the nano models on real questions, against `reference.py`."""

import copy

import numpy as np
import pytest
import reference
import torch

from commit_lab.nano.models.build import NANO_MODELS
from commit_lab.nano.models.load import load_nano
from commit_lab.nano.pictures.nano_questions import word_samples
from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import PROJECTOR_PLACES, Probe
from commit_tuning.data.collate import VisionCollator
from commit_tuning.data.sample import Audio, Sample


def names_of(partition):
    return {module: list(partition.named_parameters(module)) for module in partition}


def heard(number):
    """Samples whose sounds are noise of different lengths."""
    rng = np.random.default_rng(0)
    sounds = [rng.standard_normal(8000 * (2 + turn)).astype(np.float32) / 10 for turn in range(number)]
    asked = "Do you hear a bell?"
    return [Sample(str(n), "yes_no", asked, None, ("yes",), audio=Audio(wave, 16_000)) for n, wave in enumerate(sounds)]


@pytest.mark.parametrize("projector", PROJECTOR_PLACES)
@pytest.mark.parametrize("name", NANO_MODELS)
def test_nano_drifts_and_kappa_equal_the_reference(name, projector):
    model, processor = load_nano(name)
    batch = VisionCollator(processor)(heard(4) if name == "nano-salmonn" else word_samples(4))
    model, batch = model.double(), {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    partition = partition_model(model, projector)
    config = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))
    coordinator = Coordinator(model, torch.optim.AdamW(partition.param_groups(lr=1e-3)), config, partition)
    model(**batch).loss.backward()
    before = copy.deepcopy(model)
    coordinator.step(batch)
    expected = reference.module_drifts(before, model, names_of(partition), batch)
    kappas = {
        name: reference.balance_coefficient(expected["language_model"], expected[name]) for name in partition.encoders
    }
    assert coordinator.drift == pytest.approx(expected, rel=1e-6)
    assert coordinator.kappas == pytest.approx(kappas, rel=1e-6)
    assert all(value > 0 for value in expected.values())
