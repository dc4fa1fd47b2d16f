"""Jobs on a cluster: processes of submitit's local executor, and a Slurm whose commands are three small scripts."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_experiment import EXAMPLE

from commit_tuning.cli.options import open_cluster
from commit_tuning.errors import UserError
from commit_tuning.train.compare import cluster
from commit_tuning.train.compare.cluster import TICKET, connect, parse_options
from commit_tuning.train.compare.pool import LOG, Job
from commit_tuning.train.recipe.load import load_recipe
from commit_tuning.train.record import RECORD, RunRecord

submitit = pytest.importorskip("submitit")
Ended = dict[str, RunRecord | None]


def make_jobs(folder: Path, count: int) -> list[Job]:
    return [Job(load_recipe(EXAMPLE, [f"train.seed={n}"]), folder / "runs" / f"seed-{n}") for n in range(count)]


def finish(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    RunRecord(recipe=job.recipe.for_record(), status="complete", folder=job.folder).write()


def run(where: cluster.Cluster, jobs: list[Job], workers: int = 2) -> Ended:
    ended: Ended = {}
    where.run_jobs(jobs, workers, lambda job, record: ended.update({job.folder.name: record}))
    return ended


def complete(ended: Ended) -> dict[str, bool | None]:
    return {name: record and record.complete for name, record in sorted(ended.items())}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace training by something that starts quickly: a function of the run's folder, then a complete record."""

    def replace(before: Callable[[Path], None]) -> None:
        def train(recipe: str, folder: str, threads: int, beside: bool) -> None:  # nested, so it is pickled as a whole
            Path(folder).mkdir(parents=True, exist_ok=True)  # a job may start before it is known to be submitted
            before(Path(folder))
            record = {
                "recipe": json.loads(recipe),
                "status": "complete",
                "versions": {},
                "hardware": {"torch_threads": threads},
            }
            (Path(folder) / RECORD).write_text(json.dumps(record))

        monkeypatch.setattr(cluster, "train_quietly", train)
        monkeypatch.setattr(
            Job, "outcome", lambda self: RunRecord.read(self.folder) if (self.folder / RECORD).exists() else None
        )

    return replace


def test_local_jobs_end_like_jobs_of_the_pool(tmp_path: Path, trained: Callable[..., None]) -> None:
    def before(folder: Path) -> None:
        heard = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        sys.stdout.write(f"Ctrl-C is {'heard' if heard else 'not heard'}\n")
        if folder.name == "seed-1":
            raise RuntimeError("out of luck")

    trained(before)
    jobs = make_jobs(tmp_path, 3)
    finish(jobs[2])
    ended = run(connect("local", tmp_path, {"cpus_per_task": 3}), jobs)
    assert complete(ended) == {"seed-0": True, "seed-1": None, "seed-2": True}
    assert ended["seed-0"] is not None
    assert ended["seed-0"].hardware["torch_threads"] == 3
    logs = [(job.folder / LOG).read_text() for job in jobs[:2]]
    assert all("Ctrl-C is not heard" in log for log in logs)
    assert ["out of luck" in log for log in logs] == [False, True]
    assert not (jobs[2].folder / TICKET).exists()


def test_local_executor_runs_only_the_allowed_jobs(tmp_path: Path, trained: Callable[..., None]) -> None:
    def before(folder: Path) -> None:
        (folder.parent / "busy").mkdir()  # fails where another one is at work
        (folder.parent / "busy").rmdir()

    trained(before)
    tickets: list[int] = []
    where = connect("local", tmp_path)
    jobs = make_jobs(tmp_path, 2)
    where.run_jobs(jobs, 1, lambda job, record: tickets.append(sum((j.folder / TICKET).exists() for j in jobs)))
    assert tickets == [1, 2]


