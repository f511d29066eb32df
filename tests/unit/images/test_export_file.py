"""The target of an export: complete under its name, or not there."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path

import pytest

from bridge.errors import AlreadyExists, InvalidRequest
from bridge.images.export_file import Archive, Folder, Target


def write(target: Target) -> None:
    target.add("small", b"1")
    os.write(target.begin(), b"22")
    target.end("blobs/big", 2)


@pytest.fixture(params=["unnamed", "hidden"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With files that have no name yet, and without."""
    if request.param == "hidden":
        real = os.open

        def lacking(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not here")
            return real(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", lacking)
    return str(request.param)


@pytest.mark.parametrize("replace", [False, True])
def test_an_archive_appears_when_it_is_complete(tmp_path: Path, file_system: str, replace: bool) -> None:
    path = tmp_path / "a.tar"
    target = Archive(path, replace=replace)
    write(target)
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == (0 if file_system == "unnamed" else 1)
    size = target.commit()
    target.discard()
    assert os.listdir(tmp_path) == ["a.tar"]
    assert path.stat().st_size == size
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        assert {m.name: archive.extractfile(m).read() for m in archive} == {"small": b"1", "blobs/big": b"22"}  # type: ignore[union-attr]


@pytest.mark.usefixtures("file_system")
def test_an_archive_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    target = Archive(tmp_path / "a.tar", replace=True)
    write(target)
    target.discard()
    target.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("file_system")
def test_what_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    late = Archive(path, replace=False)
    write(late)
    path.write_text("somebody's")
    with pytest.raises(AlreadyExists, match="--force"):
        Archive(path, replace=False)
    with pytest.raises(AlreadyExists, match="--force"):
        late.commit()
    late.discard()
    assert path.read_text() == "somebody's"
    assert os.listdir(tmp_path) == ["a.tar"]
    target = Archive(path, replace=True)
    write(target)
    target.commit()
    target.discard()
    assert tarfile.is_tarfile(path)
    assert os.listdir(tmp_path) == ["a.tar"]


def test_no_archive_over_a_directory_or_a_device(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is a directory"):
        Archive(tmp_path, replace=True)
    with pytest.raises(InvalidRequest, match="no regular file"):
        Archive(Path("/dev/null"), replace=True)
    with pytest.raises(FileNotFoundError):
        Archive(tmp_path / "absent/a.tar", replace=False)


def test_a_blob_of_more_than_8_gib_gets_a_header_that_says_so(tmp_path: Path) -> None:
    target = Archive(tmp_path / "a.tar", replace=False)
    size = (8 << 30) + 5
    os.lseek(target.begin(), size, os.SEEK_CUR)  # a hole
    target.end("big", size)
    target.add("after", b"!")
    target.commit()
    target.discard()
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [(m.name, m.size) for m in archive] == [("big", size), ("after", 1)]
    assert (tmp_path / "a.tar").stat().st_blocks < 100


def test_a_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "layout"
    path.mkdir()  # an empty one may be there
    target = Folder(path)
    write(target)
    assert os.listdir(path) == []
    assert target.commit() == 3
    target.discard()
    assert os.listdir(tmp_path) == ["layout"]
    assert (path / "small").read_bytes() == b"1"
    assert (path / "blobs/big").read_bytes() == b"22"
    with pytest.raises(AlreadyExists):
        Folder(path)


def test_a_directory_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    target = Folder(tmp_path / "layout")
    target.add("x", b"1")
    target.begin()
    target.discard()
    assert os.listdir(tmp_path) == []


def test_a_directory_that_was_filled_meanwhile_stays(tmp_path: Path) -> None:
    target = Folder(tmp_path / "layout")
    write(target)
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout/theirs").touch()
    with pytest.raises(AlreadyExists):
        target.commit()
    target.discard()
    assert os.listdir(tmp_path) == ["layout"]
    assert os.listdir(tmp_path / "layout") == ["theirs"]
