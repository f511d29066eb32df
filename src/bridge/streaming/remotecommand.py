"""Serves an exec or an attach: its channels to a session of core and back, and the last word on the error channel.

The exit code is told once all output is with the client's side. It is told before what the command left behind is killed, which
happens all the same, also when the client leaves at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

import anyio
import anyio.abc

from bridge import log
from bridge.core.stream_requests import AttachRequest, ExecRequest, Stdio
from bridge.core.stream_sessions import Session, Size
from bridge.core.streams import StreamService
from bridge.errors import BridgeError, LimitExceeded, TimedOut
from bridge.streaming import copying, status
from bridge.streaming.channels import ConnectionLost, RemoteCommand
from bridge.streaming.copying import NOWHERE
from bridge.streaming.terminal_sizes import TerminalSizes

_logger = log.get("streaming.remotecommand")
_FIRST_SIZE_SECONDS = 0.02
"""How long a command with a terminal waits for the client to say its size, which it does at once if it will."""
_LAST_KEYS_SECONDS = 0.1
"""For what was typed before a terminal's stdin was closed (crictl's detach keys do that) to be with the container."""
_UNHEARD_SECONDS = 5.0
"""For the last word to a client that was idle, or behind, for too long: it may not be reading."""

Open = Callable[[Size], AbstractAsyncContextManager[Session]]


class RemoteCommands:
    """Execs and attaches of one server. ``idle_timeout`` and ``drain`` (see copying.Drain) in seconds."""

    def __init__(self, streams: StreamService, *, idle_timeout: float, drain: float) -> None:
        self._streams = streams
        self._idle_timeout = idle_timeout
        self._drain = drain

    async def exec(self, request: ExecRequest, command: RemoteCommand) -> None:
        """See bridge.streaming.sessions.Sessions."""
        stdio = _opened(request.stdio, command)
        copies = _Copies(command, self._idle_timeout, self._drain)
        await self._serve(copies, lambda size: self._streams.exec(request.container_id, request.argv, stdio, size=size), sized=stdio.tty)

    async def attach(self, request: AttachRequest, command: RemoteCommand) -> None:
        """The same. The end of the container's output is success: its exit code is in its status, as with other runtimes.

        A client that closes its stdin leaves, unless that is the container's end of input, too. Without a terminal it has an answer
        to its last words coming, for as long as a command's left-overs have; who closes a terminal does not wait for any.
        """
        stdio = _opened(request.stdio, command)
        copies = _Copies(command, self._idle_timeout, min(_LAST_KEYS_SECONDS, self._drain) if stdio.tty else self._drain)
        await self._serve(copies, lambda _: self._streams.attach(request.container_id, stdio), sized=False)

    async def _serve(self, copies: _Copies, opening: Open, *, sized: bool) -> None:
        structured = copies.command.structured
        try:
            try:
                await copies.run(opening, sized=sized)
            except ConnectionLost:
                raise
            except BridgeError as exc:
                patience = _UNHEARD_SECONDS if isinstance(exc, TimedOut | LimitExceeded) else self._idle_timeout
                await copies.end(status.of_failure(exc, structured=structured), patience)
        except ConnectionLost:
            _logger.debug("the client has left")


class _Copies:
    """What goes on between one client's channels and its session."""

    def __init__(self, command: RemoteCommand, idle_timeout: float, drain: float) -> None:
        self.command = command
        self._leaving = anyio.CancelScope()
        self._idle = copying.Idle(idle_timeout)
        self._drain = copying.Drain(drain)
        self._sizes = TerminalSizes()
        self._failure: Exception | None = None
        self._code = 0
        self._group: anyio.abc.TaskGroup

    async def run(self, opening: Open, *, sized: bool) -> None:
        """Copy until the session's process has ended and all was told. Raises BridgeError, with nothing said yet, or ConnectionLost."""
        with self._idle.scope:
            size = await self._first_size() if sized else (0, 0)
            async with opening(size) as session:
                code = await self._copy(session, size)
                await self.end(status.of_exit(code, structured=self.command.structured), self._idle.seconds)
                return
        raise TimedOut(f"nothing was sent or received for {self._idle.seconds:g} s")

    async def end(self, last_word: bytes, patience: float) -> None:
        """Close what the client reads, the error channel with ``last_word``; give up after ``patience`` seconds. Raises ConnectionLost."""
        command = self.command
        with anyio.move_on_after(patience):
            for channel in (command.stdout, command.stderr):
                if channel is not None:
                    await channel.close()
            if last_word:
                await command.error.write(last_word)
            for channel in (command.error, command.stdin, command.resize):
                if channel is not None:
                    await channel.close()

    async def _first_size(self) -> Size:
        channel = self.command.resize
        with anyio.move_on_after(_FIRST_SIZE_SECONDS):
            while channel is not None and (data := await channel.read()):
                if (size := self._sizes.feed(data)) is not None:
                    return size
        return 0, 0

    async def _copy(self, session: Session, size: Size) -> int:
        """Copy until the process has ended and its output is told; its exit code."""
        command = self.command
        outputs = ((session.console, command.stdout), (session.stdout, command.stdout), (session.stderr, command.stderr))
        async with anyio.create_task_group() as self._group:
            self._group.start_soon(self._guard, partial(self._stdin, session), name="stdin")
            self._group.start_soon(self._guard, partial(self._resize, session, size), name="resize")
            async with anyio.create_task_group() as ending:
                ending.start_soon(self._guard, partial(self._exit, session), name="exit")
                for source, channel in outputs:
                    if source is not None:
                        copy = partial(copying.from_process, source, channel or NOWHERE, self._drain, self._idle)
                        ending.start_soon(self._guard, copy, name="output")
            self._group.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        return self._code

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work``; the first failure ends everything and is what ``_copy`` raises (a task group would wrap it)."""
        try:
            await work()
        except Exception as exc:  # noqa: BLE001 - raised by _copy
            self._failure = self._failure or exc
            self._group.cancel_scope.cancel()

    async def _exit(self, session: Session) -> None:
        with self._leaving:
            self._code = await session.wait()
        self._drain.start()

    async def _stdin(self, session: Session) -> None:
        channel, target = self.command.stdin, session.stdin if session.console is None else session.console
        if channel is None:
            return
        taken = target is not None and await copying.to_descriptor(channel, target, self._idle)
        session.close_stdin()
        if not taken:
            await copying.discard(channel)
        if session.ends_with_stdin:
            self._leaving.cancel()

    async def _resize(self, session: Session, size: Size) -> None:
        await _set(session, size)  # for a runtime that did not do it at the start
        channel = self.command.resize
        while channel is not None and (data := await channel.read()):
            self._idle.touch()
            await _set(session, self._sizes.feed(data) or (0, 0))


async def _set(session: Session, size: Size) -> None:
    try:
        await session.resize(size)
    except BridgeError as exc:
        _logger.debug("the terminal keeps its size: %s", exc)


def _opened(wanted: Stdio, command: RemoteCommand) -> Stdio:
    """What is wanted and has a channel. Output that nobody can get would only block who writes it."""
    return replace(
        wanted,
        stdin=wanted.stdin and command.stdin is not None,
        stdout=wanted.stdout and command.stdout is not None,
        stderr=wanted.stderr and command.stderr is not None,
    )
