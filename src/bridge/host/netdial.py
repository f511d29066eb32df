"""Connections to localhost of a network namespace, without a process in it.

A socket belongs to the namespace in which it was made, not to that of whoever connects it. So a thread of its own enters the
namespace just to make the sockets, and the event loop connects them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import anyio

from bridge.errors import HostError, InvalidRequest, Unavailable
from bridge.host import namespaces, syscalls

CONNECT_SECONDS = 10.0
"""For each address; only a listener whose queue is full takes any time."""
_PLACES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


async def dial(namespace: Path | None, port: int) -> socket.socket:
    """A connected, non-blocking TCP socket to ``port`` of 127.0.0.1, else of ::1, in the namespace pinned at a path (None: the host's).

    The caller's. Raises InvalidRequest (port), Unavailable saying in words why each address refused, NotFound or HostError (namespace).
    """
    if not 1 <= port <= 65535:
        raise InvalidRequest(f"{port} is not a port: it must be from 1 to 65535", field="port")
    candidates: list[tuple[str, socket.socket]] = []
    connected: socket.socket | None = None
    try:
        if namespace is None:
            _make_sockets(candidates)
        else:
            await namespaces.in_own_thread(lambda: _enter_and_make(namespace, candidates))
        connected = await _connect(candidates, port)
        return connected
    finally:
        for _, candidate in candidates:
            if candidate is not connected:
                candidate.close()


def _enter_and_make(namespace: Path, candidates: list[tuple[str, socket.socket]]) -> None:
    pin = namespaces.open_pin(namespace, "net")
    try:
        syscalls.setns(pin, syscalls.CLONE_NEWNET)
    except OSError as exc:
        raise HostError(f"can't enter the network namespace at {namespace}: {exc.strerror}", errno=exc.errno) from exc
    finally:
        os.close(pin)
    _make_sockets(candidates)


def _make_sockets(candidates: list[tuple[str, socket.socket]]) -> None:
    for family, address in _PLACES:
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.EAFNOSUPPORT:  # a host without IPv6
                raise HostError(f"can't make a socket: {exc.strerror}", errno=exc.errno) from exc
        else:
            candidates.append((address, made))


async def _connect(candidates: Sequence[tuple[str, socket.socket]], port: int) -> socket.socket:
    refusals = []
    for address, candidate in candidates:
        why = f"no answer within {CONNECT_SECONDS:g} s"
        with anyio.move_on_after(CONNECT_SECONDS):
            try:
                await asyncio.get_running_loop().sock_connect(candidate, (address, port))
                candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return candidate
            except OSError as exc:
                why = (os.strerror(exc.errno) if exc.errno else str(exc)).lower()
        refusals.append(f"{address}: {why}")
    raise Unavailable(f"can't connect to port {port} of the pod's localhost ({'; '.join(refusals)})")