def test_a_preempted_job_starts_again(tmp_path: Path, trained: Callable[..., None]) -> None:
    def before(folder: Path) -> None:
        with (folder / "starts").open("a") as starts:
            starts.write("x")
        if (folder / "starts").read_text() == "x":
            os.kill(os.getpid(), signal.SIGUSR2)

    trained(before)
    jobs = make_jobs(tmp_path, 1)
    assert complete(run(connect("local", tmp_path), jobs)) == {"seed-0": True}
    assert (jobs[0].folder / "starts").read_text() == "xx"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_job_that_outlived_its_parent_is_awaited(
    tmp_path: Path, trained: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def before(folder: Path) -> None:
        import time

        with (folder / "starts").open("a") as starts:
            starts.write("x")
        deadline = time.monotonic() + 60
        while not (folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    trained(before)
    jobs = make_jobs(tmp_path, 1)
    sleep = cluster.time.sleep

    def interrupted(seconds: float) -> None:
        while not (jobs[0].folder / "starts").exists():
            sleep(0.02)
        raise KeyboardInterrupt

    def awake(seconds: float) -> None:
        (jobs[0].folder / "go").touch()
        sleep(0.02)

    monkeypatch.setattr(cluster.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(connect("local", tmp_path), jobs)
    monkeypatch.setattr(cluster.time, "sleep", awake)
    assert complete(run(connect("local", tmp_path), jobs)) == {"seed-0": True}
    assert (jobs[0].folder / "starts").read_text() == "x"


def at_every_poll(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
    calls: list[float] = []

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        assert len(calls) < 9, "waits for what has ended"
        happen()

    monkeypatch.setattr(cluster.time, "sleep", sleep)


class Slurm:
    """Its commands: `sbatch` keeps the scripts that it gets, `sacct` says what `states` holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._command("srun", "")
        self._command(
            "sbatch", f'n=$(ls {folder}/*.batch 2>/dev/null | wc -l); cp "$1" {folder}/$n.batch; echo job 7$n'
        )
        self._command("sacct", f"cat {folder}/states")
        self.states()

    def _command(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def refuse(self) -> None:
        self._command("sbatch", "echo 'sbatch: error: invalid partition specified: gpus' >&2; exit 1")

    def states(self, **states: str) -> None:
        lines = [f"{job.removeprefix('job')}|{state}|" for job, state in states.items()]
        (self.folder / "states").write_text("\n".join(["JobID|State|NodeList", *lines]) + "\n")

    @property
    def scripts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("*.batch"))]


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    from submitit.slurm.slurm import SlurmInfoWatcher

    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(submitit.SlurmJob, "watcher", SlurmInfoWatcher(delay_s=0))
    return Slurm(folder)


def test_slurm_gets_one_array_and_names_dead_jobs(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(tmp_path, 3)

    def later() -> None:
        finish(jobs[0])
        slurm.states(job70_0="COMPLETED", job70_1="OUT_OF_MEMORY", job70_2="COMPLETED")
        (tmp_path / "cluster" / "70_1_0_log.out").write_text("oom_kill event")
        finish(jobs[2])

    at_every_poll(monkeypatch, later)
    options = parse_options(["partition=gpu,gpus_per_node=1,timeout_min=90,exclude=n1,n2", "max_num_timeout=1"])
    where = connect("slurm", tmp_path, options)
    assert complete(run(where, jobs, 2)) == {"seed-0": True, "seed-1": None, "seed-2": True}
    (script,) = slurm.scripts
    wanted = ("array=0-2%2", "partition=gpu", "gpus-per-node=1", "time=90", "exclude=n1,n2", "job-name=commit-tuning")
    for flag in wanted:
        assert f"#SBATCH --{flag}\n" in script
    assert json.loads((jobs[2].folder / TICKET).read_text()) == {"cluster": "slurm", "job": "70_2"}
    assert (jobs[1].folder / LOG).read_text() == "oom_kill event"
    submission = submitit.SlurmJob(tmp_path / "cluster", "70_1").submission()
    assert submission._timeout_countdown == 1
    assert submission._checkpoint_function() is not None


def test_only_what_slurm_has_lost_is_submitted_again(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(tmp_path, 5)
    states = ["PENDING", "RUNNING", "SUSPENDED", "FAILED", "COMPLETED"]
    for n, job in enumerate(jobs):
        job.folder.mkdir(parents=True)
        (job.folder / TICKET).write_text(json.dumps({"cluster": "slurm", "job": f"5{n}"}))
    finish(jobs[4])
    slurm.states(**{f"job5{n}": state for n, state in enumerate(states)})

    def later() -> None:
        for job in jobs:
            finish(job)
        slurm.states(job70="COMPLETED", **{f"job5{n}": "COMPLETED" for n in range(4)})

    at_every_poll(monkeypatch, later)
    ended = run(connect("slurm", tmp_path), jobs)
    assert list(complete(ended).values()) == [True] * 5
    assert len(slurm.scripts) == 1
    assert "--array" not in slurm.scripts[0]
    assert [json.loads((job.folder / TICKET).read_text())["job"] for job in jobs] == ["50", "51", "52", "70", "54"]


def test_late_record_is_awaited(tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(tmp_path, 1)
    import cloudpickle

    def later() -> None:
        result = tmp_path / "cluster" / "70_0_result.pkl"
        if result.exists():
            finish(jobs[0])
        else:
            result.write_bytes(cloudpickle.dumps(("success", [None])))

    at_every_poll(monkeypatch, later)
    assert complete(run(connect("slurm", tmp_path), jobs)) == {"seed-0": True}


def test_slurm_refuses(tmp_path: Path, slurm: Slurm) -> None:
    slurm.refuse()
    with pytest.raises(UserError, match=r"^slurm refused the runs: .*invalid partition.*; see --cluster-option$"):
        run(connect("slurm", tmp_path), make_jobs(tmp_path, 2))


def test_a_ticket_that_cannot_be_read(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 1)
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / TICKET).write_text('{"cluster": "pbs", "job": 1}')
    with pytest.raises(UserError, match=r"cannot read .*cluster\.json .*; remove it if"):
        run(connect("local", tmp_path), jobs)


def test_what_options_mean() -> None:
    text = (
        "partition=gpu,gres=gpu:a100:1, mem_gb=1.5,account=0123,exclusive=true,exclude=n[1-3],n7,setup=[module load a]"
    )
    assert parse_options([text, "timeout_min=600"]) == {
        "partition": "gpu", "gres": "gpu:a100:1", "mem_gb": 1.5, "account": "0123", "exclusive": True,
        "exclude": "n[1-3],n7", "setup": ["module load a"], "timeout_min": 600,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pbs", [], "pbs is not one of slurm, local"),
        ("slurm", [], 'Could not detect "srun"'),
        ("local", ["partition=gpu"], "Unknown argument 'partition' for executor 'local'"),
        ("local", ["timeout_min=long"], '"timeout_min" expected type'),
        ("local", ["nodes=2"], "a run is one process on one machine"),
        ("local", ["slurm_array_parallelism=3"], "--jobs says how many"),
        ("local", ["partition"], "write it as partition=gpu"),
        (None, ["partition=gpu"], "add --cluster slurm"),
    ],
)
def test_what_is_refused(
    name: str | None, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        open_cluster(name, options, tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_cluster_nothing_is_opened(tmp_path: Path) -> None:
    assert open_cluster(None, [], tmp_path) is None
    assert not any(tmp_path.iterdir())


def test_local_trial_ignores_options_of_slurm(tmp_path: Path) -> None:
    assert open_cluster("local", ["slurm_partition=gpu,gpus_per_node=0"], tmp_path) is not None


def test_without_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'commit-tuning\[slurm\]'"):
        connect("slurm", tmp_path)
