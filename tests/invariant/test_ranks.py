"""Two processes with batches of their own: one kappa, and the same learning rates on both."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import build, make_batch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from commit_tuning import CoMMITConfig, Coordinator, partition_model

SAMPLES = (2, 4)  # on the two ranks


def train(rank: int, folder: str) -> None:
    """Six steps of data-parallel training."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, partition = build("plain")
    optimizer = torch.optim.Adam(partition.param_groups(lr=1e-3))
    config = CoMMITConfig(probe_interval=1, lr_update_interval=1, probe_samples=None)
    coordinator = Coordinator(model, optimizer, config, partition)
    seen = []
    for step in range(6):
        batch = make_batch("plain", SAMPLES[rank], torch.float32, seed=2 * step + rank)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        coordinator.step(batch)
        seen.append({"drift": coordinator.drift, "rates": coordinator.learning_rates})
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not in this build of torch")
def test_every_rank_has_the_same_kappa_and_the_same_rates(tmp_path: Path) -> None:
    mp.spawn(train, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[-1]["rates"] != first[1]["rates"]
    alone = [lonely_drift(rank) for rank in (0, 1)]
    for module, drift in first[0]["drift"].items():
        weighted = sum(count * own[module] for count, own in zip(SAMPLES, alone, strict=True)) / sum(SAMPLES)
        assert drift == pytest.approx(weighted, rel=1e-3)


def lonely_drift(rank: int) -> dict[str, float]:
    """The drift of the first step on one rank's batch, the gradient being that of both."""
    model, partition = build("plain")
    optimizer = torch.optim.Adam(partition.param_groups(lr=1e-3))
    config = CoMMITConfig(probe_interval=1, lr_update_interval=1, probe_samples=None)
    coordinator = Coordinator(model, optimizer, config, partition)
    statistics, random = {name: buffer.clone() for name, buffer in model.named_buffers()}, torch.get_rng_state()
    for other in (1 - rank, rank):  # each as on its own rank: batch normalisation, dropout
        model.load_state_dict(statistics, strict=False)
        torch.set_rng_state(random)
        model(**make_batch("plain", SAMPLES[other], torch.float32, seed=other)).loss.backward()
    coordinator.step(make_batch("plain", SAMPLES[rank], torch.float32, seed=rank))
    return coordinator.drift


STEPS, HALF = 5, 3  # samples on each of two ranks; the answers of both halves have the same lengths


def halves(step: int) -> dict[str, torch.Tensor]:
    return make_batch("llava", 2 * HALF, torch.float32, seed=step)


def train_llava(model, partition, batches, config) -> dict[str, object]:
    """Some steps; what was measured, and what the model makes of a batch at the end."""
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-3))
    coordinator = Coordinator(model, optimizer, config, partition)
    seen = []
    for batch in batches:
        model(**batch).loss.backward()
        coordinator.step(batch)
        optimizer.zero_grad()
        seen.append(coordinator.summary())
    with torch.no_grad():
        logits = model.eval()(**halves(99)).logits
    return {"seen": seen, "logits": logits.tolist()}


def spread(rank: int, folder: str) -> None:
    """The same on two ranks, each with half of every batch, in every way to spread a model."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = slice(rank * HALF, (rank + 1) * HALF)
    batches = [{key: value[mine] for key, value in halves(step).items()} for step in range(STEPS)]
    for way, (wrap, config) in WAYS.items():
        model = wrap(build("llava")[0])
        trained = train_llava(model, partition_model(model), batches, config)
        Path(folder, f"{way}-{rank}.json").write_text(json.dumps(trained))
    dist.destroy_process_group()


def ddp(model):
    return DistributedDataParallel(model, find_unused_parameters=True)


def fsdp2(model):
    mesh = init_device_mesh("cpu", (2,))
    for block in [*model.model.language_model.layers, *model.model.vision_tower.encoder.layers, model]:
        fully_shard(block, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


PLAIN = CoMMITConfig(probe_interval=1, lr_update_interval=2, probe_samples=None)
REGULARIZED = CoMMITConfig(
    method="commit", regularizer="lookahead", probe_interval=1, lr_update_interval=2, probe_samples=None
)
WAYS = {"ddp": (ddp, PLAIN), "fsdp2": (fsdp2, PLAIN), "ddp-regularized": (ddp, REGULARIZED)}


@pytest.fixture(scope="module")
def spread_out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(spread, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not in this build of torch")
@pytest.mark.parametrize("way", list(WAYS))
def test_two_ranks_train_as_one_process_does_on_the_whole_batch(way: str, spread_out: Path) -> None:
    first, second = (json.loads((spread_out / f"{way}-{rank}.json").read_text()) for rank in (0, 1))
    alone = train_llava(*build("llava"), [halves(step) for step in range(STEPS)], WAYS[way][1])
    assert first["seen"] == second["seen"]
    assert first["seen"] == [pytest.approx(step, rel=1e-3) for step in alone["seen"]]
    torch.testing.assert_close(torch.tensor(first["logits"]), torch.tensor(alone["logits"]), rtol=1e-5, atol=1e-5)
