"""A client's connection as the monitor sees it: its requests, answered in any order, and what happens to them when it is lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from bridge import log
from bridge.errors import BridgeError, HostError, LimitExceeded
from bridge.monitor.channel import Channel
from bridge.monitor.protocol import BadFrame, Frame, Message, error_to_wire

_PENDING_LIMIT = 65536
"""Unanswered requests a connection may have; a wait for each container is normal."""

_logger = log.get("monitor.requests")


class Request:
    """One request. Answer it once with ``ok`` or ``fail``; whichever comes after a cancel is dropped."""

    __slots__ = ("_fds", "connection", "id", "message", "on_cancel", "on_lost")

    def __init__(self, connection: Connection, number: int, frame: Frame) -> None:
        self.connection = connection
        self.id = number
        self.message: Message = frame.message
        self._fds = frame.fds
        self.on_cancel: Callable[[], object] | None = None
        """Called when the client gives the request up."""
        self.on_lost: Callable[[], object] | None = None
        """Called when the connection is lost."""

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that came with it, closed after the handler unless claimed."""
        return self._fds

    def claim_fds(self) -> tuple[int, ...]:
        """Take over the descriptors: the caller closes them."""
        fds, self._fds = self._fds, ()
        return fds

    def ok(self, value: object = None) -> None:
        """Answer with success."""
        self.connection.answer(self, {"id": self.id, "ok": value})

    def fail(self, error: BaseException) -> None:
        """Answer with an error; one that is no BridgeError is a bug and is logged as such."""
        if not isinstance(error, BridgeError):
            _logger.error("request %s failed", self.message.get("op"), exc_info=error)
            error = HostError(f"internal error of the monitor: {type(error).__name__}: {error}")
        self.connection.answer(self, {"id": self.id, "error": error_to_wire(error)})

    def release(self) -> None:
        """Close the descriptors that nobody claimed."""
        for fd in self.claim_fds():
            os.close(fd)


class Connection:
    """One client. ``handle`` starts each request; ``on_lost`` is called once when the client is gone."""

    def __init__(self, sock: socket.socket, handle: Callable[[Request], None], on_lost: Callable[[Connection], None]) -> None:
        self._handle = handle
        self._on_lost = on_lost
        self._pending: dict[int, Request] = {}
        self._channel = Channel(sock, self._on_frame, self._lost)

    def push(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send an event, with duplicates of ``fds``."""
        self._channel.send(message, fds)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def answer(self, request: Request, message: dict[str, Any]) -> None:
        """Answer ``request`` unless it was cancelled."""
        if self._pending.pop(request.id, None) is request:
            try:
                self._channel.send(message)
            except LimitExceeded as exc:
                self._channel.send({"id": request.id, "error": error_to_wire(exc)})

    def _on_frame(self, frame: Frame) -> None:
        number = frame.message.get("id")
        if not isinstance(number, int):
            _close_all(frame.fds)
            self._channel.close(BadFrame("a request without id"))
        elif frame.message.get("op") == "cancel":
            _close_all(frame.fds)
            self._cancel(number)
        elif number in self._pending or len(self._pending) >= _PENDING_LIMIT:
            _close_all(frame.fds)
            self._channel.close(BadFrame(f"request id {number} is in use, or too many requests"))
        else:
            self._start(Request(self, number, frame))

    def _start(self, request: Request) -> None:
        self._pending[request.id] = request
        try:
            self._handle(request)
        except Exception as exc:  # noqa: BLE001 - answered, and logged if unexpected
            request.fail(exc)
        finally:
            request.release()

    def _cancel(self, number: int) -> None:
        request = self._pending.pop(number, None)
        if request is not None and request.on_cancel is not None:
            request.on_cancel()

    def _lost(self, why: BaseException | None) -> None:
        if why is not None:
            _logger.warning("connection of a client ended: %s", why)
        pending, self._pending = self._pending, {}
        for request in pending.values():
            if request.on_lost is not None:
                request.on_lost()
        self._on_lost(self)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
