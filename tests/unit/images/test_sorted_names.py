"""The names of a directory come in order, whether they are sorted in memory or through a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.images import sorted_names


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A directory with more names than are sorted at once, and more bytes of names than are read at once."""
    monkeypatch.setattr(sorted_names, "PART", 100)
    for number in range(950):
        (tmp_path / f"{number * 7919 % 950}-{'x' * (number % 90)}").touch()
    (tmp_path / os.fsdecode(b"\xff\n odd")).touch()
    return os.fsencode(tmp_path)


def test_few_names_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert list(sorted_names.of(os.fsencode(tmp_path))) == [b"a", b"b", b"c"]


def test_many_names_are_sorted_in_parts_and_nothing_stays(crowded: bytes) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    expected = sorted(os.listdir(crowded))
    found = sorted_names.of(crowded)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1, "the parts are in a file"
    assert list(found) == expected
    assert sorted(os.listdir(crowded)) == expected
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_exactly_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_names, "PART", 3)
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert list(sorted_names.of(os.fsencode(tmp_path))) == [b"a", b"b", b"c"]


def test_where_there_are_no_files_without_a_name_memory_must_do(crowded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    expected = sorted(os.listdir(crowded))
    monkeypatch.setattr(os, "open", refused)
    assert list(sorted_names.of(crowded)) == expected


def test_a_full_disk_is_an_error_and_leaves_no_descriptor(crowded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        sorted_names.of(crowded)
    assert sorted(os.listdir("/proc/self/fd")) == before
