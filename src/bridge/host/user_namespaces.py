"""User namespaces. The kernel lets no process of several threads make or enter one, so a small helper process does.

The helper is util-linux's unshare(1) running cat(1): its first byte of output says that the namespaces are there, and it ends
with its input, so that it can't outlive this process either. It takes 2 ms; a Python process would take 9.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from bridge.errors import HostError, InvalidRequest
from bridge.host import process, syscalls
from bridge.host.sysctls import Sysctl, field_of

_OPTIONS = {
    syscalls.CLONE_NEWUSER: "--user",
    syscalls.CLONE_NEWNET: "--net",
    syscalls.CLONE_NEWIPC: "--ipc",
    syscalls.CLONE_NEWUTS: "--uts",
}
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class IdRange:
    """One line of uid_map: ``length`` ids from ``inside`` on are ``outside`` and following on the host."""

    inside: int
    outside: int
    length: int


@dataclass(frozen=True, slots=True)
class IdMaps:
    """The mappings of a user namespace."""

    uids: Sequence[IdRange]
    gids: Sequence[IdRange]


@contextmanager
def held(flags: int, maps: IdMaps) -> Iterator[Path]:
    """A new user namespace with ``maps``, and with it the other CLONE_NEW* in ``flags``, which it owns.

    Yields the /proc directory of the helper that holds them while the block runs. Blocks for milliseconds: call it in a worker
    thread. Raises HostError (the kernel refuses the namespaces or the mapping), TimedOut.
    """
    options = [option for flag, option in _OPTIONS.items() if (flags | syscalls.CLONE_NEWUSER) & flag]
    with process.held(["unshare", *options, "--", "cat"], timeout=_TIMEOUT) as pid:
        directory = Path(f"/proc/{pid}")
        for name, ranges in (("uid_map", maps.uids), ("gid_map", maps.gids)):
            try:
                (directory / name).write_text("".join(f"{one.inside} {one.outside} {one.length}\n" for one in ranges))
            except OSError as exc:
                raise HostError(f"the kernel refuses the {name} {list(ranges)}: {exc.strerror}", errno=exc.errno) from exc
        yield directory


async def open_temporary(maps: IdMaps) -> int:
    """A descriptor of a user namespace that exists for the sake of its mapping; the caller closes it. Raises HostError, TimedOut."""

    def make() -> int:
        with held(syscalls.CLONE_NEWUSER, maps) as directory:
            return os.open(directory / "ns/user", os.O_RDONLY | os.O_CLOEXEC)

    return await anyio.to_thread.run_sync(make)


async def write_sysctl(user: Path, ipc: Path, item: Sysctl) -> bool:
    """Set a sysctl of an IPC namespace as the root of the user namespace that owns it; both are pins. One more helper.

    Since Linux 6.9 nobody else may. Before, only the host's root may: then False is returned. Raises InvalidRequest, HostError.
    """
    argv = ["nsenter", f"--user={user}", f"--ipc={ipc}", "--setuid=0", "--setgid=0", "--", "tee", "--", str(item.path)]
    done = await process.run(argv, input=item.value.encode(), timeout=_TIMEOUT)
    if not done.returncode:
        return True
    if b"Permission denied" in done.stderr:
        return False
    said = done.stderr.decode(errors="replace").strip()
    raise InvalidRequest(f"the value {item.value!r} can't be set: {said}", field=field_of(item.key))
