"""Sizes of the campaigns in `tests/campaigns`: short in `make test`, full in `make test-hard`."""

from __future__ import annotations

import os
import sys

from hypothesis import HealthCheck, settings

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
