"""Labels on whole trees, by the process that sets them. Files can hold labels also where the kernel has no SELinux."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.errors import HostError, TimedOut
from bridge.host import mounts, relabel
from bridge.host.selinux import ATTRIBUTE

pytestmark = pytest.mark.root
LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def label_of(path: Path) -> str:
    try:
        return os.getxattr(path, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0").decode()
    except OSError:
        return ""


async def run(path: Path, *, timeout: float = 20, trust_top: bool = False) -> int:
    fd = os.open(path, os.O_PATH)
    try:
        return await relabel.tree(fd, LABEL, str(path), timeout=timeout, trust_top=trust_top)
    finally:
        os.close(fd)


@pytest.fixture
async def top(tmp_path: Path) -> AsyncIterator[Path]:
    """A tree with directories, files, links in and out of it, a pipe; beside it what must not be touched."""
    made = tmp_path / "top"
    for name in ("a/b/c", "empty", "mounted"):
        (made / name).mkdir(parents=True)
    for name in ("a/one", "a/b/two", "a/b/c/\udcffodd\nname"):
        (made / name).write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("x")
    (made / "out").symlink_to("../outside")
    (made / "a/file-out").symlink_to("../../outside/file")
    (made / "in").symlink_to("a/one")
    os.mkfifo(made / "pipe")
    yield made
    await mounts.unmount_tree(tmp_path)


def everything(top: Path) -> list[Path]:
    return [top, *top.rglob("*")]


async def test_all_below_is_labelled_and_nothing_that_links_lead_to(top: Path) -> None:
    assert await run(top) == len(everything(top))
    assert {label_of(path) for path in everything(top)} == {LABEL}
    assert {label_of(path) for path in everything(top.parent / "outside")} == {""}


async def test_what_is_right_already_is_left_and_what_is_new_is_added(top: Path) -> None:
    await run(top)
    assert await run(top) == 0
    (top / "a/new").write_text("x")
    assert await run(top, trust_top=True) == 0
    assert await run(top) == 1
    assert label_of(top / "a/new") == LABEL


async def test_one_file(top: Path) -> None:
    assert await run(top / "a/one") == 1
    assert (label_of(top / "a/one"), label_of(top / "a")) == (LABEL, "")


async def test_what_is_mounted_below_is_not_entered(top: Path) -> None:
    outside = top.parent / "outside"
    await mounts.bind(outside, top / "mounted")  # of the same file system: its device number tells nothing
    await run(top)
    assert {label_of(path) for path in everything(outside)} == {""}
    assert label_of(top / "a/b/two") == LABEL


async def test_a_read_only_file_system_keeps_its_labels(top: Path, caplog: pytest.LogCaptureFixture) -> None:
    await mounts.bind(top / "a", top / "mounted", read_only=True)
    with caplog.at_level(logging.INFO):
        assert await run(top / "mounted") == 0
    assert "read-only" in caplog.text


async def test_a_file_system_without_labels_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert await run(Path("/proc/self/net")) == 0
    assert "no SELinux labels" in caplog.text


async def test_the_deadline_holds_and_the_top_is_not_labelled_before_the_end(top: Path) -> None:
    with pytest.raises(TimedOut):
        await run(top, timeout=0.001)
    assert label_of(top) == ""


async def test_what_can_t_be_labelled_names_the_file(top: Path) -> None:
    fd = os.open(top / "a/b/c", os.O_PATH)
    try:
        with pytest.raises(HostError, match=r"/a/b/c/.*\)$"):
            await relabel.tree(fd, "x" * 66000, "it", timeout=20)  # longer than any attribute
    finally:
        os.close(fd)
    assert label_of(top / "a/b/c") == ""
