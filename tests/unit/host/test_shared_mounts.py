"""What is mounted below a shared directory reaches a namespace that was copied before; what is beside it does not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from bridge.errors import HostError
from bridge.host import files, mounts, namespaces, shared_mounts, syscalls

pytestmark = pytest.mark.root
_CLONE_NEWNS = 0x20000


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    syscalls.mount(tmp_path, tmp_path, "", syscalls.MS_BIND)
    syscalls.mount("", tmp_path, "", syscalls.MS_PRIVATE)
    made = tmp_path / "pod"
    (made / "rootfs").mkdir(parents=True)
    yield made
    await mounts.unmount_tree(tmp_path)


async def seen_by_a_shim(directory: Path, mounted: Path) -> bool:
    """Whether a thread whose namespace was copied, and made a slave, before ``mounted`` was mounted sees it."""
    first, second = os.pipe(), os.pipe()

    def shim() -> bool:
        syscalls.unshare(_CLONE_NEWNS)
        syscalls.mount("", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
        os.write(first[1], b"x")
        os.read(second[0], 1)
        return f" {mounted} " in Path("/proc/thread-self/mountinfo").read_text()

    found: list[bool] = []

    async def run() -> None:
        found.append(await namespaces.in_own_thread(shim))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.to_thread.run_sync(os.read, first[0], 1)
        await files.mount_tmpfs(mounted, size=4096)
        os.write(second[1], b"x")
    for fd in (*first, *second):
        os.close(fd)
    return found[0]


async def test_a_mount_below_a_shared_directory_spreads(directory: Path) -> None:
    await shared_mounts.share(directory)
    assert await seen_by_a_shim(directory, directory / "rootfs")


async def test_without_it_nothing_spreads(directory: Path) -> None:
    assert not await seen_by_a_shim(directory, directory / "rootfs")


async def test_what_is_shared_already_stays_as_it_is(directory: Path) -> None:
    await shared_mounts.share(directory)
    before = mounts.read_mountinfo()
    await shared_mounts.share(directory)
    (directory / "below").mkdir()
    await shared_mounts.share(directory / "below")
    assert mounts.read_mountinfo() == before


async def test_what_is_no_directory(directory: Path) -> None:
    with pytest.raises(HostError, match=r"can't make .* a shared mount: No such file"):
        await shared_mounts.share(directory / "absent")
