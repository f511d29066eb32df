"""Device nodes of this host: what a path is, and what /dev holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from bridge.errors import HostError, NotFound, TimedOut

# Not a container's business: its own pts, shm and mqueue instances are mounted there, and console is made by the runtime.
_LEFT_OUT = frozenset(("pts", "shm", "mqueue", "fd", "console", ".lxc", ".lxd-mounts", ".udev"))


@dataclass(frozen=True, slots=True)
class Node:
    """A device node or fifo: ``kind`` is "c", "b" or "p" (whose numbers are 0), ``mode`` its permission bits."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


async def at(path: Path, *, timeout: float) -> list[Node]:
    """The node or fifo at ``path``, links followed, or every device node below it when it is a directory.

    Raises NotFound when there is nothing, HostError when it holds no device, TimedOut when the look takes longer than
    ``timeout`` s; then a worker thread is kept until the kernel lets it go, so a path that may lie on a network mount is for
    bridge.host.lookups first.
    """
    try:
        with anyio.fail_after(timeout):
            return await run_sync(_at, path, abandon_on_cancel=True)
    except TimeoutError as exc:
        raise TimedOut(f"{path} did not answer within {timeout:g} s") from exc


async def exactly(path: Path) -> Node:
    """The node or fifo at ``path``, links not followed. Raises NotFound, HostError when it is none."""
    return await run_sync(_exactly, path)


async def host() -> list[Node]:
    """Every device node of /dev that a privileged container gets."""
    return await run_sync(lambda: list(_below(Path("/dev"))))


def _at(path: Path) -> list[Node]:
    status = _status(path, follow=True)
    if stat.S_ISDIR(status.st_mode):
        nodes = list(_below(path))
    else:
        node = _node(str(path), status)
        nodes = [] if node is None else [node]
    if not nodes:
        raise HostError(f"{path} is not a device" + (", nor is anything below it" if stat.S_ISDIR(status.st_mode) else ""))
    return nodes


def _exactly(path: Path) -> Node:
    node = _node(str(path), _status(path, follow=False))
    if node is None:
        raise HostError(f"{path} is not a device")
    return node


def _status(path: Path, *, follow: bool) -> os.stat_result:
    try:
        return path.stat(follow_symlinks=follow)
    except FileNotFoundError as exc:
        raise NotFound(f"device {path} does not exist") from exc
    except OSError as exc:
        raise HostError(f"device {path}: {exc.strerror}", errno=exc.errno) from exc


def _below(directory: Path) -> Iterator[Node]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return  # unplugged between the two looks
    except OSError as exc:
        raise HostError(f"{directory}: {exc.strerror}", errno=exc.errno) from exc
    for entry in entries:
        if entry.name in _LEFT_OUT:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path))
            continue
        try:
            node = _node(entry.path, entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue  # it went away between the two looks
        # A fifo is some program's own, and number 0:0 is an overlay's mark for "deleted".
        if node is not None and node.kind != "p" and (node.major, node.minor) != (0, 0):
            yield node


def _node(path: str, status: os.stat_result) -> Node | None:
    mode = status.st_mode
    kind = "c" if stat.S_ISCHR(mode) else "b" if stat.S_ISBLK(mode) else "p" if stat.S_ISFIFO(mode) else ""
    if not kind:
        return None
    major, minor = (0, 0) if kind == "p" else (os.major(status.st_rdev), os.minor(status.st_rdev))
    return Node(path, kind, major, minor, stat.S_IMODE(mode), status.st_uid, status.st_gid)
