"""A client's connection to the monitor: any number of calls at once, and the events that it pushes."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio

from bridge import log
from bridge.errors import MonitorGone, Unavailable
from bridge.monitor.channel import Channel
from bridge.monitor.dialling import dial
from bridge.monitor.protocol import Frame, error_from_wire, exit_from_wire
from bridge.ports.runtime import ExitStatus

QUICK_SECONDS = 10.0
"""Deadline of calls that wait for nothing but the monitor."""

_logger = log.get("monitor.client")


class _Call:
    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.answer: Mapping[str, Any] | None = None


class Connection:
    """Made by ``connect``. A call raises the error class that the monitor names, or MonitorGone when the connection is lost."""

    def __init__(
        self,
        sock: socket.socket,
        on_exit: Callable[[str, ExitStatus], None] | None = None,
        on_event: Callable[[Frame], None] | None = None,
    ) -> None:
        """Use ``connect``; ``on_exit`` is called from the loop for every task that ends while connected.

        ``on_event`` gets every event and owns its descriptors.
        """
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._on_exit = on_exit
        self._on_event = on_event
        self.closed = anyio.Event()
        self.pid = 0
        """The monitor's pid, start time (Unix, ns) and the file descriptor limits (soft, hard) that it was started with."""
        self.start_ns = 0
        self.nofile = (0, 0)
        self.abilities: frozenset[str] = frozenset()
        """What it can do beyond the first monitors (bridge.monitor.protocol.ABILITIES): it may be older than this server."""
        self.program = ""
        self._channel = Channel(sock, self._on_frame, self._on_lost)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        socket: Path,
        *,
        timeout: float = 5.0,
        on_exit: Callable[[str, ExitStatus], None] | None = None,
        on_event: Callable[[Frame], None] | None = None,
    ) -> AsyncIterator[Self]:
        """Connect within ``timeout`` seconds, waiting for the monitor to appear. Raises MonitorGone, Unavailable (no answer)."""
        client = cls(await dial(socket, timeout), on_exit, on_event)
        try:
            await client.hello(max(timeout, QUICK_SECONDS))
            yield client
        finally:
            client._channel.close()

    async def hello(self, timeout: float) -> None:
        """Ask who it is, and whether it answers at all. Raises Unavailable after ``timeout`` seconds."""
        told = await self.call("hello", {}, timeout=timeout)
        self.pid, self.start_ns, self.nofile = int(told["pid"]), int(told["start_ns"]), tuple(told["nofile"])
        self.abilities, self.program = frozenset(told.get("abilities", ())), str(told.get("program", ""))

    async def call(
        self,
        op: str,
        parameters: Mapping[str, Any],
        fds: Sequence[int] = (),
        *,
        timeout: float | None = QUICK_SECONDS,
        sent: Callable[[], None] = lambda: None,
    ) -> Any:
        """Ask for ``op``. ``sent`` is called when the request, with duplicates of ``fds``, is on its way. Raises Unavailable too late."""
        number, call = next(self._ids), _Call()
        self._calls[number] = call
        try:
            if self.closed.is_set():
                raise MonitorGone("the connection to the monitor is lost")
            self._channel.send({**parameters, "id": number, "op": op}, fds)
            sent()
            with anyio.move_on_after(timeout):
                await call.done.wait()
            if not call.done.is_set():
                raise Unavailable(f"the monitor did not answer {op} within {timeout:g} s")
        finally:
            del self._calls[number]
            if not call.done.is_set():
                self._channel.send({"op": "cancel", "id": number})
        if call.answer is None:
            raise MonitorGone(f"the connection to the monitor was lost during {op}")
        if "error" in call.answer:
            raise error_from_wire(call.answer["error"])
        return call.answer.get("ok")

    def _on_frame(self, frame: Frame) -> None:
        message = frame.message
        if "event" in message:
            if message["event"] == "exit" and self._on_exit is not None:
                self._on_exit(str(message["task"]), exit_from_wire(message["exit"]))
            if self._on_event is not None:
                self._on_event(frame)
            return
        call = self._calls.get(message.get("id", 0))
        if call is not None:  # else the call was cancelled meanwhile
            call.answer = message
            call.done.set()

    def _on_lost(self, why: BaseException | None) -> None:
        if why is not None:
            _logger.warning("connection to the monitor lost: %s", why)
        self.closed.set()
        for call in self._calls.values():
            call.done.set()
