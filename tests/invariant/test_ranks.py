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

from commit_tuning import CoMMITConfig, Coordinator

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
