"""Binding a unix socket so that a dead server's socket is replaced and a living one's never is."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import stat
from pathlib import Path

from bridge.errors import AlreadyExists, ConfigError, HostError

BACKLOG = 128
_PATH_LIMIT = 107  # bytes: sockaddr_un(7), without the closing zero


@dataclasses.dataclass(slots=True)
class Bound:
    """A bound socket and the inode it made, so that only that one is ever removed."""

    socket: socket.socket
    path: Path
    inode: int

    def close(self) -> None:
        """Close the socket and remove its file, unless another server has replaced it. Repeatable."""
        self.socket.close()
        try:
            if self.path.stat(follow_symlinks=False).st_ino == self.inode:
                self.path.unlink()
        except FileNotFoundError:
            pass


def bind(path: Path, *, mode: int, group: str = "") -> Bound:
    """Bind ``path``, with permission bits ``mode``, for ``group`` ("": root's); missing parents are made (0755). Not listening yet.

    Raises ConfigError when the path can't be a socket's (relative, too long, something else is there) or there is no such
    group, AlreadyExists when a server answers on it, HostError when the system refuses.
    """
    if not path.is_absolute():
        raise ConfigError(f"socket path {path} is not absolute")
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise ConfigError(f"socket path {path} is longer than {_PATH_LIMIT} bytes, the system's limit")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        return _bound(path, mode, group)
    except LookupError as exc:
        raise ConfigError(f"server.socket_group: there is no group {group!r} here") from exc
    except OSError as exc:
        raise HostError(f"can't bind {path}: {exc.strerror or exc}", errno=exc.errno) from exc


def _bound(path: Path, mode: int, group: str) -> Bound:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        # Nobody can connect before listen(), so the moment with the umask's bits does no harm.
        if group:
            shutil.chown(path, group=group)
        path.chmod(mode)
        return Bound(sock, path, path.stat().st_ino)
    except BaseException:
        sock.close()
        raise


def _clear(path: Path) -> None:
    """Remove a socket that nobody serves any more."""
    try:
        kind = path.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"{path} exists and is not a socket; remove it or choose another path")
    if _answers(path):
        raise AlreadyExists(f"another server answers on {path}")
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        probe.connect(os.fspath(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except BlockingIOError:
        return True  # its queue is full: it lives, and is busy
    finally:
        probe.close()
    return True
