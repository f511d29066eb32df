"""Device nodes of this host: what a path is, and what /dev holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync

from bridge.errors import HostError, NotFound

# Not a container's business: its own pts, shm and mqueue instances are mounted there, and console is made by the runtime.
_LEFT_OUT = frozenset(("pts", "shm", "mqueue", "fd", "console", ".lxc", ".lxd-mounts", ".udev"))


@dataclass(frozen=True, slots=True)
class Node:
    """A device node: ``kind`` is "c" or "b", ``mode`` its permission bits."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


async def at(path: Path) -> list[Node]:
    """The node at ``path``, links followed, or every node below it when it is a directory.

    Raises NotFound when there is nothing, HostError when it holds no device.
    """
    return await run_sync(_at, path)


async def host() -> list[Node]:
    """Every device node of /dev that a privileged container gets."""
    return await run_sync(lambda: list(_below(Path("/dev"))))


def _at(path: Path) -> list[Node]:
    try:
        status = path.stat()
    except FileNotFoundError as exc:
        raise NotFound(f"device {path} does not exist") from exc
    except OSError as exc:
        raise HostError(f"device {path}: {exc.strerror}", errno=exc.errno) from exc
    found = list(_below(path)) if stat.S_ISDIR(status.st_mode) else [_node(str(path), status)]
    nodes = [node for node in found if node is not None]
    if not nodes:
        raise HostError(f"{path} is not a device")
    return nodes


def _below(directory: Path) -> Iterator[Node]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
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
        if node is not None:
            yield node


def _node(path: str, status: os.stat_result) -> Node | None:
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        return None
    device = status.st_rdev
    return Node(path, kind, os.major(device), os.minor(device), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
