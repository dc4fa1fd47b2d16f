"""What the tests of both distributions share: how many threads they take, and a fixture."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from tiny import BUILDERS

torch.set_num_threads(int(os.environ.get("COMMIT_TUNING_TEST_THREADS", "1")))  # see scripts/test_processors.py
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background of a shell ignores
pytest.register_assert_rewrite("families.contract")


@pytest.fixture(params=list(BUILDERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of model; a new one joins by a line in BUILDERS."""
    return str(request.param)
