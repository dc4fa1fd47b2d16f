"""Sizes of the campaigns in `tests/campaigns`: short in `make test`, full in `make test-hard`."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import HealthCheck, settings

from commit_tuning.cli.app import main

LONGEST = 20.0  # seconds that an input may take

FULL = os.environ.get("COMMIT_TUNING_CAMPAIGN") == "full"


def sized(short: int, full: int) -> int:
    """Take the first number in a short campaign, and the second in a full one."""
    return full if FULL else short


def say(figures: str) -> None:
    """Tell what a campaign has done, where pytest lets tests speak (`-s`)."""
    sys.stdout.write(f"\n{figures}\n")


def inputs(short: int, full: int) -> settings:
    """Settings of a fuzzed test: the same inputs in every run, so that no verdict depends on luck, and no deadline."""
    return settings(
        max_examples=sized(short, full),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Fail when an input takes longer than `LONGEST`."""

    def hangs(*_: object) -> None:
        raise AssertionError(f"still at work after {LONGEST:g} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def succeeds_or_says(arguments: Sequence[str], program: Callable[[Sequence[str]], None] = main) -> int:
    """Run a command line in this process: success, or exit code 2 and one line; returns the code."""
    said = io.StringIO()
    streams = contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO())
    with no_hang(), streams[0], streams[1], pytest.raises(SystemExit) as exited:
        program(arguments)
    code = int(exited.value.code or 0)
    lines = said.getvalue().splitlines()
    assert code in (0, 2), (code, lines)
    assert code == 0 or (len(lines) == 1 and lines[0].isprintable()), lines
    return code
