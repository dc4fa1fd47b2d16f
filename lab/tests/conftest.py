"""How many threads the laboratory's tests take. Their helpers lie beside this file and in `tests/`."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(int(os.environ.get("COMMIT_TUNING_TEST_THREADS", "1")))  # see scripts/test_processors.py
