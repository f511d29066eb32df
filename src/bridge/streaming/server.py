"""The HTTP server behind the URLs that Exec, Attach and PortForward answer with.

What it bounds: the tokens that wait (``tokens``), the time until a request is whole, the connections that wait with theirs (the
oldest gives way, so that nobody can lock the others out by opening many), and the sessions at once; how long one may be silent is
theirs to say. All that a session holds ends with its connection, and the connection with the session.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.aio import Supervisor
from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, StreamRequest
from bridge.errors import ConfigError, HostError
from bridge.streaming.channels import ConnectionLost
from bridge.streaming.refusals import Refused
from bridge.streaming.sessions import Sessions
from bridge.streaming.socket_wire import LINGER_SECONDS, SocketWire
from bridge.streaming.tls import Certificate
from bridge.streaming.tokens import Tokens

REQUEST_SECONDS = 10.0
"""For the TLS handshake and the whole request."""
MAX_WAITING = 256
"""Connections whose request is not whole. A client on this node needs a millisecond for it."""
_BACKLOG = 1024
_KINDS: Mapping[type[StreamRequest], str] = {ExecRequest: "exec", AttachRequest: "attach", PortForwardRequest: "portforward"}
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_OPTIONS = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4, socket.TCP_NODELAY: 1}
"""Seconds, seconds, probes; and no wait for more: an answer of a few bytes would wait 40 ms for the client's acknowledgement."""
_logger = log.get("streaming")


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Where to serve: an IP address and a port (0: any that is free). ``host`` stands in URLs; empty means the address.

    ``certificate`` and ``key`` make it TLS; ``authorities``: clients need a certificate of theirs. ``sessions``: how many at once.
    """

    address: str = "127.0.0.1"
    port: int = 0
    host: str = ""
    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    sessions: int = 1000


class StreamServer:
    """Serves from ``open`` until its block ends."""

    def __init__(self, settings: StreamSettings, sessions: Sessions, listener: socket.socket, supervisor: Supervisor) -> None:
        self._settings = settings
        self._sessions = sessions
        self._listener = listener
        self._supervisor = supervisor
        self._tokens = Tokens()
        self._waiting: dict[SocketWire, anyio.CancelScope] = {}
        self._running: set[SocketWire] = set()
        self._ending = False
        self._conversation: ModuleType | None = None
        self._certificate = None
        if settings.certificate is not None:
            self._certificate = Certificate(settings.certificate, settings.key or settings.certificate, settings.authorities)
        scheme = "http" if self._certificate is None else "https"
        self.base_url = f"{scheme}://{_host(settings)}:{listener.getsockname()[1]}"

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: StreamSettings, sessions: Sessions) -> AsyncIterator[StreamServer]:
        """Listen and serve while the block runs. Raises ConfigError for an address or certificate that is no good, HostError."""
        listener = _listen(settings)
        try:
            async with Supervisor("streaming") as supervisor:
                server = cls(settings, sessions, listener, supervisor)
                if server._certificate is not None:
                    await run_sync(server._certificate.context)
                supervisor.spawn("streaming accept", server._accept)
                _logger.info("serving streams on %s", server.base_url)
                if server._certificate is None and not ipaddress.ip_address(settings.address).is_loopback:
                    _logger.warning("streams go over the network as they are: set streaming.tls_certificate")
                try:
                    yield server
                finally:
                    server._ending = True
        finally:
            listener.close()

    @property
    def sessions(self) -> int:
        """How many sessions run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many connections have not said yet what they want."""
        return len(self._waiting)

    def url(self, request: StreamRequest) -> str:
        """Where the client may connect for ``request``, once, within a minute. Raises LimitExceeded while too many wait for theirs."""
        return f"{self.base_url}/{_KINDS[type(request)]}/{self._tokens.issue(request)}"

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except Exception as exc:  # noqa: BLE001 - whatever it was: without this loop there would be no streams any more
                _logger.warning("a client can't be accepted: %s", exc)
                if isinstance(exc, OSError) and exc.errno in _OUT_OF_FILES:
                    self._drop_oldest()
                await anyio.sleep(0.1)
                continue
            self._supervisor.spawn("streaming connection", partial(self._serve, connection))
            await asyncio.sleep(0)  # those who are connected have their turn, however many come

    def _drop_oldest(self) -> None:
        """Let the connection go that has kept us waiting for longest."""
        for wire, scope in self._waiting.items():
            del self._waiting[wire]
            scope.cancel()
            wire.abort()
            return

    async def _serve(self, connection: socket.socket) -> None:
        with ExitStack() as unowned, anyio.CancelScope() as scope:
            unowned.callback(connection.close)
            wire = SocketWire(on_lost=scope.cancel)
            if len(self._waiting) >= MAX_WAITING:
                self._drop_oldest()
            self._waiting[wire] = scope
            try:
                await self._converse(wire, connection, unowned)
            except (ConnectionLost, OSError) as exc:  # OSError: a TLS handshake that fails, too
                _logger.debug("a client's connection failed: %s", exc)
            except Exception:
                _logger.exception("a stream ended by a defect of this server")
            finally:
                if self._ending:
                    wire.hang_up()
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 2 * LINGER_SECONDS):
                    await wire.close()
                self._waiting.pop(wire, None)
                self._running.discard(wire)

    async def _converse(self, wire: SocketWire, connection: socket.socket, unowned: ExitStack) -> None:
        conversation = self._conversation
        if conversation is None:
            conversation = self._conversation = await run_sync(importlib.import_module, "bridge.streaming.conversation")
        upgrade = None
        with anyio.move_on_after(REQUEST_SECONDS) as patience:
            await self._connect(wire, connection, unowned)
            upgrade = await conversation.upgraded(wire, self._redeem)
        if patience.cancelled_caught:
            wire.abort()
        if upgrade is None:
            return
        self._running.add(wire)
        self._waiting.pop(wire, None)
        await conversation.hold(wire, upgrade, self._sessions)

    async def _connect(self, wire: SocketWire, connection: socket.socket, unowned: ExitStack) -> None:
        """Give ``connection`` to ``wire``; from then on the transport closes it, and ``unowned`` does no more."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _OPTIONS.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        loop = asyncio.get_running_loop()
        context = None if self._certificate is None else await run_sync(self._certificate.context)
        unowned.pop_all()
        if context is None:
            await loop.connect_accepted_socket(lambda: wire, connection)
            return
        await loop.connect_accepted_socket(
            lambda: wire, connection, ssl=context, ssl_handshake_timeout=REQUEST_SECONDS, ssl_shutdown_timeout=LINGER_SECONDS
        )

    def _redeem(self, kind: str, token: str) -> StreamRequest | None:
        if len(self._running) >= self._settings.sessions:
            raise Refused(503, f"{self._settings.sessions} sessions run already", [("Retry-After", "10")])
        request = self._tokens.redeem(token)
        return request if request is not None and _KINDS[type(request)] == kind else None


def _listen(settings: StreamSettings) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(settings.address, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[
            0
        ]
    except OSError as exc:
        raise ConfigError(f"streaming.address: {settings.address!r} is no IP address") from exc
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise HostError(f"streaming: can't listen on {settings.address} port {settings.port}: {exc.strerror}", errno=exc.errno) from exc
    return listener


def _host(settings: StreamSettings) -> str:
    """What stands in URLs; an address that means all of them is reached by the loopback one, as kubelet and server share the node."""
    host = settings.host or {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.address, settings.address)  # noqa: S104 - read, not bound
    return f"[{host}]" if ":" in host else host
