"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from unifygeo_ros.core.files import new_file, write_text


def test_write_text_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("a longer first text", "zweiter, größer als π"):
        write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_new_file_on_a_full_disk_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), new_file(path, shared=shared) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_new_file_has_its_name_after_its_content_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    path, synced = tmp_path / "a.bin", []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size if not path.is_file() else "named", path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with new_file(path, shared=shared) as stream:
        stream.write(b"x" * 100_000)
    assert synced == [(100_000, False), ("named", True)]  # the file, then the folder's names


def test_new_file_of_two_writers_at_once_is_one_of_the_two_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with new_file(path, shared=True) as first, new_file(path, shared=True) as second:
        first.write(b"1" * 1000)
        second.write(b"2" * 2000)
        first.write(b"1" * 1000)
    assert path.read_bytes() == b"1" * 2000
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]
