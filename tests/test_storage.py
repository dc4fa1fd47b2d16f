"""Files are written whole or not at all, and a fault of the disk is one line."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from commit_tuning import storage
from commit_tuning.errors import UserError
from commit_tuning.storage import is_temporary, replacing, sha256, write_bytes, write_text


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_written_text_is_utf8_without_translation(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ä\r\n\u2028")
    assert (tmp_path / "a").read_bytes() == "ä\r\n\u2028".encode()


def test_file_is_hashed_anew_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    for content in (b"one", b"two", b"three"):  # at once, so that the clock of the file may stand still
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(storage, "_TICK", -(10**19))  # as if everything had been written long ago
    before = storage._known_sha256.cache_info().misses
    assert {sha256(path) for _ in range(3)} == {hashlib.sha256(b"three").hexdigest()}
    assert storage._known_sha256.cache_info().misses == before + 1
    path.write_bytes(b"another")
    assert sha256(path) == hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_full_disk_leaves_old_content_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_text(tmp_path / "a", "old")
    with monkeypatch.context() as patched:
        if call == "fsync":
            patched.setattr(os, "fsync", full)
        else:
            patched.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"cannot write .*/a: no space left on device; make room"):
            write_bytes(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_interruption_leaves_no_temporary_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            assert is_temporary(temporary)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(storage, "sync", lambda path: synced.append(path.name))
    write_bytes(tmp_path / "a", b"x")
    assert synced == [f".a.{os.getpid()}.commit-tuning.tmp", tmp_path.name]


def test_folder_where_a_file_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "a", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_file_where_a_folder_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="not a directory"):
        write_text(tmp_path / "a" / "b", "x")


def test_checksum_spans_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    whole = sha256(tmp_path / "a")
    monkeypatch.setattr(storage, "_PART", 3)
    assert sha256(tmp_path / "a") == whole == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
