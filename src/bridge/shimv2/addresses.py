"""Addresses at which shims listen: from text to a socket's name, and connecting to it."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import anyio

from bridge.errors import HostError, InvalidRequest, ShimGone, Unsupported

_RETRY_SECONDS = 0.02
_LONGEST = 107
"""Bytes of a unix socket's name (unix(7): sun_path has 108, one of them is the closing zero)."""


def socket_name(address: str | Path) -> str:
    """What to hand to ``connect`` for ``address``: a path, or a name of the abstract space with its leading zero byte.

    ``unix:///path``, and ``unix://@name`` for an abstract one. Text without a scheme is abstract too: that is how shims before
    containerd 1.4 said it. A Path is a path. Raises Unsupported for vsock, hvsock and what else has a scheme, InvalidRequest for
    a name that is empty or too long.
    """
    if isinstance(address, Path):
        name = str(address)
    else:
        scheme, separator, rest = address.partition("://")
        if separator and scheme != "unix":
            raise Unsupported(f"the shim listens at {address!r}: only unix sockets can be reached, not {scheme}")
        name = rest if separator else f"\0{address}"
        if name.startswith("@"):
            name = f"\0{name[1:]}"
    if not name.strip("\0"):
        raise InvalidRequest(f"the shim's address {str(address)!r} names no socket")
    if len(name.encode()) > _LONGEST:
        raise InvalidRequest(f"the shim's address {str(address)!r} is longer than a socket's name may be ({_LONGEST} bytes)")
    return name


async def dial(address: str | Path, *, timeout: float) -> socket.socket:
    """A connected, non-blocking stream socket; ``timeout`` (seconds) is for a listener whose queue is full.

    Raises ShimGone at once when nobody listens there, and after the time-out; HostError for other failures; else as
    ``socket_name``.
    """
    name = socket_name(address)
    # Go before 1.21 counted a closing zero byte in with such a name, so that shims built by it listen at another one.
    names = [name, f"{name}\0"] if name == f"\0{address}" else [name]
    with anyio.move_on_after(timeout):
        while True:
            for number, each in enumerate(names, 1):
                found = _connect(each, address, last=number == len(names))
                if found is not None:
                    return found
            await anyio.sleep(_RETRY_SECONDS)
    raise ShimGone(f"the shim at {address} accepted no connection within {timeout:g} s")


def _connect(name: str, address: str | Path, *, last: bool) -> socket.socket | None:
    """None when the listener's queue is full, or when nobody listens there and there is another name to try."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(name)  # on a unix socket this never waits: it succeeds, or fails with EAGAIN when the queue is full
    except OSError as exc:
        sock.close()
        if exc.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            if not last:
                return None
            raise ShimGone(f"no shim listens at {address}: {exc.strerror}") from exc
        if exc.errno != errno.EAGAIN:
            raise HostError(f"can't connect to the shim at {address}: {exc.strerror}", errno=exc.errno) from exc
        return None
    return sock
