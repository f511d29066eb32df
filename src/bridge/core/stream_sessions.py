"""What a client has in a container while its session is open: the descriptors of a command, or of an attach (core/streams makes them).

Nothing is copied here: whoever serves a session reads and writes its descriptors. What he does not read stays in the pipe and holds
the writer, so back-pressure costs no memory.
"""

from __future__ import annotations

from typing import Protocol

import anyio

from bridge.host import console
from bridge.host.pipes import StdioPipes
from bridge.ports.runtime import ContainerHandle, ExecProcess, RemoteTerminal

Size = tuple[int, int]
"""Columns and rows of a terminal. One with a 0 is not meant and not set."""


class Session(Protocol):
    """What a client has while the block is open. Descriptors are ours, non-blocking, and closed when the block ends."""

    @property
    def stdin(self) -> int | None:
        """To write to; None when not asked for, closed, or a terminal's command (see ``console``)."""
        ...

    @property
    def stdout(self) -> int | None: ...
    @property
    def stderr(self) -> int | None: ...
    @property
    def console(self) -> int | None:
        """The pty master of a command with a terminal, for both directions. It says EIO when the other side is closed."""
        ...

    def take(self, name: str) -> int:
        """One of the descriptors, which is the caller's from now on."""
        ...

    @property
    def ends_with_stdin(self) -> bool:
        """Whether a client that closes its stdin means to leave: an attach to a container whose stdin stays open for the next one."""
        ...

    def close_stdin(self) -> None:
        """Tell the other side that no more comes; a terminal's command is told nothing. Idempotent."""
        ...

    async def resize(self, size: Size) -> None:
        """Set the terminal's size. Nothing happens without a terminal or for a size with a 0."""
        ...

    async def wait(self) -> int:
        """The command's exit code, once it has ended, output or not; for an attach 0, once the container's output has ended."""
        ...


class _Pipes:
    """The descriptors that exec and attach have in common."""

    def __init__(self, pipes: StdioPipes) -> None:
        self._pipes = pipes
        self.console: int | None = None
        self.ends_with_stdin = False

    @property
    def stdin(self) -> int | None:
        return self._pipes.near.get("stdin")

    @property
    def stdout(self) -> int | None:
        return self._pipes.near.get("stdout")

    @property
    def stderr(self) -> int | None:
        return self._pipes.near.get("stderr")

    def take(self, name: str) -> int:
        return self._pipes.take(name)

    def close_stdin(self) -> None:
        self._pipes.close_near("stdin")


class Command(_Pipes):
    """A command in a container."""

    def __init__(self, pipes: StdioPipes, process: ExecProcess, master: int | None) -> None:
        super().__init__(pipes)
        self._process = process
        self.console = master

    async def resize(self, size: Size) -> None:
        if self.console is None or not all(size):
            return
        if isinstance(self._process, RemoteTerminal):
            await self._process.resize(*size)
        else:
            console.set_size(self.console, *size)

    async def wait(self) -> int:
        return (await self._process.wait()).code


class Attached(_Pipes):
    """A client of a container's own stdio."""

    def __init__(self, pipes: StdioPipes, handle: ContainerHandle, *, tty: bool, ends_with_stdin: bool) -> None:
        super().__init__(pipes)
        self._handle = handle
        self._tty = tty
        self.ends_with_stdin = ends_with_stdin
        self._ended = anyio.Event()
        self.settled = anyio.Event()
        """Set once it is attached, or has failed to be."""
        self.failure: Exception | None = None

    async def run(self) -> None:
        """Be attached until the output ends; the container's side takes over the far ends of the pipes."""
        far = self._pipes.far
        try:
            await self._handle.attach(stdin=far.get("stdin"), stdout=far.get("stdout"), stderr=far.get("stderr"), attached=self._taken_over)
        except Exception as exc:  # noqa: BLE001 - raised by wait, or by whoever waits for settled
            self.failure = exc
        finally:
            self._taken_over()
            self._ended.set()

    def _taken_over(self) -> None:
        self._pipes.close_far()
        self.settled.set()

    async def resize(self, size: Size) -> None:
        if self._tty and all(size):
            await self._handle.resize(*size)

    async def wait(self) -> int:
        await self._ended.wait()
        if self.failure is not None:
            raise self.failure
        return 0
