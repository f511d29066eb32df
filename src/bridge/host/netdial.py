"""Connections to localhost of a network namespace, or to a guest behind it, without a process in it.

A socket belongs to the namespace in which it was made, not to that of whoever connects it. So a thread of its own enters the
namespace just to make the sockets, and the event loop connects them.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from bridge.errors import HostError, InvalidRequest, Unavailable
from bridge.host import namespaces, syscalls

CONNECT_SECONDS = 10.0
"""For each address; only a listener whose queue is full takes any time."""
_LOCALHOST = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class _Candidate:
    address: str
    socket: socket.socket
    where: str = ""


async def dial(namespace: Path | None, port: int, *, addresses: Sequence[str] = ()) -> socket.socket:
    """A connected, non-blocking TCP socket to ``port`` of 127.0.0.1, else of ::1, in the namespace pinned at a path (None: the host's).

    Where nobody listens there each of ``addresses`` is tried, from the host and then from the namespace: what a guest listens
    on is behind the namespace, not in it. The socket is the caller's. Raises InvalidRequest (port), Unavailable saying in words
    why each address refused, NotFound or HostError (namespace).
    """
    if not 1 <= port <= 65535:
        raise InvalidRequest(f"{port} is not a port: it must be from 1 to 65535", field="port")
    near: list[_Candidate] = []
    outside: list[_Candidate] = []
    inside: list[_Candidate] = []
    connected: socket.socket | None = None
    try:
        if namespace is None:
            _make_sockets(near, _LOCALHOST)
        else:
            await namespaces.in_own_thread(lambda: _enter_and_make(namespace, near, inside, addresses))
        _make_sockets(outside, addresses, " from the node")
        connected = await _connect([*near, *outside, *inside], port)
        return connected
    finally:
        for candidate in (*near, *outside, *inside):
            if candidate.socket is not connected:
                candidate.socket.close()


def _enter_and_make(namespace: Path, near: list[_Candidate], inside: list[_Candidate], addresses: Sequence[str]) -> None:
    pin = namespaces.open_pin(namespace, "net")
    try:
        syscalls.setns(pin, syscalls.CLONE_NEWNET)
    except OSError as exc:
        raise HostError(f"can't enter the network namespace at {namespace}: {exc.strerror}", errno=exc.errno) from exc
    finally:
        os.close(pin)
    _make_sockets(near, _LOCALHOST)
    _make_sockets(inside, addresses, " from the pod's namespace")


def _make_sockets(candidates: list[_Candidate], addresses: Iterable[str], where: str = "") -> None:
    for address in addresses:
        family = socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.EAFNOSUPPORT:  # a host without IPv6
                raise HostError(f"can't make a socket: {exc.strerror}", errno=exc.errno) from exc
        else:
            candidates.append(_Candidate(address, made, where))


async def _connect(candidates: Sequence[_Candidate], port: int) -> socket.socket:
    refusals = []
    for candidate in candidates:
        why = f"no answer within {CONNECT_SECONDS:g} s"
        with anyio.move_on_after(CONNECT_SECONDS):
            try:
                await asyncio.get_running_loop().sock_connect(candidate.socket, (candidate.address, port))
                candidate.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return candidate.socket
            except OSError as exc:
                why = (os.strerror(exc.errno) if exc.errno else str(exc)).lower()
        refusals.append(f"{candidate.address}{candidate.where}: {why}")
    raise Unavailable(f"can't connect to port {port} of the pod's localhost ({'; '.join(refusals)})")
