"""A layer's tar comes out of its log and its files as it went in."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.images import retar
from bridge.images.extract import Extractor
from bridge.images.tarstream import BadArchive, TarReader
from bridge.testing.images import Entry, directory, hardlink, symlink, tar

PLAIN = [
    directory("d"),
    Entry("d/empty"),
    Entry("d/one", b"x" * 512),
    Entry("d/odd", b"y" * 1025, pax={"SCHILY.xattr.user.a": "b"}),
    Entry("d/" + "long" * 60, b"z" * 3),
    hardlink("d/hard", "d/one"),
    symlink("d/soft", "odd"),
    Entry("d/.wh.gone"),
    Entry("./dotted", b"1" * 2_000_000),
]


def unpacked(data: bytes, top: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Unpack ``data`` below ``top``, which becomes the current directory; the log."""
    top.mkdir()
    monkeypatch.chdir(top)
    log: list[bytes] = []
    Extractor(max_entries=1000, max_bytes=1 << 30).run(TarReader(iter([data]), log.append))
    return b"".join(log)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def again(log: bytes, size: int) -> bytes:
    out: list[bytes] = []
    retar.again(pieces(log, size), retar.file_content, lambda piece: out.append(bytes(piece)))
    return b"".join(out)


@pytest.mark.root
@pytest.mark.parametrize("size", [1, 511, 512, 513, 1 << 20])
def test_byte_for_byte_however_the_log_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    data = tar(PLAIN)
    log = unpacked(data, tmp_path / "layer", monkeypatch)
    assert len(log) < len(data) // 10
    assert again(log, size) == data


@pytest.mark.root
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_rubbish_after_the_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: int) -> None:
    (tmp_path / "f").write_bytes(b"content")
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        archive.add(tmp_path / "f", "f")
    data = (tmp_path / "a.tar").read_bytes() + b"rubbish"
    assert again(unpacked(data, tmp_path / "layer", monkeypatch), 512) == data


@pytest.mark.root
def test_a_changed_file_gives_another_tar_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar(PLAIN)
    log = unpacked(data, tmp_path / "layer", monkeypatch)
    Path("d/one").write_bytes(b"X" * 512)
    assert again(log, 512) != data
    with Path("dotted").open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(BadArchive):
        again(log, 512)
    os.unlink("dotted")
    with pytest.raises(FileNotFoundError):
        again(log, 512)


@pytest.mark.root
def test_a_file_that_became_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = unpacked(tar([Entry("f", b"secret")]), tmp_path / "layer", monkeypatch)
    os.unlink("f")
    os.symlink("/etc/passwd", "f")
    with pytest.raises(OSError, match="symbolic links"):
        again(log, 512)
