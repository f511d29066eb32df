"""What unpacking takes in memory does not depend on how much there is to unpack."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from bridge.images.disk import remove_tree
from bridge.images.inherit import complete, copy_attributes
from bridge.images.settings import Limits
from bridge.images.unpack import FILES, Unpacked, Unpacker

pytestmark = pytest.mark.root

_CHUNK = 1 << 18
_MOST_MIB = 2.0
"""Of difference. Remembering the names of what is made took 5 MiB and more for the same archives."""


def header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Of an empty member. Not by tarfile, which would take longer than the unpacking."""
    fields = b"0000755\0" + b"0000000\0" * 2 + b"0" * 11 + b"\0" + b"14512220400\0"
    block = name.encode().ljust(100, b"\0") + fields + b" " * 8 + kind + link.encode().ljust(100, b"\0") + b"ustar\x0000"
    return (block[:148] + b"%06o\0 " % sum(block) + block[156:]).ljust(512, b"\0")


def entries(count: int) -> Iterator[bytes]:
    """``count`` of each kind that something could be remembered of."""
    for number in range(count):
        yield header(f"usr/share/listed/directory-{number}", tarfile.DIRTYPE)
        yield header(f"usr/share/unlisted/directory-{number}/file")
        yield header(f"var/lib/gone/.wh.file-number-{number}")
        yield header(f"var/lib/one-directory/file-number-{number}")
        yield header(f"var/lib/links/file-number-{number}", tarfile.LNKTYPE, f"var/lib/one-directory/file-number-{number}")
    yield bytes(1024)


class Watch:
    """The most memory that any unpacking child of this process was seen to have had, in MiB."""

    def __init__(self) -> None:
        self.mib = 0.0

    async def run(self) -> None:
        while True:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                try:
                    if "unpack_child" in Path(f"/proc/{pid}/cmdline").read_text():
                        status = Path(f"/proc/{pid}/status").read_text()
                        self.mib = max(self.mib, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
                except (OSError, IndexError):  # it ended
                    continue
            await anyio.sleep(0.01)


async def tar(count: int) -> AsyncGenerator[bytes]:
    data = bytearray()
    for each in entries(count):
        data += each
        if len(data) >= _CHUNK:
            yield bytes(data)
            data.clear()
    yield bytes(data)


async def unpacked(directory: Path, count: int) -> tuple[Unpacked, float]:
    watch = Watch()
    async with anyio.create_task_group() as group:
        group.start_soon(watch.run)
        found = await Unpacker(Limits()).unpack(directory, tar(count), None)
        group.cancel_scope.cancel()
    return found, watch.mib


async def test_forty_thousand_entries_take_no_more_memory_than_five_thousand() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home:  # a disk would only make it slow
        few, least = await unpacked(Path(home, "few"), 1000)
        many, most = await unpacked(Path(home, "many"), 8_000)
        assert (few.implicit, many.implicit) == (1010, 8_010)
        assert many.exact
        assert least > 1, "the child was not seen"
        assert most - least < _MOST_MIB, (least, most)
        implicit = many.implicit
        lower = Path(home, "few", FILES)
        os.chmod(lower / "usr/share/unlisted/directory-7", 0o711)
        await anyio.to_thread.run_sync(copy_attributes, Path(home, "many"), implicit, [lower])
        assert (Path(home, "many", FILES) / "usr/share/unlisted/directory-7").stat().st_mode & 0o777 == 0o711
        await anyio.to_thread.run_sync(complete, Path(home, "many"), implicit)
        for name in ("few", "many"):
            await remove_tree(Path(home, name))
