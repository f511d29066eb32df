"""Connections to localhost of a network namespace, or to a guest behind it, without a process in it.

A socket belongs to the namespace in which it was made, not to that of whoever connects it. So a thread of its own enters the
namespace just to make the sockets, and the event loop connects them. Such a visit costs more than all else of a connection, so one
that follows another soon brings more sockets than are wanted now, for those that come next.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio

from bridge.errors import HostError, InvalidRequest, Unavailable
from bridge.host import namespaces

CONNECT_SECONDS = 10.0
"""For each address; only a listener whose queue is full takes any time."""
KEEP_SECONDS = 1.0
"""How long a socket is kept for a next connection; while it is, it keeps its namespace."""
MOST_SPARE = 32
"""Sockets of a family that one visit makes."""
_LOCALHOST = ("127.0.0.1", "::1")


async def dial(namespace: Path | None, port: int, *, addresses: Sequence[str] = ()) -> socket.socket:
    """One connection, as Dialer.dial, which is for those who may make more."""
    dialer = Dialer(namespace)
    try:
        return await dialer.dial(port, addresses=addresses)
    finally:
        dialer.rest()


class Dialer:
    """Makes connections in the namespace pinned at a path, or in the host's (None). Its owner has it ``rest`` when the pod ends."""

    def __init__(self, namespace: Path | None) -> None:
        self._namespace = namespace
        self._stocks: dict[int, _Stock] = {}

    async def dial(self, port: int, *, addresses: Sequence[str] = ()) -> socket.socket:
        """A connected, non-blocking TCP socket to ``port`` of 127.0.0.1, else of ::1.

        Where nobody listens there each of ``addresses`` is tried, from the host and then from the namespace: what a guest listens
        on is behind the namespace, not in it. The socket is the caller's. Raises InvalidRequest (port), Unavailable saying in words
        why each address refused, NotFound or HostError (namespace).
        """
        if not 1 <= port <= 65535:
            raise InvalidRequest(f"{port} is not a port: it must be from 1 to 65535", field="port")
        refusals = []
        for address, where, inside in self._places(addresses):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made = await self._socket(family) if inside else _make(family)
            if made is None:
                continue
            try:
                why = await _connect(made, address, port)
            except BaseException:
                made.close()
                raise
            if not why:
                return made
            made.close()
            refusals.append(f"{address}{where}: {why}")
        raise Unavailable(f"can't connect to port {port} of the pod's localhost ({'; '.join(refusals)})")

    def rest(self) -> None:
        """Close the sockets that nobody has used, which else happens a little later."""
        for stock in self._stocks.values():
            stock.drop()

    def _places(self, addresses: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
        """Address, what tells it apart in words, and whether it is for a socket of the namespace."""
        inside = self._namespace is not None
        yield from ((address, "", inside) for address in _LOCALHOST)
        normal = [str(ipaddress.ip_address(address)) for address in addresses]
        yield from ((address, " from the node", False) for address in normal)
        if inside:
            yield from ((address, " from the pod's namespace", True) for address in normal)

    async def _socket(self, family: int) -> socket.socket | None:
        """A fresh one of the namespace; None where there is no such family."""
        stock = self._stocks.get(family)
        if stock is None:
            stock = self._stocks[family] = _Stock(family)
        while not stock.spare and not stock.unsupported:
            async with stock.visiting:
                if not stock.spare:
                    await self._visit(stock)
        return stock.take()

    async def _visit(self, stock: _Stock) -> None:
        namespace, count = self._namespace, stock.next_count()
        assert namespace is not None
        try:
            await namespaces.run_in_network(namespace, lambda: stock.fill(count))
        finally:
            stock.keep()  # who wanted one of them may be gone


class _Stock:
    """Sockets of one family, made and not used."""

    def __init__(self, family: int) -> None:
        self._family = family
        self.spare: list[socket.socket] = []
        self.unsupported = False
        self.visiting = anyio.Lock(fast_acquire=True)
        self._count = 0
        self._used = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def next_count(self) -> int:
        """How many to make: one, and twice as many each time while they are wanted."""
        soon = asyncio.get_running_loop().time() - self._used < KEEP_SECONDS
        self._count = min(2 * self._count, MOST_SPARE) if soon and self._count else 1
        return self._count

    def fill(self, count: int) -> None:
        """Make ``count`` in the calling thread's namespace. Raises HostError."""
        for _ in range(count):
            made = _make(self._family)
            if made is None:
                self.unsupported = True
                return
            self.spare.append(made)

    def take(self) -> socket.socket | None:
        """One of them, if there is any."""
        self._used = asyncio.get_running_loop().time()
        return self.spare.pop() if self.spare else None

    def keep(self) -> None:
        """Close what nobody has taken for a while."""
        if self.spare and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEEP_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if asyncio.get_running_loop().time() - self._used >= KEEP_SECONDS:
            self.drop()
        self.keep()

    def drop(self) -> None:
        """Close them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.spare:
            self.spare.pop().close()


def _make(family: int) -> socket.socket | None:
    try:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        if exc.errno == errno.EAFNOSUPPORT:  # a host without IPv6
            return None
        raise HostError(f"can't make a socket: {exc.strerror}", errno=exc.errno) from exc
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


async def _connect(made: socket.socket, address: str, port: int) -> str:
    """Why it can't be connected; empty when it is."""
    code = made.connect_ex((address, port))
    if code == errno.EINPROGRESS:  # over loopback the handshake is over by now; asking again is cheaper than waiting to be told
        code = made.connect_ex((address, port))
    if code in (errno.EINPROGRESS, errno.EALREADY):
        with anyio.move_on_after(CONNECT_SECONDS):
            await anyio.wait_writable(made)
            code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code in (errno.EINPROGRESS, errno.EALREADY):
        return f"no answer within {CONNECT_SECONDS:g} s"
    return "" if code in (0, errno.EISCONN) else os.strerror(code).lower()
