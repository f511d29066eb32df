"""Between the descriptors of an exec's caller and a shim, which knows stdio by paths alone.

An output is handed over as /proc/PID/fd/N of this process, which a shim opens like the fifo that it is. An input can't be: a shim keeps its
own writing end of it open, so nobody would ever see that the caller has closed his. It is copied here, and its end is told. A terminal is
with the shim; its caller gets one end of a socket, to which both directions are copied.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel

from bridge import log
from bridge.aio import Supervisor
from bridge.errors import BridgeError, HostError
from bridge.ports.runtime import ExecSpec
from bridge.shimv2.task import Stdio

_PIECE = 64 << 10
_NULL = os.devnull
_POLLS, _POLL_SECONDS = 1000, 0.005

_logger = log.get("shimv2.exec")


class Bridge:
    """The stdio of one exec. ``stdio`` is what the shim is told; ``run`` copies, once the shim has opened it; ``close`` ends all."""

    def __init__(self, spec: ExecSpec) -> None:
        """Raises HostError when the caller's console socket can't be reached."""
        self._open: list[int] = []
        self._far: list[int] = []
        self._input: tuple[int, int] | None = None
        self._output: tuple[int, int] | None = None
        self._copying: anyio.CancelScope | None = None
        try:
            self.stdio = self._terminal(spec.console) if spec.console is not None else self._plain(spec)
        except BaseException:
            self.close()
            raise

    def _plain(self, spec: ExecSpec) -> Stdio:
        stdin = ""
        if spec.stdin is not None:
            stdin = self._input_from(self._keep(os.dup(spec.stdin)))
        if spec.stdin is None and spec.stdout is None and spec.stderr is None:
            return Stdio()
        # One that isn't wanted is the null device: several shims can't do without a path once there is another.
        stdout, stderr = (_NULL if fd is None else _path(fd) for fd in (spec.stdout, spec.stderr))
        return Stdio(stdin, stdout, stderr)

    def _terminal(self, console: Path) -> Stdio:
        ours, theirs = socket.socketpair()
        with theirs:
            near = self._keep(ours.detach())
            _hand_over(console, theirs.fileno())
        stdin = self._input_from(near)
        reader, writer = self._pipe()
        self._far.append(writer)
        self._output = (reader, near)
        return Stdio(stdin, _path(writer), terminal=True)

    def _input_from(self, source: int) -> str:
        reader, writer = self._pipe()
        self._far.append(reader)
        self._input = (source, writer)
        os.set_blocking(source, False)
        return _path(reader)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        for end in ends:
            self._keep(end)
            os.set_blocking(end, False)
        return ends

    def _keep(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor

    def run(self, tasks: Supervisor, close_stdin: Callable[[], Awaitable[None]]) -> None:
        """The shim has opened its side: copy until both directions have ended. ``close_stdin`` tells it of the input's end."""
        for end in self._far:
            self._drop(end)
        if self._input is not None or self._output is not None:
            self._copying = anyio.CancelScope()
            tasks.spawn("copy an exec's stdio", lambda: self._copy(close_stdin))

    async def _copy(self, close_stdin: Callable[[], Awaitable[None]]) -> None:
        # Only this task closes what it copies: a descriptor's number may be another's as soon as it is closed.
        assert self._copying is not None
        try:
            with self._copying:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._feed, close_stdin)
                    group.start_soon(self._show)
        finally:
            self._shut()

    async def _feed(self, close_stdin: Callable[[], Awaitable[None]]) -> None:
        if self._input is None:
            return
        source, target = self._input
        await _reader(target)
        await _copy(source, target)
        if self._output is not None:  # a terminal's input does not end
            return
        self._drop(target)
        try:
            await close_stdin()
        except BridgeError as exc:  # mostly because it has ended
            _logger.debug("the end of an exec's input can't be told: %s", exc)

    async def _show(self) -> None:
        if self._output is not None:
            source, target = self._output
            await _copy(source, target)
            with suppress(OSError), socket.socket(fileno=os.dup(target)) as end:
                end.shutdown(socket.SHUT_WR)

    def _drop(self, descriptor: int) -> None:
        self._open.remove(descriptor)
        os.close(descriptor)

    def _shut(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def close(self) -> None:
        """End the copies under way and close everything. Repeatable."""
        if self._copying is None:
            self._shut()
        else:
            self._copying.cancel()


def _path(descriptor: int) -> str:
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _hand_over(console: Path, descriptor: int) -> None:
    """Send a descriptor to the console socket, as an OCI runtime sends a terminal's."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(console))
            socket.send_fds(sock, [b"console"], [descriptor])
    except OSError as exc:
        raise HostError(f"can't hand a terminal over at {console}: {exc.strerror}", errno=exc.errno) from exc


async def _reader(target: int) -> None:
    """Wait until the shim has opened its side, which it may do after it said that the process runs; not for ever."""
    look = select.poll()
    look.register(target, 0)  # an error is always told: there is no reader
    for _ in range(_POLLS):
        if not look.poll(0):
            return
        await anyio.sleep(_POLL_SECONDS)


async def _copy(source: int, target: int) -> None:
    """Copy until the end of ``source``, or until ``target`` takes no more."""
    try:
        while True:
            try:
                data = os.read(source, _PIECE)
            except BlockingIOError:
                await anyio.wait_readable(source)
                continue
            if not data:
                return
            await _write(target, data)
            await anyio.lowlevel.checkpoint()
    except OSError:
        return


async def _write(target: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(target, left) :]
        except BlockingIOError:
            await anyio.wait_writable(target)
