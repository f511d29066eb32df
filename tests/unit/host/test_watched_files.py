"""Files kept up to date by inotify: what a request sees, when it costs a look, and what can't stop it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from bridge.host import watched_files
from bridge.host.watched_files import FoundFile, WatchedFiles, look


@dataclass
class Texts:
    files: tuple[FoundFile, ...] = ()
    faults: Mapping[Path, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [file.path.name for file in self.files]


class Parser:
    """Counts how often files were read."""

    def __init__(self) -> None:
        self.looks = -1  # the first is of no files, for the value to begin with

    def __call__(self, files: Sequence[FoundFile]) -> Texts:
        self.looks += 1
        return Texts(tuple(files), {file.path: file.fault for file in files if file.fault})


async def test_a_file_written_just_before_is_seen_and_an_unchanged_directory_costs_no_look(tmp_path: Path) -> None:
    parse = Parser()
    async with WatchedFiles.open([tmp_path / "a", tmp_path / "b"], (".json",), parse) as files:
        assert files.value.names == []
        assert (await files.fresh()).names == []
        assert parse.looks == 1
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "z.json").write_text("1")
        assert (await files.fresh()).names == ["z.json"]
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "y.json").write_text("2")
        (tmp_path / "a" / "x.yaml").write_text("3")
        (tmp_path / "a" / "dir.json").mkdir()
        found = await files.fresh()
        assert [(file.path.name, file.rank, file.data) for file in found.files] == [("y.json", 0, b"2"), ("z.json", 1, b"1")]
        await files.fresh()  # that an ancestor needs no watch any more is an event too
        looks = parse.looks
        for _ in range(5):
            await files.fresh()
        assert parse.looks == looks
        (tmp_path / "a" / "y.json").unlink()
        assert (await files.fresh()).names == ["z.json"]


async def test_a_look_again_finds_what_nothing_tells_of(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target").write_text("old")
    (tmp_path / "d" / "link.json").symlink_to(tmp_path / "far" / "target")
    async with WatchedFiles.open([tmp_path / "d"], (".json",), Parser()) as files:
        (tmp_path / "far" / "target").write_text("new")
        assert (await files.fresh()).files[0].data == b"old"
        assert (await files.fresh(again=True)).files[0].data == b"new"


async def test_the_task_refreshes_and_logs_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with WatchedFiles.open([tmp_path], (".json",), Parser()) as files:
        async with anyio.create_task_group() as group:
            group.start_soon(files.keep)
            (tmp_path / "fifo.json").symlink_to("/nowhere/at/all")
            with anyio.fail_after(5):
                while not files.value.names:
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert caplog.messages == [f"{tmp_path / 'fifo.json'}: is a link to nowhere"]


async def test_callers_at_once_share_one_look_and_none_sees_an_old_value(tmp_path: Path) -> None:
    parse = Parser()
    async with WatchedFiles.open([tmp_path], (".json",), parse) as files:
        (tmp_path / "one.json").write_text("1")
        seen: list[list[str]] = []

        async def ask() -> None:
            seen.append((await files.fresh()).names)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
        assert seen == [["one.json"]] * 10
        assert parse.looks == 2


async def test_without_inotify_each_request_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(watched_files, "DirectoryWatch", used_up)
    async with WatchedFiles.open([tmp_path], (".json",), Parser()) as files:
        (tmp_path / "one.json").write_text("1")
        assert (await files.fresh()).names == ["one.json"]
        (tmp_path / "two.json").write_text("2")
        assert (await files.fresh()).names == ["one.json", "two.json"]
        await files.keep()  # has nothing to wait for


async def test_without_directories_nothing_is_done() -> None:
    parse = Parser()
    async with WatchedFiles.open([], (".json",), parse) as files:
        await files.fresh(again=True)
        await files.keep()
    assert parse.looks == 0


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((4 << 20) + 1)


@pytest.mark.parametrize(("make", "fault"), [(_fifo, "is not a regular file"), (_large, "is larger than 4194304 bytes")])
def test_what_is_no_small_file_is_a_fault(tmp_path: Path, make: Callable[[Path], None], fault: str) -> None:
    make(tmp_path / "x.json")
    assert look([tmp_path], (".json",)) == (FoundFile(tmp_path / "x.json", 0, fault=fault),)


def test_a_directory_that_is_none_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert look([tmp_path / "file", tmp_path / "absent"], (".json",)) == ()
