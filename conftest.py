"""What the tests of both distributions share: how many threads they take, and a fixture."""

from __future__ import annotations

import os

import pytest
import torch
from tiny import BUILDERS

torch.set_num_threads(int(os.environ.get("COMMIT_TUNING_TEST_THREADS", "1")))  # see scripts/test_processors.py
pytest.register_assert_rewrite("families.contract")


@pytest.fixture(params=list(BUILDERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of model; a new one joins by a line in BUILDERS."""
    return str(request.param)
