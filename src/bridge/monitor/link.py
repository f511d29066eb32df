"""The server's side of the monitor's life: connect, or start one; when the connection is lost, do it again.

A monitor that does not answer counts as dead: it is killed, and its successor takes its containers over.
The link never gives up: between two monitors ``client`` raises MonitorGone, which is Unavailable to a kubelet, and it retries.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from bridge import log
from bridge.aio import Supervisor, describe
from bridge.errors import BridgeError, InUse, MonitorGone, Unavailable
from bridge.host.service_manager import ServiceManager
from bridge.monitor import starting
from bridge.monitor.client import MonitorClient
from bridge.monitor.keeping import Keeper
from bridge.monitor.program import program
from bridge.monitor.shelf import Shelf

_logger = log.get("monitor.link")
_PAUSE = 0.5
_QUICK = 0.2


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where the monitor listens and logs, in which cgroup directories it is started; in seconds, how long its start may take, how often it
    is asked whether it lives, and how long it may take to answer (it answers between two reads of a container's output).
    """

    socket: Path
    log_file: Path
    log_level: str = "info"
    cgroups: Sequence[Path] = ()
    start_timeout: float = 10.0
    ask_every: float = 5.0
    answer_timeout: float = 15.0
    renew: bool = True
    """Whether a monitor of another release is renewed as soon as nobody would notice; see bridge.monitor.renewal."""


class MonitorLink:
    """Holds one connection, and replaces it. Made by ``open``."""

    def __init__(self, settings: LinkSettings, shelf: Shelf | None = None) -> None:
        self._settings = settings
        self._client: MonitorClient | None = None
        self._why = "it was not reached yet"
        self._keeper = Keeper(shelf)
        self._known = (0, 0)
        self._hung = self._renewing = False
        self.losses = dict.fromkeys(("died", "hung", "disconnected"), 0)
        """How often a monitor was lost, by kind, told once there is one again: it had died, hung and was killed, or was there still."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: LinkSettings, supervisor: Supervisor, manager: ServiceManager | None = None
    ) -> AsyncIterator[MonitorLink]:
        """A link whose first connection stands. Raises MonitorGone, HostError, TimedOut when no monitor can be had.

        A service ``manager`` that keeps descriptors is given the containers' stdio, and what it kept goes to the monitor.
        """
        shelf = Shelf(manager) if manager is not None and (manager.capacity or manager.kept) else None
        if shelf is not None:
            supervisor.spawn("shelf", shelf.keep)
        link = cls(settings, shelf)
        async with AsyncExitStack() as first:
            client = await link._connect(first)
            connection = first.pop_all()
        stopped = anyio.Event()
        scope = anyio.CancelScope()
        supervisor.spawn("monitor link", lambda: link._keep(client, connection, scope, stopped))
        try:
            yield link
        finally:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await stopped.wait()
            link._keeper.close()

    def client(self) -> MonitorClient:
        """The live connection. Raises MonitorGone with the reason."""
        if self._client is None or self._client.closed.is_set():
            raise MonitorGone(f"the monitor is away: {self._why}")
        return self._client

    @property
    def fault(self) -> str:
        """Why there is no monitor now; "" when there is one."""
        return "" if self._client is not None and not self._client.closed.is_set() else self._why

    async def _connect(self, stack: AsyncExitStack) -> MonitorClient:
        socket = self._settings.socket
        try:
            client = await stack.enter_async_context(MonitorClient.connect(socket, timeout=_QUICK, on_event=self._keeper.on_event))
        except MonitorGone:
            _logger.info("no monitor at %s: starting one", socket)
            await self._start()
            client = await stack.enter_async_context(MonitorClient.connect(socket, on_event=self._keeper.on_event))
        await self._share(client)
        self._client = client
        _logger.info("monitor %d holds the containers", client.pid)
        return client

    async def _start(self) -> None:
        settings = self._settings
        try:
            await starting.spawn(
                settings.socket,
                log_file=settings.log_file,
                log_level=settings.log_level,
                cgroups=settings.cgroups,
                timeout=settings.start_timeout,
            )
        except InUse as exc:  # a monitor that is there makes a deleted socket anew within a second
            _logger.warning("%s: waiting for it", exc)

    async def _share(self, client: MonitorClient) -> None:
        """Give a new monitor what its predecessor held, and have this one share what it holds."""
        identity = (client.pid, client.start_ns)
        if identity == self._known:
            self._keeper.close()  # the connection was lost, not the monitor: it shares everything again
        else:
            known = {task.id: task.exit is not None for task in await client.tasks()} if len(self._keeper) else {}
            await self._keeper.hand_over(client, known)
        if "share" in client.abilities:
            await client.share()
        self._known = identity

    async def _keep(self, client: MonitorClient, stack: AsyncExitStack, scope: anyio.CancelScope, stopped: anyio.Event) -> None:
        try:
            with scope:
                while True:
                    async with stack:
                        await self._until_lost(client)
                    self._why = "the connection was lost"
                    _logger.error("the monitor is gone; containers go on, and a new monitor takes over")
                    before = self._known
                    client, stack = await self._again()
                    self._count_loss(before)
        finally:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            stopped.set()

    def _count_loss(self, before: tuple[int, int]) -> None:
        same, hung, renewed = self._known == before, self._hung, self._renewing
        self._hung = self._renewing = False
        if not (same and renewed):
            self.losses["hung" if hung else "disconnected" if same else "died"] += 1

    async def _until_lost(self, client: MonitorClient) -> None:
        process = os.pidfd_open(client.pid)
        try:
            while not client.closed.is_set():
                with anyio.move_on_after(self._settings.ask_every):
                    await client.closed.wait()
                    return
                await self._ask(client, process)
                await self._renew(client)
        finally:
            os.close(process)

    async def _renew(self, client: MonitorClient) -> None:
        """Have a monitor of another release become one of this."""
        if not self._settings.renew or "renew" not in client.abilities or client.program == program():
            return
        try:
            _logger.info("monitor %d is of another release: renewing it", client.pid)
            self._renewing = True  # its end, if it comes to that, is no loss
            await starting.renew(client, self._settings.socket, log_level=self._settings.log_level, timeout=self._settings.start_timeout)
        except InUse as exc:
            self._renewing = False
            _logger.info("not yet: %s", exc)
        except BridgeError as exc:
            self._renewing = False
            _logger.error("monitor %d goes on as it is: %s", client.pid, exc)

    async def _ask(self, client: MonitorClient, process: int) -> None:
        try:
            await client.hello(self._settings.answer_timeout)
        except MonitorGone:
            return  # which ``closed`` tells as well
        except Unavailable as exc:
            _logger.error("%s: it hangs, and is killed", exc)
            self._hung = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            await client.closed.wait()

    async def _again(self) -> tuple[MonitorClient, AsyncExitStack]:
        while True:
            try:
                async with AsyncExitStack() as stack:
                    client = await self._connect(stack)
                    return client, stack.pop_all()
            except BridgeError as exc:
                self._why = describe(exc)
                _logger.error("no monitor can be had: %s", self._why)
            await anyio.sleep(_PAUSE)
