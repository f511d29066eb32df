"""What becomes of directories: times, those that the archive does not list, those that hide something."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.images import extract
from bridge.images.extract import Extractor
from bridge.images.tarstream import TarReader
from bridge.testing.images import Entry, directory, symlink, tar

pytestmark = pytest.mark.root


def dated(name: str, mtime: float) -> Entry:
    return replace(directory(name), mtime=mtime)


def settled(entries: list[Entry], top: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bool], Extractor]:
    """Unpack below ``top``, which becomes the current directory: every path, and whether the archive lacks it."""
    top.mkdir()
    monkeypatch.chdir(top)
    extractor = Extractor(max_entries=1000, max_bytes=1 << 30)
    extractor.run(TarReader(iter([tar(entries)])))
    return {path.decode(): later for path, _, later in extractor.settled()}, extractor


def mtime(path: str) -> float:
    return os.lstat(path).st_mtime_ns / 1e9


def test_directories_keep_the_times_that_the_archive_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlisted = extract._UNLISTED // 10**9
    entries = [
        dated("a", 1000),
        dated("a/b", 2000.25),
        symlink("alias", "a"),
        Entry("alias/b/late", b"1"),
        dated("by-chance", unlisted),
        dated("before", -5),
        dated("twice", 1),
        Entry("a/later", b"2"),
        dated("twice", 3),
        Entry("forgotten/deeper/file", b"3"),
    ]
    found, extractor = settled(entries, tmp_path / "layer", monkeypatch)
    assert [mtime(name) for name in ("a", "a/b", "before", "twice")] == [1000, 2000.25, -5, 3]
    assert mtime("by-chance") == pytest.approx(unlisted)
    assert {name for name, later in found.items() if later} == {"", "forgotten", "forgotten/deeper"}
    assert extractor.totals.implicit == 3
    assert all(os.lstat(name or ".").st_atime_ns != extract._UNLISTED for name in found)
    assert extractor.totals.inodes == len(found)


def test_a_directory_counts_as_what_its_last_entry_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        Entry("early/file"),
        dated("early", 10),
        dated("gone", 20),
        Entry("gone", b"a file now"),
        dated("again", 30),
        Entry("again", b"a file"),
        dated("again", 50),
        Entry("again/file", b"1"),
        dated("./", 40),
    ]
    found, extractor = settled(entries, tmp_path / "layer", monkeypatch)
    assert mtime("early") == 10
    assert mtime(".") == 40
    assert mtime("again") == 50
    assert stat.S_ISREG(os.lstat("gone").st_mode)
    assert not any(found.values())
    assert not extractor.totals.exact
    assert extractor.totals.inodes == len(found)


def test_whiteouts_are_known_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        Entry(".wh.listed"),
        dated("listed", 10),
        Entry(".wh.unlisted"),
        Entry("unlisted/file"),
        Entry(".wh.file"),
        Entry("file", b"1"),
        directory("later"),
        Entry(".wh.later"),
        Entry(".wh.twice"),
        Entry(".wh.twice"),
    ]
    found, extractor = settled(entries, tmp_path / "layer", monkeypatch)
    assert extractor.totals.exact, "what a whiteout hides lies below, so nothing was repeated"
    for name in ("listed", "unlisted", "later"):
        assert os.getxattr(name, "trusted.overlay.opaque") == b"y", name
    assert stat.S_IMODE(os.lstat("unlisted").st_mode) == 0o755
    assert {name for name, later in found.items() if later} == {"", "unlisted"}
    assert stat.S_ISREG(os.lstat("file").st_mode)
    assert stat.S_ISCHR(os.lstat("twice").st_mode)
    assert extractor.totals.inodes == len(found)
