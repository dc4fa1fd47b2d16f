"""Two processes with batches of their own: one kappa, and the same learning rates on both."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import modalities
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from loops import Task, accelerate_loop, adapted, plain_loop, transformers_trainer
from tiny import build, make_batch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from commit_tuning import CoMMITConfig, Coordinator, partition_model
from commit_tuning.config import Probe
from commit_tuning.integrations.transformers import _save_state
from commit_tuning.partition.discover import unwrap

SAMPLES = (2, 4)  # on the two ranks, where they differ


def lopsided(rank: int) -> list[dict[str, Any]]:
    """Six steps of data-parallel training by hand, with more samples on one rank than on the other."""
    model, partition = build("plain", torch.float64)
    optimizer = torch.optim.Adam(partition.param_groups(lr=1e-3))
    config = CoMMITConfig(probe=Probe(interval=1, samples=None), lr_update_interval=1)
    coordinator = Coordinator(model, optimizer, config, partition)
    seen = []
    for step in range(6):
        batch = make_batch("plain", SAMPLES[rank], torch.float64, seed=2 * step + rank)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        coordinator.step(batch)
        seen.append({"drift": coordinator.drift, "rates": coordinator.learning_rates})
    return seen


def without_answers(rank: int, wrap) -> list[dict[str, Any]]:
    """The answers of one rank are missing at the second step, those of both at the third: `[rank][step]`."""
    answered = [[True, False, False, True], [True, True, False, True]][rank]
    model = wrap(build("llava", torch.float64)[0])
    partition = partition_model(model)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-3))
    coordinator = Coordinator(model, optimizer, CoMMITConfig(probe=Probe(interval=1, samples=2)), partition)
    seen = []
    for step, has_answers in enumerate(answered):
        batch = make_batch("llava", HALF, torch.float64, seed=2 * step + rank)
        labels = batch["labels"] if has_answers else torch.full_like(batch["labels"], -100)
        logits = model(**{**batch, "labels": None}).logits[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum").backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coordinator.step({**batch, "labels": labels})
        optimizer.zero_grad()
        seen.append({"measured": coordinator._last.measured, **coordinator.summary()})
    return seen


def one_modality(rank: int) -> list[dict[str, Any]]:
    """Ranks with batches of different modalities: a module is idle where it is so on both."""
    coordinator = modalities.start(wrap=ddp, probe=Probe(interval=4), lr_update_interval=2)
    return modalities.train(coordinator, [*("TIITTAIATT", "TTATTTTATT")[rank]])


def lonely_drift(rank: int) -> dict[str, float]:
    """The drift of the first step on one rank's batch, the gradient being that of both."""
    model, partition = build("plain", torch.float64)
    optimizer = torch.optim.Adam(partition.param_groups(lr=1e-3))
    config = CoMMITConfig(probe=Probe(interval=1, samples=None), lr_update_interval=1)
    coordinator = Coordinator(model, optimizer, config, partition)
    statistics, random = {name: buffer.clone() for name, buffer in model.named_buffers()}, torch.get_rng_state()
    for other in (1 - rank, rank):  # each as on its own rank: batch normalisation, dropout
        model.load_state_dict(statistics, strict=False)
        torch.set_rng_state(random)
        model(**make_batch("plain", SAMPLES[other], torch.float64, seed=other)).loss.backward()
    coordinator.step(make_batch("plain", SAMPLES[rank], torch.float64, seed=rank))
    return coordinator.drift


STEPS, HALF = 5, 3  # samples on each of two ranks; the answers of both halves have the same lengths
PLAIN = CoMMITConfig(probe=Probe(interval=1, samples=None), lr_update_interval=2)
REGULARIZED = replace(PLAIN, method="commit", regularizer="lookahead")


def halves(step: int) -> dict[str, torch.Tensor]:
    return make_batch("llava", 2 * HALF, torch.float64, seed=step)


def ddp(model):
    return DistributedDataParallel(model, find_unused_parameters=True)


def fsdp2(model):
    mesh, base = init_device_mesh("cpu", (2,)), unwrap(model).model
    for block in [*base.language_model.layers, *base.vision_tower.encoder.layers, model]:
        fully_shard(block, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def in_a_loop(rank: int | None, wrap, config=PLAIN, prepare=lambda model: model) -> dict[str, Any]:
    """Some steps of a loop of one's own on a rank's half of every batch, or in one process (rank None) on all of it."""
    model = prepare(build("llava", torch.float64)[0])
    model = model if rank is None else wrap(model)
    partition = partition_model(model)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=3e-3))
    coordinator = Coordinator(model, optimizer, config, partition)
    mine = slice(None) if rank is None else slice(rank * HALF, (rank + 1) * HALF)
    seen = []
    for step in range(STEPS):
        batch = {key: value[mine] for key, value in halves(step).items()}
        model(**batch).loss.backward()
        coordinator.step(batch)
        optimizer.zero_grad()
        seen.append(coordinator.summary())
    return result(model, seen)


