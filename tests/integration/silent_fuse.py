"""A file system whose server does not answer, as a network mount whose other side is gone: FUSE by hand, from /dev/fuse."""

from __future__ import annotations

import os
import select
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bridge.host import syscalls

# include/uapi/linux/fuse.h: len, opcode, unique, nodeid, uid, gid, pid, padding.
_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_INIT, _GETATTR = 26, 3
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
# attr_valid, attr_valid_nsec, dummy, then fuse_attr.
_ATTR_OUT = struct.Struct("=QIIQQQQQQIIIIIIIIII")


class Silent:
    """One such mount. It takes requests and doesn't answer them until ``answers`` is set: who asks can't even be killed."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.answers = threading.Event()
        self.asked = threading.Event()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._stop, self._stopper = os.pipe()
        syscalls.mount("silent", target, "fuse", 0, f"fd={self._fd},rootmode=40000,user_id=0,group_id=0")
        self._thread = threading.Thread(target=self._serve, name="silent fuse")
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while select.select([self._fd, self._stop], [], [])[0] == [self._fd]:
                request = os.read(self._fd, 1 << 20)
                _, opcode, unique, *_ = _IN.unpack_from(request)
                if opcode == _INIT:
                    self._reply(unique, _INIT_OUT.pack(7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0))
                elif opcode == _GETATTR:
                    self.asked.set()
                    if self.answers.wait():
                        self._reply(unique, _ATTR_OUT.pack(0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0))

    def _reply(self, unique: int, body: bytes) -> None:
        with suppress(FileNotFoundError):  # whoever asked has gone
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), 0, unique) + body)

    def end(self) -> None:
        """Unmount, and end the connection: whoever still has the mount gets an error from it."""
        self.answers.set()
        syscalls.umount(self.target, syscalls.MNT_DETACH)
        os.write(self._stopper, b"x")
        self._thread.join(5)
        for fd in (self._fd, self._stop, self._stopper):
            os.close(fd)
        assert not self._thread.is_alive()


@contextmanager
def silent_mount(target: Path) -> Iterator[Silent]:
    """A mount at the new directory ``target`` that doesn't answer."""
    target.mkdir()
    made = Silent(target)
    try:
        yield made
    finally:
        made.end()
