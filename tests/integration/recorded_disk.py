"""A disk whose every write and flush is recorded, and disks as they were when the power went at any point of that record.

A loop device needs a file; this one is a file of a FUSE server of ours, so the server sees what a disk would see, in order: the writes of
the real kernel's real file system, and its cache flushes. (The kernel's own way, dm-log-writes, needs device-mapper.)

What was written before a flush is on the disk for good. Of what came after the last flush a disk may have kept anything: all of it,
nothing, some of it in any order, a part of a write. ``Recording.image`` makes such a disk.
"""

from __future__ import annotations

import bisect
import errno
import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.host import syscalls

SECTOR = 512
# include/uapi/linux/fuse.h: len, opcode, unique, nodeid, uid, gid, pid, padding.
_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_ATTR_OUT = struct.Struct("=QIIQQQQQQIIIIIIIIII")
_OPEN_OUT = struct.Struct("=QII")
_READ_IN = struct.Struct("=QQIIQII")  # and of a write: handle, offset, size, flags, lock owner, flags, padding
_FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC = 2, 3, 4, 14, 15, 16, 18, 20
_FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 25, 26, 36, 42
_ASYNC_READ, _BIG_WRITES = 1, 1 << 5
_MAX_WRITE = 1 << 17
_RECORD = struct.Struct("=QI")
_BARRIER = (1 << 64) - 1


@dataclass(frozen=True)
class Write:
    """What went to the disk at ``offset``."""

    offset: int
    data: bytes


class Recording:
    """The disk at first, and the writes since; None stands for a flush that was over."""

    def __init__(self, first: bytes, log: bytes) -> None:
        self._first = first
        self.events: list[Write | None] = []
        self._places: list[int] = []
        at = 0
        while at < len(log):
            self._places.append(at)
            offset, size = _RECORD.unpack_from(log, at)
            at += _RECORD.size
            self.events.append(None if offset == _BARRIER else Write(offset, log[at : at + size]))
            at += size

    def event_at(self, size: int) -> int:
        """How many events were recorded when the log had ``size`` bytes."""
        return bisect.bisect_left(self._places, size)

    def image(self, path: Path, cut: int, kept: random.Random | None, *, lost: float = 0.0) -> None:
        """Write to ``path`` a disk whose power went before event ``cut``.

        ``kept`` None: it had kept all until then. Else it chooses, of the writes since the last flush, those that were kept,
        whole or in part, and their order. A disk that lies about its flushes has ``lost`` a part of the others too.
        """
        disk = bytearray(self._first)
        flushed = max((n for n in range(cut) if self.events[n] is None), default=0)
        for event in self.events[: flushed if kept else cut]:
            if event is not None and not (lost and kept and kept.random() < lost):
                disk[event.offset : event.offset + len(event.data)] = event.data
        if kept is not None:
            loose = [event for event in self.events[flushed:cut] if event is not None]
            for event in kept.sample(loose, kept.randint(0, len(loose))):
                size = len(event.data) if kept.random() < 0.7 else kept.randrange(0, len(event.data), SECTOR)
                disk[event.offset : event.offset + size] = event.data[:size]
        with path.open("wb") as file:
            zero = bytes(1 << 16)
            for at in range(0, len(disk), len(zero)):
                if (piece := disk[at : at + len(zero)]) != zero:
                    file.seek(at)
                    file.write(piece)
            file.truncate(len(disk))


class _Server:
    """Serves the one file, which is the root of its file system, from memory."""

    def __init__(self, fd: int, first: bytes, log: int) -> None:
        self._fd = fd
        self._disk = bytearray(first)
        self._log = log

    def run(self) -> None:
        """Until it is unmounted."""
        while True:
            try:
                request = os.read(self._fd, _MAX_WRITE + 4096)
            except OSError as exc:
                if exc.errno == errno.ENODEV:
                    return
                raise
            _, opcode, unique, *_ = _IN.unpack_from(request)
            if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                continue
            body, error = self._answer(opcode, request[_IN.size :])
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), -error, unique) + body)

    def _answer(self, opcode: int, body: bytes) -> tuple[bytes, int]:
        if opcode == _INIT:
            return _INIT_OUT.pack(7, 31, _MAX_WRITE, _ASYNC_READ | _BIG_WRITES, 16, 12, _MAX_WRITE, 1, 0, 0, 0), 0
        if opcode in (_GETATTR, _SETATTR):
            size = len(self._disk)
            return _ATTR_OUT.pack(3600, 0, 0, 1, size, size // SECTOR, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0), 0
        if opcode == _OPEN:
            return _OPEN_OUT.pack(0, 0, 0), 0
        if opcode == _READ:
            _, offset, size, *_ = _READ_IN.unpack_from(body)
            return bytes(self._disk[offset : offset + size]), 0
        if opcode == _WRITE:
            _, offset, size, *_ = _READ_IN.unpack_from(body)
            data = body[_READ_IN.size : _READ_IN.size + size]
            self._disk[offset : offset + size] = data
            self._record(offset, data)
            return struct.pack("=II", size, 0), 0
        if opcode == _FSYNC:
            self._record(_BARRIER, b"")
            return b"", 0
        return b"", 0 if opcode in (_FLUSH, _RELEASE) else errno.ENOSYS

    def _record(self, offset: int, data: bytes) -> None:
        os.write(self._log, _RECORD.pack(offset, len(data)) + data)


def make_file_system(path: Path, megabytes: int) -> None:
    """An empty ext4 with a small journal."""
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m0", "-b4096", "-Jsize=4", "-E", options, "-N", "4096", path], check=True)


@contextmanager
def mounted(disk: Path, target: Path) -> Iterator[None]:
    """The ext4 in the file ``disk`` at ``target``; the loop device goes with it."""
    subprocess.run(["mount", "-t", "ext4", "-o", "loop,errors=remount-ro", disk, target], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True, capture_output=True)


@contextmanager
def recording(first: Path, directory: Path) -> Iterator[tuple[Path, Path]]:
    """A disk that begins as the file ``first``: the file to mount, and the log that will hold the record once this is left."""
    disk, log = directory / "disk", directory / "log"
    disk.touch()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        syscalls.mount("recorded", disk, "fuse", 0, f"fd={fd},rootmode=100600,user_id=0,group_id=0,allow_other")
        command = [sys.executable, __file__, str(fd), str(first), str(log)]
        server = subprocess.Popen(command, pass_fds=[fd], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
    finally:
        os.close(fd)
    try:
        yield disk, log
    finally:
        syscalls.umount(disk, syscalls.MNT_DETACH)
        try:
            server.wait(2)
        except subprocess.TimeoutExpired:  # a process elsewhere has got a copy of the mount
            server.kill()
            server.wait()


if __name__ == "__main__":
    _Server(int(sys.argv[1]), Path(sys.argv[2]).read_bytes(), os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)).run()
