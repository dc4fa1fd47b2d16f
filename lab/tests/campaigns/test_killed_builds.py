"""kill -9 while a dataset is built: nothing is taken for one, and the same call builds it whole."""

from __future__ import annotations

import multiprocessing
import signal
import time
from pathlib import Path

import pytest
from campaign import sized

from commit_lab.nano.building import dataset_checksum
from commit_lab.nano.pictures.nano_iconqa import build_nano_iconqa


def build(folder: str) -> None:
    build_nano_iconqa(folder, train=24, val=6, test=9)


@pytest.mark.parametrize("part", [step / sized(2, 8) for step in range(1, sized(2, 8))])
def test_a_killed_build_leaves_no_dataset(part: float, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    began = time.monotonic()
    build(str(tmp_path / "whole"))
    seconds = time.monotonic() - began
    process = context.Process(target=build, args=(str(tmp_path / "data"),))
    process.start()
    process.join(part * seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    if process.exitcode:
        assert not (tmp_path / "data").exists()
    build(str(tmp_path / "data"))
    assert dataset_checksum(tmp_path / "data") == dataset_checksum(tmp_path / "whole")
