"""Runs on the machines of a cluster, by submitit (https://github.com/facebookincubator/submitit).

What a job is, when it is done and what it leaves are those of `experiments.pool`. The jobs outlive this process: each
has the name that the cluster gave it beside its record, and the next process asks about it before it gives a run away.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from commit_tuning.errors import UserError
from commit_tuning.storage import write_text
from commit_tuning.train.compare.pool import Job, OnDone, default_workers, train_quietly, unfinished
from commit_tuning.train.recipe.yaml_text import parse_value
from commit_tuning.train.record import LOG, TICKET, RunRecord, writable_folder

if TYPE_CHECKING:
    import submitit

    Task: TypeAlias = submitit.Job[Any]

_POLL = {"slurm": 5.0, "local": 0.2}  # seconds
_IN_SIGHT = 60.0  # seconds until a file that another machine wrote is seen here: NFS keeps a folder for up to that long
_SHARED = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")  # submitit's names for every cluster
_FIRST = ("max_num_timeout", "python")  # submitit takes these when an executor is made
_OURS = frozenset(
    ("array_parallelism", "map_count", "nodes", "ntasks_per_node", "stderr_to_stdout", "tasks_per_node", "time")
)
_DEFAULTS = {"name": "commit-tuning", "timeout_min": 24 * 60, "stderr_to_stdout": True}
_STOPPED = ("SUSPENDED", "RESIZING")  # states that submitit takes for an end


@dataclass(frozen=True)
class Cluster:
    """Where jobs can be given to; made by `connect`.

    Attributes:
        name: `"slurm"`, or `"local"`: processes of this machine that outlive this one.
        executor: submitit's.
        threads: Each run computes with so many.
    """

    name: str
    executor: submitit.AutoExecutor
    threads: int = 1

    def default_workers(self) -> int:
        """Runs in flight if nobody says how many: on Slurm submitit's 256, for the queue decides there."""
        return 256 if self.name == "slurm" else default_workers()

    def run_jobs(self, jobs: Sequence[Job], workers: int, on_done: OnDone) -> None:
        """Run what is not complete yet, `workers` at a time, as `pool.run_jobs` does.

        A job that an earlier process submitted and that has not ended is waited for, and not submitted again. When
        this process is interrupted, the jobs run on. Slurm gets all jobs at once, as an array.

        Raises:
            UserError: The cluster refuses the jobs, or a folder holds a complete run of another recipe.
        """
        waiting: list[Job] = []
        running: dict[Path, tuple[Job, Task]] = {}
        for job in unfinished(jobs, on_done):
            task = self._submitted(job)
            if task is None or _over(task):
                waiting.append(job)
            else:
                running[job.folder] = job, task
        at_once = len(jobs) if self.name == "slurm" else workers
        while waiting or running:
            free = max(0, at_once - len(running))
            batch, waiting = waiting[:free], waiting[free:]
            running |= self._submit(batch, workers) if batch else {}
            ended = [pair for pair in running.values() if _over(pair[1])]
            for job, task in ended:
                del running[job.folder]
                on_done(job, _record(job, task))
            if not ended:
                time.sleep(_POLL[self.name])

    def _submitted(self, job: Job) -> Task | None:
        """What became of the job when it was last given to a cluster; None if it never was."""
        import submitit

        path = job.folder / TICKET
        if not path.is_file():
            return None
        try:
            ticket = json.loads(path.read_text(encoding="utf-8"))
            kind = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[ticket["cluster"]]
            task: Task = kind(self.executor.folder, str(ticket["job"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read {path} ({error!r}); remove it if that job is not running any more") from None
        return task

    def _submit(self, jobs: Sequence[Job], workers: int) -> dict[Path, tuple[Job, Task]]:
        self.executor.update_parameters(slurm_array_parallelism=workers)
        with _uninterrupted():
            try:
                with self.executor.batch():
                    tasks = [self.executor.submit(_restartable(job, self.threads)) for job in jobs]
            except (RuntimeError, OSError) as error:
                raise UserError(f"{self.name} refused the runs: {_line(error)}; see --cluster-option") from None
            for job, task in zip(jobs, tasks, strict=True):
                job.folder.mkdir(parents=True, exist_ok=True)
                write_text(job.folder / TICKET, json.dumps({"cluster": self.name, "job": task.job_id}) + "\n")
                log = job.folder / LOG
                log.unlink(missing_ok=True)
                log.symlink_to(os.path.relpath(task.paths.stdout.resolve(), job.folder.resolve()))
        return {job.folder: (job, task) for job, task in zip(jobs, tasks, strict=True)}


def connect(name: str, output: Path, options: Mapping[str, Any] | None = None) -> Cluster:
    """A cluster that this machine can submit to.

    Args:
        name: `"slurm"` or `"local"`.
        output: Folder of the comparison, which every machine sees; scripts, pickles and logs go to `cluster/` there.
        options: Settings of `submitit.AutoExecutor`; those of Slurm with their prefix `slurm_` or without it.

    Raises:
        UserError: submitit or Slurm is not there, or an option is unknown or not the user's to set.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--cluster needs submitit: pip install 'commit-tuning[slurm]'") from None
    if name not in _POLL:
        raise UserError(f"--cluster {name} is not one of {', '.join(_POLL)}")
    first, settings = _split(name, options or {})
    try:
        executor = submitit.AutoExecutor(writable_folder(output) / "cluster", cluster=name, **first)
        executor.update_parameters(**settings)
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        raise UserError(f"--cluster {name}: {_line(error)}") from None
    return Cluster(name, executor, int(settings.get("cpus_per_task", 1)))


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`partition=gpu,gpus_per_node=1` as a mapping: numbers, lists and mappings as in YAML, all else is text.

    A comma that no `key=` follows belongs to the value, as in `exclude=node1,node2`.

    Raises:
        UserError: Not of that form.
    """
    options: dict[str, Any] = {}
    for part in (part for text in texts for part in re.split(r",(?=\s*\w+=)", text)):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not re.fullmatch(r"\w+", key) or not equals or not value:
            raise UserError(f"cannot read --cluster-option {part!r}: write it as partition=gpu,gpus_per_node=1")
        plain = re.fullmatch(r"[\[{\"'].*|true|false|0|(0\.|[1-9])\d*(\.\d+)?", value)
        options[key] = parse_value(value, source=f"--cluster-option {part!r}") if plain else value
    return options


def _split(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an executor is made with, and what is set on it then, by the names that it knows."""
    first: dict[str, Any] = {}
    settings: dict[str, Any] = dict(_DEFAULTS)
    for key, value in options.items():
        plain = key.removeprefix("slurm_").removeprefix("local_")
        if plain in _OURS:
            raise UserError(
                f"--cluster-option {key}: a run is one process on one machine with one log; --jobs says how many are "
                "in flight, timeout_min how long each may take"
            )
        prefixed = key if key in _SHARED or key != plain else f"{name}_{key}"
        (first if plain in _FIRST else settings)[prefixed] = value
    return first, settings


def _restartable(job: Job, threads: int) -> Any:
    """The job as what submitit queues again when it is preempted or out of time; it goes on from its checkpoint."""
    from submitit.helpers import FunctionSequence

    run = FunctionSequence()
    run.add(train_quietly, job.recipe.model_dump_json(), str(job.folder), threads, job.beside)
    return run


def _over(task: Task) -> bool:
    """Whether a job has ended, be it well or not; one that waits, runs, or is queued again has not."""
    import submitit

    if not isinstance(task, submitit.LocalJob):
        return task.paths.result_pickle.exists() or (task.done() and task.state not in _STOPPED)
    try:  # submitit takes one that another process started for done
        return task.done() and b"submitit.local._local" not in Path("/proc", task.job_id, "cmdline").read_bytes()
    except OSError:
        return True


def _record(job: Job, task: Task) -> RunRecord | None:
    """What an ended job left. One that went well has a record, though this machine may see it only later."""
    went_well = task.paths.result_pickle.exists() and task.exception() is None
    deadline = time.monotonic() + _IN_SIGHT
    record = job.outcome()
    while went_well and not (record and record.complete) and time.monotonic() < deadline:
        time.sleep(1)
        record = job.outcome()
    return record


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """No Ctrl-C between a submission and its ticket, and none for the processes that are started meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