def in_a_trainer(rank: int | None, loop, **changes: Any) -> dict[str, Any]:
    """The same training in a trainer, with checkpoints in the working directory; in one process, the plain loop's."""
    task = Task(Path(), PLAIN, dtype=torch.float64)
    run = plain_loop(task) if rank is None else loop(replace(task, ranks=2, **changes))
    return result(run.model, [run.coordinator.summary()])


@torch.no_grad()
def result(model, seen: list[dict[str, float]]) -> dict[str, Any]:
    """What was measured, and what the model makes of a batch at the end."""
    return {"seen": seen, "logits": model.eval()(**halves(99)).logits.tolist()}


WAYS = {
    "ddp": partial(in_a_loop, wrap=ddp),
    "ddp-regularized": partial(in_a_loop, wrap=ddp, config=REGULARIZED),
    "fsdp2": partial(in_a_loop, wrap=fsdp2),
    "fsdp2-lora": partial(in_a_loop, wrap=fsdp2, prepare=adapted),
    "accelerate": partial(in_a_trainer, loop=accelerate_loop),
    "transformers": partial(in_a_trainer, loop=transformers_trainer, saves=True),
    "transformers-resumed": partial(in_a_trainer, loop=transformers_trainer, start=3),
}
UNANSWERED = {f"unanswered-{wrap.__name__}": partial(without_answers, wrap=wrap) for wrap in (ddp, fsdp2)}
SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")  # FSDP2 does so in newer torch than 2.6


def can_run(way: str) -> bool:
    return SHARDS_ON_CPU or "fsdp2" not in way


def marked(ways: Iterable[str]) -> list[Any]:
    skip = pytest.mark.skip(f"FSDP2 of torch {torch.__version__} needs a GPU")
    return [pytest.param(way, marks=() if can_run(way) else skip) for way in ways]


def spread(rank: int, folder: str) -> None:
    """Every way to spread a model, on one of two ranks."""
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true", WORLD_SIZE="2")  # what torchrun would set
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    os.chdir(folder)
    with mock.patch("commit_tuning.integrations.transformers._save_state", wraps=_save_state) as save:
        for name, way in {**WAYS, **UNANSWERED, "lopsided": lopsided, "one-modality": one_modality}.items():
            if can_run(name):
                Path(f"{name}-{rank}.json").write_text(json.dumps(way(rank)))
    saved = [str(call.args[1]) for call in save.call_args_list]
    Path(f"saved-{rank}.json").write_text(json.dumps(saved))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of the data-parallel models may outlive the interpreter, and abort it


@pytest.fixture(scope="module")
def spread_out(tmp_path_factory) -> Path:
    """The folder in which both ranks have left what came of it."""
    if not dist.is_gloo_available():
        pytest.skip("gloo is not in this build of torch")
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(spread, args=(str(folder),), nprocs=2)
    return folder


def test_ranks_agree_on_kappa_and_rates(spread_out: Path) -> None:
    first, second = (json.loads((spread_out / f"lopsided-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[-1]["rates"] != first[1]["rates"]
    alone = [lonely_drift(rank) for rank in (0, 1)]
    for module, drift in first[0]["drift"].items():
        weighted = sum(count * own[module] for count, own in zip(SAMPLES, alone, strict=True)) / sum(SAMPLES)
        assert drift == pytest.approx(weighted, rel=1e-6)


def test_every_rank_knows_which_modules_are_idle(spread_out: Path) -> None:
    first, second = (json.loads((spread_out / f"one-modality-{rank}.json").read_text()) for rank in (0, 1))
    assert repr(first) == repr(second)
    language, vision, audio = "language_model", "vision", "audio"
    measured = {row["step"]: row["modules"] for row in first if row["modules"]}
    assert measured == {
        0: [language],
        1: [language, vision],
        2: [audio, language, vision],
        4: [language],
        5: [audio, language],
        6: [language, vision],
        8: [language],
    }


@pytest.mark.parametrize("way", marked(UNANSWERED))
def test_a_rank_without_answers_measures_with_the_others(way: str, spread_out: Path) -> None:
    first, second = (json.loads((spread_out / f"{way}-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert [step["measured"] for step in first] == [True, True, False, True]
    assert first[1]["kappa"] != first[0]["kappa"]


@pytest.mark.parametrize("way", marked(WAYS))
def test_two_ranks_train_as_one_process(way: str, spread_out: Path) -> None:
    first, second = (json.loads((spread_out / f"{way}-{rank}.json").read_text()) for rank in (0, 1))
    alone = WAYS[way](None)
    assert first["seen"] == second["seen"]
    assert first["seen"] == [pytest.approx(step, rel=1e-6) for step in alone["seen"]]
    torch.testing.assert_close(torch.tensor(first["logits"]), torch.tensor(alone["logits"]), rtol=0, atol=1e-9)


def test_two_ranks_resume_exactly_from_one_checkpoint(spread_out: Path) -> None:
    texts = {path.stem: path.read_text() for path in spread_out.glob("*.json")}
    assert json.loads(texts["saved-0"]) == [f"checkpoint-{step}/commit.pt" for step in range(1, 9)]
    assert json.loads(texts["saved-1"]) == []
    assert texts["transformers-resumed-0"] == texts["transformers-0"]
    assert texts["transformers-resumed-1"] == texts["transformers-1"]
