"""Namespaces without a process: unshared in a short-lived thread and kept alive by bind mounts ("pins").

A pin is an empty file with the namespace's nsfs inode mounted on it, as ``ip netns`` makes them. No mount is put on the
directory itself and its propagation stays as it is: where the host's mounts are shared (systemd), agents that
mount the directory with HostToContainer propagation see the pins come and go; where they are private, nothing
propagates. Either way ``remove`` frees the namespace everywhere, because unlinking the file makes the kernel drop what
any other mount namespace still has mounted on it (vfs_unlink → detach_mounts, Linux ≥ 3.18).

A network pin may live elsewhere (``net_pin``), in practice /run/netns: there ``ip netns exec`` and network agents in
containers look for it. That directory is made a shared mount first, as ``ip netns`` does, for otherwise a later ``ip
netns add`` would bind it over itself, pins included, and no pin could be unlinked (EBUSY) any more.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import operator
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import anyio

from bridge import log
from bridge.errors import BridgeError, HostError, InvalidRequest, NotFound
from bridge.host import namespace_pins, syscalls, user_namespaces
from bridge.host import sysctls as pod_sysctls
from bridge.host.sysctls import Sysctl
from bridge.host.user_namespaces import IdMaps

T = TypeVar("T")
_logger = log.get("namespaces")

KINDS: Mapping[str, int] = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
}
"""Every kind of pin this module may find in a directory, with its clone flag."""

_HOSTNAME_MAX = 64  # __NEW_UTS_LEN
_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), include/uapi/linux/nsfs.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_IFREQ = struct.Struct("16sH22x")


async def create(
    directory: Path,
    *,
    net: bool,
    ipc: bool,
    uts: bool,
    hostname: str,
    sysctls: Mapping[str, str],
    lo_up: bool = True,
    net_pin: Path | None = None,
    user: IdMaps | None = None,
) -> Mapping[str, Path]:
    """Make the namespaces asked for and pin them; returns the pin of each, ``{"net": directory/"net", …}``.

    With ``user`` a user namespace with these mappings is made first, pinned as "user", and owns the others (one helper process).

    ``hostname`` is set in a new UTS namespace (at most 64 bytes; "" leaves the host's). ``sysctls`` are set at once,
    except those of one interface (``net.ipv4.conf.eth0.…``): see ``set_interface_sysctls``. With ``net_pin`` the network
    namespace is pinned there, and ``directory/net`` is a symlink to it for ``remove``. Raises InvalidRequest (a sysctl
    or the hostname) or HostError; after any failure, or cancellation before the end, nothing is left.
    """
    kinds = [kind for kind, wanted in (("net", net), ("ipc", ipc), ("uts", uts), ("user", user is not None)) if wanted]
    if uts and len(hostname.encode()) > _HOSTNAME_MAX:
        raise InvalidRequest(f"has {len(hostname.encode())} bytes, the kernel takes {_HOSTNAME_MAX}", field="config.hostname")
    settings = pod_sysctls.check(sysctls, kinds)
    if not kinds:
        return {}
    pins = {kind: directory / kind for kind in kinds}
    if net and net_pin is not None:
        pins["net"] = net_pin
    made = False

    def make() -> None:
        nonlocal made
        _make(directory, pins, user, lambda: _set_up(hostname if uts else "", settings, lo_up=net and lo_up, owned=user is not None))
        made = True

    try:
        await in_own_thread(make)
        if user is not None:
            await _write_owned(pins, [item for item in settings if item.namespace == "ipc"])
    except (asyncio.CancelledError, BridgeError):
        if made:
            await in_own_thread(lambda: _undo(directory))
        raise
    return pins


async def _write_owned(pins: Mapping[str, Path], items: Sequence[Sysctl]) -> None:
    """Set ``items`` of an IPC namespace that a user namespace owns."""

    def as_host_root(item: Sysctl) -> None:
        fd = open_pin(pins["ipc"], "ipc")
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWIPC)
        finally:
            os.close(fd)
        pod_sysctls.write(item)

    for item in items:
        if not await user_namespaces.write_sysctl(pins["user"], pins["ipc"], item):
            await in_own_thread(functools.partial(as_host_root, item))


async def remove(directory: Path) -> None:
    """Unmount and unlink every pin of ``directory``, and the directory if it is then empty. Absent means success."""
    try:
        await anyio.to_thread.run_sync(namespace_pins.remove, directory, KINDS)
    except OSError as exc:
        raise HostError(f"namespaces in {directory} can't be removed: {exc}", errno=exc.errno) from exc


async def set_interface_sysctls(pins: Mapping[str, Path], sysctls: Mapping[str, str]) -> None:
    """Set those ``sysctls`` that name one interface; call it after the network plugins made the interfaces.

    Costs nothing when there are none. Raises InvalidRequest (unknown interface or key, refused value) or HostError.
    """
    late = [item for item in pod_sysctls.check(sysctls, pins) if item.names_interface]
    if late:

        def write() -> None:
            for item in late:
                pod_sysctls.write(item)

        await run_in_network(pins["net"], write)


async def run_in_network(netns: Path, work: Callable[[], T]) -> T:
    """Run the blocking ``work`` in a thread of its own that has joined the network namespace pinned at ``netns``.

    Descriptors it opens (sockets) stay in that namespace and may be used by any thread afterwards. ``work`` must bound
    itself: cancellation waits for it. Raises NotFound or HostError when ``netns`` is no network namespace.
    """

    def joined() -> T:
        fd = open_pin(netns, "net")
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        except OSError as exc:
            raise HostError(f"network namespace {netns}: {exc.strerror}", errno=exc.errno) from exc
        finally:
            os.close(fd)
        return work()

    return await in_own_thread(joined)


def open_pin(path: Path, kind: str) -> int:
    """A descriptor of the namespace pinned at ``path`` (the caller closes it).

    Raises NotFound when the file is absent, HostError when no namespace of that kind is mounted on it (a pin left from
    before a reboot or a half-made one is an empty plain file). Never blocks.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise NotFound(f"no {kind} namespace is pinned at {path}") from exc
    except OSError as exc:
        raise HostError(f"{kind} namespace {path}: {exc.strerror}", errno=exc.errno) from exc
    try:
        found = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as exc:
        os.close(fd)
        raise HostError(f"{path} is not a pinned namespace", errno=exc.errno) from exc
    if found != KINDS[kind]:
        os.close(fd)
        raise HostError(f"{path} pins another kind of namespace than {kind}")
    return fd


def is_pinned(path: Path, kind: str) -> bool:
    """Whether a namespace of ``kind`` is mounted on ``path``."""
    try:
        os.close(open_pin(path, kind))
    except (NotFound, HostError):
        return False
    return True


async def in_own_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a fresh thread that ends with it, so that no pooled thread is left in another namespace.

    Cancellation waits for ``work`` and then propagates: also one by ``Task.cancel``, which no cancel scope shields from.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - carried to the awaiting task
            loop.call_soon_threadsafe(done.set_exception, exc)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=body, name="namespace", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as exc:
                cancelled = exc
    if cancelled is not None:
        done.exception()  # seen: the cancellation is what propagates
        raise cancelled
    return done.result()


def _make(directory: Path, pins: Mapping[str, Path], user: IdMaps | None, set_up: Callable[[], None]) -> None:
    present = [str(pin) for pin in {*pins.values(), *(directory / kind for kind in pins)} if pin.is_symlink() or pin.exists()]
    if present:
        raise HostError(f"namespaces are pinned already: {', '.join(sorted(present))}", errno=errno.EEXIST)
    try:
        if user is None:
            syscalls.unshare(_flags(pins))
            set_up()
            namespace_pins.attach(directory, pins, Path("/proc/thread-self"))
            return
        with user_namespaces.held(_flags(pins), user) as process:
            _join(process, [kind for kind in pins if kind != "user"])
            set_up()
            namespace_pins.attach(directory, pins, process)
    except OSError as exc:
        _undo(directory)
        raise HostError(f"namespaces {', '.join(pins)} in {directory}: {exc}", errno=exc.errno) from exc


def _flags(kinds: Iterable[str]) -> int:
    return functools.reduce(operator.or_, (KINDS[kind] for kind in kinds))


def _join(process: Path, kinds: Iterable[str]) -> None:
    """Take the calling thread into namespaces of ``process`` that need not be its user namespace's, which it can't enter."""
    for kind in kinds:
        fd = os.open(process / "ns" / kind, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, KINDS[kind])
        finally:
            os.close(fd)


def _set_up(hostname: str, settings: Sequence[Sysctl], *, lo_up: bool, owned: bool) -> None:
    """Set up the calling thread's namespaces. Settings come before ``lo``, which takes its addresses from them.

    Those of an IPC namespace that a user namespace has ``owned`` since Linux 6.9 are its root's alone: see ``_write_owned``.
    """
    if hostname:
        syscalls.sethostname(hostname)
    for item in settings:
        if not item.names_interface and not (owned and item.namespace == "ipc"):
            pod_sysctls.write(item)
    if lo_up:
        _loopback_up()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _undo(directory: Path) -> None:
    """Remove them on a failure's way out: what goes wrong here is logged, the first error is the one that is raised."""
    try:
        namespace_pins.remove(directory, KINDS)
    except OSError as exc:
        _logger.error("namespaces of a failed creation in %s are left: %s", directory, exc)
