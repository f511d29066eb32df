"""Attach: clients that see a running container's output and may feed its stdin.

A client's output is buffered up to BUFFER_HIGH bytes. Beyond that the container's output is not read until the client has caught up
to BUFFER_LOW, as a slow terminal would do it; a client that does not manage this within STALL_SECONDS is dropped with
LimitExceeded. So memory is bounded, a viewer can hold up a container only for that long, and a burst (``cat`` of a large file
in an interactive shell) arrives whole. Output from before the attach is in the log, not here.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable

from bridge.errors import InvalidRequest, LimitExceeded
from bridge.monitor.parameters import STDIO, Descriptors
from bridge.monitor.pipes import Sink, Stdin

STALL_SECONDS = 10.0
_CHUNK = 65536

OnEnd = Callable[[Exception | None], None]


class Session:
    """One attached client. Owns its descriptors; ``on_end`` is called once, with the error if it was dropped."""

    def __init__(self, hub: Hub, given: Descriptors, on_end: OnEnd) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._stdin = given.stdin
        self._on_end: OnEnd | None = on_end
        self._stall: asyncio.TimerHandle | None = None
        self.sinks = {name: Sink(fd, self._changed) for name, fd in (("stdout", given.stdout), ("stderr", given.stderr)) if fd is not None}
        for fd in (given.stdin, given.stdout, given.stderr):
            if fd is not None:
                os.set_blocking(fd, False)

    @property
    def congested(self) -> bool:
        """Whether the container's output must wait for this client."""
        return any(sink.congested for sink in self.sinks.values())

    def poll_stdin(self) -> None:
        """Read from the client exactly while the container's stdin has room."""
        if self._stdin is None:
            return
        target = self._hub.stdin
        if target is None or target.closed:
            self._close_stdin()
        elif target.has_room:
            self._loop.add_reader(self._stdin, self._readable)
        else:
            self._loop.remove_reader(self._stdin)

    def _readable(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        target = self._hub.stdin
        if data and target is not None:
            target.write(data)
            self.poll_stdin()
        else:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            self._loop.remove_reader(self._stdin)
            os.close(self._stdin)
            self._stdin = None
            self._hub.stdin_left()
            self._changed()

    def output_ended(self, name: str | None = None) -> None:
        """Stream ``name`` (None: all) of the container is over: its sink closes when all is written, at the latest after a stall."""
        for key, sink in self.sinks.items():
            if name in (None, key):
                sink.finish()
        self._changed()

    def _changed(self) -> None:
        if self._on_end is None:
            return
        over = self._hub.over
        if all(sink.closed for sink in self.sinks.values()) and (over or self.sinks or self._stdin is None):
            self.end()
            return
        must_move = over or self.congested
        if must_move and self._stall is None:
            self._stall = self._loop.call_later(STALL_SECONDS, self._stalled)
        elif not must_move and self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self._hub.balance()

    def _stalled(self) -> None:
        self.end(LimitExceeded(f"the attached client fell behind and did not catch up within {STALL_SECONDS:g} s"))

    def end(self, error: Exception | None = None) -> None:
        """Close everything of this client."""
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        if self._stall is not None:
            self._stall.cancel()
        self._close_stdin()
        for sink in self.sinks.values():
            sink.close()
        self._hub.left(self)
        on_end(error)


class Hub:
    """The attached clients of one container. ``hold_output`` is called with whether its output must not be read now."""

    def __init__(self, stdin: Stdin | None, *, stdin_once: bool, hold_output: Callable[[bool], None]) -> None:
        self.stdin = stdin
        self.over = False
        self.stdin_once = stdin_once
        self._hold_output = hold_output
        self._held = False
        self._sessions: list[Session] = []
        if stdin is not None:
            stdin.on_room = self._room

    @property
    def attached(self) -> bool:
        """Whether there is a client."""
        return bool(self._sessions)

    def attach(self, given: Descriptors, on_end: OnEnd) -> Session:
        """Add a client, whose descriptors belong to the session from now on. Raises InvalidRequest for ones that can't be polled."""
        for name in STDIO:
            fd = getattr(given, name)
            if fd is not None and not _pollable(fd):
                raise InvalidRequest("must be a pipe, a socket or a terminal", field=name)
        session = Session(self, given, on_end)
        self._sessions.append(session)
        session.poll_stdin()
        return session

    def offer(self, name: str, data: bytes) -> None:
        """Give output of stream ``name`` to every client that wants it."""
        for session in tuple(self._sessions):
            sink = session.sinks.get(name)
            if sink is not None:
                sink.offer(data)

    def output_ended(self, name: str | None = None) -> None:
        """Stream ``name`` (None: every stream) is over."""
        self.over |= name is None
        for session in tuple(self._sessions):
            session.output_ended(name)

    def balance(self) -> None:
        """Hold the container's output while any client is congested."""
        held = any(session.congested for session in self._sessions)
        if held != self._held:
            self._held = held
            self._hold_output(held)

    def left(self, session: Session) -> None:
        """``session`` has ended."""
        if session in self._sessions:
            self._sessions.remove(session)
        self.balance()

    def stdin_left(self) -> None:
        """A client has stopped feeding stdin; with ``stdin_once`` that closes it for good."""
        if self.stdin_once and self.stdin is not None:
            self.stdin.finish()

    def close(self) -> None:
        """End every session and close stdin."""
        for session in tuple(self._sessions):
            session.end()
        if self.stdin is not None:
            self.stdin.close()

    def _room(self) -> None:
        for session in tuple(self._sessions):
            session.poll_stdin()


def _pollable(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
