"""Directory watches: what wakes them, and directories that don't exist yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from bridge.host.inotify import DirectoryWatch


async def woken(watch: DirectoryWatch) -> bool:
    with anyio.move_on_after(5) as scope:
        await watch.wait_change()
    watch.drain()
    return not scope.cancelled_caught


async def quiet(watch: DirectoryWatch) -> bool:
    with anyio.move_on_after(0.05) as scope:
        await watch.wait_change()
    return scope.cancelled_caught


CHANGES: list[Callable[[Path], object]] = [
    lambda d: (d / "new").write_text("x"),
    lambda d: (d / "old").write_text("more"),
    lambda d: (d / "old").unlink(),
    lambda d: (d / "old").rename(d / "renamed"),
    lambda d: (d / "old").rename(d.parent / "out"),
    lambda d: (d / "old").chmod(0o755),
    lambda d: (d / "sub").mkdir(),
    lambda d: (d / "link").symlink_to("x"),
    lambda d: d.rename(d.parent / "away"),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_every_kind_of_change_wakes(tmp_path: Path, change: Callable[[Path], object]) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "old").write_text("x")
    with DirectoryWatch() as watch:
        watch.watch([directory])
        (directory / "old").read_text()
        list(directory.iterdir())
        assert await quiet(watch)
        change(directory)
        assert await woken(watch)
        assert await quiet(watch)


async def test_an_absent_directory_is_seen_coming(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    with DirectoryWatch() as watch:
        for step in (tmp_path / "a", tmp_path / "a" / "b", deep, deep / "file"):
            watch.watch([deep])
            watch.drain()  # a watch that was given up tells so
            step.mkdir()
            assert await woken(watch)


async def test_what_is_no_longer_wanted_is_not_watched(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with DirectoryWatch() as watch:
        watch.watch([tmp_path / "a", tmp_path / "b"])
        watch.watch([tmp_path / "b"])
        watch.drain()
        (tmp_path / "a" / "x").write_text("")
        assert await quiet(watch)
        (tmp_path / "b" / "x").write_text("")
        assert await woken(watch)


async def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with DirectoryWatch() as watch:
        watch.watch([tmp_path / "file" / "below"])
        (tmp_path / "file").unlink()
        assert await woken(watch)
