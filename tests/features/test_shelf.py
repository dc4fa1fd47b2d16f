"""Kept records come back as they were or not at all, whatever happens to the disk and whoever else is at work."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commit_tuning.features import shelf as module
from commit_tuning.features.shelf import Shelf

SIZE, MANY = 50, 10**9


def record(number: int) -> tuple[bytes, bytes]:
    digest = hashlib.sha256(bytes([number])).digest()
    return digest, digest + bytes([number]) * (SIZE - len(digest))


RECORDS = [record(number) for number in range(6)]


def opened(path: Path, limit: int = MANY) -> Shelf:
    return Shelf(path, SIZE, limit)


def kept(path: Path) -> list[int]:
    """The numbers of the records that a new reader finds; each is as it was."""
    shelf = opened(path)
    found = [shelf.get(key) for key, _ in RECORDS]
    assert all(content in {None, RECORDS[number][1]} for number, content in enumerate(found))
    return [number for number, content in enumerate(found) if content is not None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features" / "a.commit-tuning-rows"


def filled(path: Path, numbers: range) -> None:
    shelf = opened(path)
    shelf.add(RECORDS[number] for number in numbers)
    shelf.close()


def test_records_outlive_the_process(path: Path) -> None:
    shelf = opened(path)
    assert shelf.get(RECORDS[0][0]) is None
    shelf.add([RECORDS[0], RECORDS[1], RECORDS[0]])
    assert shelf.get(RECORDS[1][0]) == RECORDS[1][1]
    assert path.stat().st_size == 2 * (SIZE + 64)
    shelf.close()
    filled(path, range(1, 4))
    assert kept(path) == [0, 1, 2, 3]


@pytest.mark.parametrize("cut", [1, SIZE + 64 - 1])
def test_a_record_cut_short_is_not_there(path: Path, cut: int) -> None:
    filled(path, range(3))
    os.truncate(path, path.stat().st_size - cut)
    assert kept(path) == [0, 1]
    filled(path, range(2, 5))  # behind the whole ones
    assert kept(path) == [0, 1, 2, 3, 4]
    assert path.stat().st_size == 5 * (SIZE + 64)


def test_no_damaged_byte_is_read_back(path: Path) -> None:
    filled(path, range(3))
    content = path.read_bytes()
    for place in range(SIZE + 64, 2 * (SIZE + 64)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if place < SIZE + 64 + 32:
            assert kept(path) == [0, 2]  # under another key
            continue
        shelf = opened(path)
        with pytest.warns(UserWarning, match="is damaged at record 2; what is missing there is computed again"):
            assert shelf.get(RECORDS[1][0]) is None
        shelf.add([RECORDS[1]])
        assert shelf.get(RECORDS[1][0]) == RECORDS[1][1]
        shelf.close()
        assert kept(path) == [0, 1, 2]  # the later one counts


def test_a_file_that_shrinks_ends_nothing(path: Path) -> None:
    filled(path, range(3))
    shelf = opened(path)
    assert shelf.get(RECORDS[2][0]) == RECORDS[2][1]
    os.truncate(path, SIZE + 64)
    with pytest.warns(UserWarning, match="damaged at record 3"):
        assert shelf.get(RECORDS[2][0]) is None
    path.unlink()
    with pytest.warns(UserWarning, match="damaged at record 1"):
        assert shelf.get(RECORDS[0][0]) is None


def test_a_full_disk_keeps_whole_records_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = module._write, []

    def full(file: Path, at: int, content: bytes) -> None:
        written.append(at)
        write(file, at, content[: 70 if len(written) == 3 else None])
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_write", full)
    shelf = opened(path)
    with pytest.warns(
        UserWarning, match=r"cannot write .*a\.commit-tuning-rows: no space left on device; what is missing"
    ):
        shelf.add(RECORDS)
    assert path.stat().st_size == 2 * (SIZE + 64)
    shelf.add(RECORDS)  # it is said once
    assert len(written) == 3
    assert shelf.get(RECORDS[1][0]) == RECORDS[1][1]
    assert kept(path) == [0, 1]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("mine")
    shelf = opened(tmp_path / "features" / "a.commit-tuning-rows")
    with pytest.warns(UserWarning, match="cannot write to .*features"):
        shelf.add(RECORDS)
    assert shelf.get(RECORDS[0][0]) is None
    assert (tmp_path / "features").read_text() == "mine"


def test_one_writes_and_the_others_read(path: Path) -> None:
    first, second = opened(path), opened(path)
    first.add(RECORDS[:2])
    second.add(RECORDS[2:4])
    assert second.get(RECORDS[2][0]) is None
    assert second.get(RECORDS[1][0]) == RECORDS[1][1]
    first.add(RECORDS[4:5])
    assert second.get(RECORDS[4][0]) == RECORDS[4][1]
    first.close()
    second.add(RECORDS[2:4])
    assert kept(path) == [0, 1, 2, 3, 4]


def test_two_processes_write_at_once(path: Path) -> None:
    program = (
        "import hashlib, sys\n"
        "from pathlib import Path\n"
        "from commit_tuning.features.shelf import Shelf\n"
        f"shelf = Shelf(Path({str(path)!r}), {SIZE}, 10**9)\n"
        "for number in range(200):\n"
        "    key = hashlib.sha256(bytes([number])).digest()\n"
        f"    content = key + bytes([number]) * ({SIZE} - len(key))\n"
        "    shelf.add([(key, content)])\n"
        "    assert shelf.get(key) in {None, content}\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert path.stat().st_size % (SIZE + 64) == 0
    assert kept(path) == [0, 1, 2, 3, 4, 5]


def test_the_bound_holds(path: Path) -> None:
    shelf = opened(path, limit=3 * (SIZE + 64))
    shelf.add(RECORDS)
    assert kept(path) == [0, 1, 2]
    other = opened(path.with_name("b.commit-tuning-rows"), limit=3 * (SIZE + 64))
    other.add(RECORDS)
    assert kept(path.with_name("b.commit-tuning-rows")) == []  # the other one is being written
    shelf.close()
    other.add(RECORDS)
    assert kept(path.with_name("b.commit-tuning-rows")) == [0, 1, 2]
    assert not path.exists()


def test_files_of_others_are_left_alone(path: Path) -> None:
    path.parent.mkdir()
    other = path.with_name("mine.rows")
    other.write_bytes(b"mine" * 1000)
    shelf = opened(path, limit=SIZE + 64)
    shelf.add(RECORDS[:3])
    assert other.read_bytes() == b"mine" * 1000
    assert kept(path) == [0]
