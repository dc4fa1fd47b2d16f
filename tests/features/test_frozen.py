"""A frozen tower's kept outputs change not one bit of a training, and are never those of something else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build, make_batch
from torch import Tensor, nn

from commit_tuning import CoMMITConfig, Coordinator, Probe, UserError, partition_model
from commit_tuning.features import frozen as module
from commit_tuning.features.frozen import FrozenFeatures

CONFIG = CoMMITConfig(probe=Probe(interval=2, samples=3))
BATCHES = [make_batch("llava", 4, torch.float32, seed) for seed in range(3)]


def tower_of(model: nn.Module) -> Any:
    return model.get_encoder("image")


def frozen(kind: str = "llava", dtype: torch.dtype = torch.float32) -> nn.Module:
    model, _ = build(kind, dtype)
    tower_of(model).requires_grad_(False)
    return model


def trained(model: nn.Module, epochs: int = 3, autocast: bool = False) -> list[Any]:
    """The losses, the log and the weights of a short training, whose second epoch has the samples in other batches."""
    partition = partition_model(model)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2), weight_decay=0.0)
    coordinator = Coordinator(model, optimizer, CONFIG, partition)
    seen: list[Any] = []
    for epoch in range(epochs):
        for batch in BATCHES if epoch != 1 else shuffled(BATCHES):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch).loss
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                coordinator.step([batch])
            optimizer.zero_grad()
            seen.append([loss.item(), repr(coordinator.metrics())])
    return [*seen, *(value.tolist() for value in model.state_dict().values()), torch.get_rng_state().tolist()]


def shuffled(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    return [{name: value[order[at : at + 4]] for name, value in whole.items()} for at in (0, 4, 8)]


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    return logits


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "features"


def spoilt(folder: Path, change: Callable[[bytes], bytes]) -> None:
    (path,) = folder.glob("*.commit-tuning-rows")
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(("kind", "autocast"), [("llava", False), ("llava", True), ("blip2", False)])
def test_kept_features_change_no_bit(kind: str, autocast: bool, features: Path) -> None:
    expected = trained(frozen(kind), autocast=autocast)
    taken: list[int] = []
    for _ in range(2):
        model = frozen(kind)
        tower = tower_of(model)
        forward = tower.forward
        with FrozenFeatures(model, features) as kept:
            assert trained(model, autocast=autocast) == expected
        taken.append(kept.taken)
        assert tower.forward == forward
        assert "forward" not in vars(tower)
    assert 24 <= taken[0] < taken[1]  # the second and third epoch, and then the first one, too


def test_a_full_shelf_changes_no_bit(features: Path) -> None:
    expected = trained(frozen())
    model = frozen()
    with FrozenFeatures(model, features, limit=12_000) as kept:
        assert trained(model) == expected
    assert kept.computed > 27
    assert sum(path.stat().st_size for path in features.glob("*.commit-tuning-rows")) <= 12_000


def test_other_weights_have_other_features(features: Path) -> None:
    model = frozen()
    with FrozenFeatures(model, features) as kept:
        before = outputs(model, BATCHES[0])
        assert torch.equal(outputs(model, BATCHES[0]), before)
        with torch.no_grad():
            next(tower_of(model).parameters()).mul_(1.5)
        changed = outputs(model, BATCHES[0])
        assert (kept.computed, kept.taken) == (8, 4)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, outputs(model, BATCHES[0]))


def test_other_settings_have_other_features(features: Path) -> None:
    model = frozen()
    with FrozenFeatures(model, features) as kept:
        outputs(model, BATCHES[0])
        outputs(model.double(), {**BATCHES[0], "pixel_values": BATCHES[0]["pixel_values"].double()})
        with torch.autocast("cpu", torch.bfloat16):
            outputs(model.float(), BATCHES[0])
        assert (kept.computed, kept.taken) == (12, 0)


@pytest.mark.parametrize("at", [0, 40, -1])
def test_damaged_features_are_computed_again(at: int, features: Path) -> None:
    model = frozen()
    expected = [outputs(model, batch) for batch in BATCHES]
    with FrozenFeatures(model, features):
        for batch in BATCHES:
            outputs(model, batch)

    def change(content: bytes) -> bytes:
        spoiled = bytearray(content)
        record = len(content) // 12
        for start in range(0, len(content), record):
            spoiled[start + at % record] ^= 1
        return bytes(spoiled[:-100])

    spoilt(features, change)
    with FrozenFeatures(model, features) as kept, pytest.warns(UserWarning, match="damaged") if at else nullcontext():
        for batch, logits in zip(BATCHES, expected, strict=True):
            assert torch.equal(outputs(model, batch), logits)
        assert (kept.computed, kept.taken) == (12, 0)


def test_features_of_another_processor_are_not_used(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = frozen()
    expected = [outputs(model, batch) for batch in BATCHES]
    rows = module._Form.rows
    monkeypatch.setattr(module._Form, "rows", lambda form, output: [bytes(len(row)) for row in rows(form, output)])
    with FrozenFeatures(model, features):
        for batch in BATCHES:
            outputs(model, batch)
    monkeypatch.undo()
    with FrozenFeatures(model, features) as kept:
        with pytest.warns(UserWarning, match="holds other features than the tower computes here"):
            assert torch.equal(outputs(model, BATCHES[0]), expected[0])
        for batch, logits in zip(BATCHES, expected, strict=True):
            assert torch.equal(outputs(model, batch), logits)
        assert kept.taken == 0


def test_a_trained_tower_is_not_kept(features: Path) -> None:
    model = frozen()
    with FrozenFeatures(model, features) as kept:
        outputs(model, BATCHES[0])
        next(tower_of(model).parameters()).requires_grad_(True)
        outputs(model, BATCHES[0])
        assert (kept.computed, kept.taken) == (4, 0)
    with pytest.raises(UserError, match="no tower of the model is frozen"):
        FrozenFeatures(model, features)


def test_a_tower_with_adapters_is_not_kept(features: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(frozen(), LoraConfig(r=2, target_modules=r".*vision_tower.*q_proj"))
    with pytest.raises(UserError, match="no tower of the model is frozen"):
        FrozenFeatures(model.requires_grad_(False), features)  # disable_adapter() would change its outputs


def test_dropout_in_the_tower_goes_on(features: Path) -> None:
    model = frozen()
    for part in tower_of(model).modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.5
    model.eval()
    with FrozenFeatures(model, features) as kept:
        calm = outputs(model, BATCHES[0])
        tower_of(model).train()
        for _ in range(2):
            torch.manual_seed(0)
            drawn = outputs(model, BATCHES[0])
            assert not torch.equal(drawn, calm)
        model.eval()
        assert torch.equal(outputs(model, BATCHES[0]), calm)
        assert kept.taken == 4
    tower_of(model).train()
    torch.manual_seed(0)
    assert torch.equal(outputs(model, BATCHES[0]), drawn)


class Masking(nn.Module):
    """A frozen tower that masks its output in training, by NumPy's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, values: Tensor) -> Tensor:
        output: Tensor = self.layer(values)
        if self.training:
            output = output * torch.from_numpy((np.random.rand(*output.shape) < 0.5).astype(np.float32))
        return output


def test_numpy_draws_are_never_kept(tmp_path: Path) -> None:
    np.random.seed(0)
    tower, values = Masking().train(), torch.randn(3, 2, 4)
    kept = module._KeptTower(tower, tmp_path, 10**9)
    assert not torch.equal(tower(values), tower(values))
    tower.eval()
    assert torch.equal(tower(values), tower.layer(values))
    kept.close()
    kept.close()
    assert torch.equal(tower(values), tower.layer(values))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_form_of_several_number_formats(rows: int) -> None:
    output = (torch.ones(rows, 3, dtype=torch.bool), torch.randn(rows, 4))
    form = module._Form.of(output, rows)
    assert form is not None
    again = form.output(list(form.rows(output)), torch.device("cpu"))
    assert all(map(torch.equal, again, output))
