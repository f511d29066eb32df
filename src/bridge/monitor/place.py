"""The monitor's place: its socket and the lock beside it. Whoever deletes them can't make it unreachable: it puts them there again.

A socket that was deleted can't be connected to any more, while those who are connected notice nothing; a server that is started then
would find nobody, and the containers' output and exits would be out of its reach.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

from bridge.errors import HostError, Unavailable

TAKEN = 3
"""Exit code of a monitor whose place is another's."""


class Place:
    """``lock`` and ``listener`` are the descriptors that hold ``path``; the place owns them."""

    def __init__(self, path: Path, lock: int, listener: socket.socket) -> None:
        self.path = path
        self.lock = lock
        self.listener = listener
        self._socket = _identity(path)

    @classmethod
    def take(cls, path: Path) -> Place:
        """Become the only monitor at ``path``. Raises Unavailable when there is one, HostError."""
        return cls(path, *_listen(path, None))

    def is_held(self) -> bool:
        """Whether socket and lock are still where they were put. Blocks for a moment."""
        return self._socket is not None and _identity(self.path) == self._socket and self._locked()

    def take_again(self) -> None:
        """Make what was deleted anew; nobody who is connected notices. Raises Unavailable when another monitor came first, HostError."""
        lock, listener = _listen(self.path, self.lock if self._locked() else None)
        if lock != self.lock:
            os.close(self.lock)
        self.listener.close()
        self.lock, self.listener = lock, listener
        self._socket = _identity(self.path)

    def leave(self) -> None:
        """Take the socket away, unless it is another's by now, and let go of the lock."""
        if self._socket is not None and _identity(self.path) == self._socket:
            self.path.unlink(missing_ok=True)
        os.close(self.lock)

    def _locked(self) -> bool:
        held = os.fstat(self.lock)
        return _identity(_lock_file(self.path)) == (held.st_dev, held.st_ino)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lock_file(path: Path) -> Path:
    return Path(f"{path}.lock")


def _listen(path: Path, held: int | None) -> tuple[int, socket.socket]:
    """A lock's descriptor (``held`` if that is given) and a socket that listens at ``path``."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(_lock_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if held is None else held
    except OSError as exc:
        raise HostError(f"can't lock {path}: {exc.strerror}", errno=exc.errno) from exc
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
    except OSError as exc:
        listener.close()
        if lock != held:
            os.close(lock)
        if exc.errno == errno.EWOULDBLOCK:
            raise Unavailable(f"another monitor serves {path}") from exc
        raise HostError(f"can't listen on {path}: {exc}", errno=exc.errno) from exc
    return lock, listener
