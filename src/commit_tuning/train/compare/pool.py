"""Runs side by side: one process and one thread for each, so that one that crashes takes no other with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from commit_tuning.errors import UserError
from commit_tuning.processes import StoppedError, end_with_parent, terminable
from commit_tuning.train.checkpoint import clear_up
from commit_tuning.train.recipe.schema import Recipe
from commit_tuning.train.record import LOG, RECORD, RunRecord, alone_in

PRELOAD_RECIPE = "COMMIT_TUNING_PRELOAD_RECIPE"
_PRELOADED = "commit_tuning.train.compare.preload"


@dataclass(frozen=True)
class Job:
    """A recipe and the folder of its run.

    Attributes:
        recipe: The experiment.
        folder: Where its run goes.
        beside: Whether it may write beside files that are no run's.
    """

    recipe: Recipe
    folder: Path
    beside: bool = False

    def outcome(self) -> RunRecord | None:
        """The run's record; None if there is none yet.

        Raises:
            UserError: The folder holds a complete run of another recipe, or one with damaged files.
        """
        if not os.path.lexists(self.folder / RECORD):
            return None
        record = RunRecord.read(self.folder)
        if record.status == "complete":
            record.refuse_damage()
        if record.complete and self.recipe.differences(record.recipe):
            raise UserError(f"{self.folder} holds a complete run of another recipe; choose another --output")
        return record


OnDone: TypeAlias = Callable[[Job, RunRecord | None], None]
RunJobs: TypeAlias = Callable[[Sequence[Job], int, OnDone], None]  # `run_jobs`, or that of a cluster


def run_jobs(jobs: Sequence[Job], workers: int, on_done: OnDone) -> None:
    """Run what is not complete yet, `workers` at a time; a run that was cut off goes on from its last checkpoint.

    No worker outlives this process: when it is stopped, each saves its run first; when it is killed, each just ends.

    Args:
        jobs: What to run, in this order.
        workers: Processes at a time; each computes with one thread.
        on_done: Called in this process after each job, at once for one that was complete before. The record is None
            if the run died before it could write one; its status says whether it went to the end.
    """
    waiting = unfinished(jobs, on_done)
    running: dict[Any, tuple[BaseProcess, Job]] = {}
    context = _context(waiting[0].recipe if waiting else None)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                process = _start(context, job)
                running[process.sentinel] = (process, job)
            for sentinel in wait(list(running)):
                process, job = running.pop(sentinel)
                process.join()
                on_done(job, job.outcome())
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def unfinished(jobs: Sequence[Job], on_done: OnDone) -> list[Job]:
    """The jobs that have no complete run yet; `on_done` is told of the others."""
    waiting = []
    for job in jobs:
        record = job.outcome()
        if record is not None and record.complete:
            with alone_in(job.folder):
                clear_up(record)
            on_done(job, record)
        else:
            waiting.append(job)
    return waiting


def train_quietly(recipe: str, folder: str, threads: int = 1, beside: bool = False) -> None:
    """One run in this process, without bars; its recipe is JSON, as whatever starts a process carries text best."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers.utils import logging

    from commit_tuning.train.runner import train

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    train(Recipe.model_validate_json(recipe), folder, beside=beside)


def default_workers(device: str = "cpu") -> int:
    """Runs at a time if nobody says how many: the cores that this process may use, one where they share a GPU."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context(recipe: Recipe | None) -> BaseContext:
    """Fork from a server that has imported the heavy libraries and, for questions in memory, encoded them once.

    Where there is no such server, processes are fresh.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    if recipe is not None:
        before = os.environ.get(PRELOAD_RECIPE)
        os.environ[PRELOAD_RECIPE] = recipe.model_dump_json()
        if before is not None and _questions_of(Recipe.model_validate_json(before)) != _questions_of(recipe):
            from multiprocessing import forkserver

            forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it holds another comparison's questions
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


def _questions_of(recipe: Recipe) -> tuple[Any, ...]:
    """What decides which encoded questions a server holds."""
    return recipe.data, recipe.model.name, recipe.train.device


def _start(context: BaseContext, job: Job) -> BaseProcess:
    given = job.recipe.model_dump_json(), str(job.folder), job.beside
    process = context.Process(target=_work, args=given, daemon=True)  # type: ignore[attr-defined]
    process.start()
    return process  # type: ignore[no-any-return]


def _work(recipe: str, folder: str, beside: bool) -> None:
    """The life of a worker: one run, its output in the run's own log. Ctrl-C is the parent's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    with _opened_log(Path(folder)) as log, terminable():
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            train_quietly(recipe, folder, beside=beside)
        except StoppedError as stopped:
            sys.stderr.write(f"{stopped}\n")
            raise SystemExit(stopped.exit_code) from None
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            raise SystemExit(1) from None


def _opened_log(folder: Path) -> TextIO:
    """A new log in place of the last, which stays where another process is at work."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with alone_in(folder):
            (folder / LOG).unlink(missing_ok=True)  # a cluster's is a link
            return (folder / LOG).open("w", encoding="utf-8")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
