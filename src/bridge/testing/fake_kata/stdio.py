"""The stdio of one process: pipes or a terminal into the guest, fifos to whoever called, and copies between them.

As Kata copies: an output is copied until it ends, and a fifo that nobody reads holds it up; the input is copied until the last
writer has closed it, and then the process's own input stays open until CloseIO. Threads, as Kata has goroutines: what blocks, blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from bridge.host.console import ConsoleListener, set_size

_PIECE: Final = 32 << 10


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths as the caller gave them; "" where there is none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    @property
    def wanted(self) -> bool:
        """Whether there is anything to copy: Kata copies nothing for a process without any path."""
        return bool(self.stdin or self.stdout or self.stderr)


@dataclass(slots=True)
class Stdio:
    """``theirs`` are for the process; they are closed here once it has them. Make it, start the process, then ``copy``."""

    paths: Paths
    console: ConsoleListener | None = None
    theirs: list[int] = field(default_factory=list)
    ended: anyio.Event = field(default_factory=anyio.Event)
    """All copies of outputs have ended, and with them that of the input."""
    fed: anyio.Event = field(default_factory=anyio.Event)
    """The copy of the input has ended."""
    _ours: list[int] = field(default_factory=list)
    _stdin: int = -1
    _master: int = -1

    @classmethod
    def make(cls, paths: Paths, console: Path) -> Stdio:
        """``console`` is where to listen for a terminal."""
        made = cls(paths)
        if paths.terminal:
            made.console = ConsoleListener(console)
            return made
        reader, made._stdin = os.pipe()
        pipes = [os.pipe(), os.pipe()]
        made._ours = [pipe[0] for pipe in pipes]
        made.theirs = [reader, *(pipe[1] for pipe in pipes)]
        return made

    def started(self) -> None:
        """The process has its ends. Raises HostError when a terminal did not come."""
        self.drop_theirs()
        if not self.paths.stdin:
            self.close_stdin()
        if self.console is not None:
            master = self.console.take_master()
            self.console.close()
            os.set_blocking(master, True)
            self._master = self._stdin = master
            self._ours = [os.dup(master)]

    def drop_theirs(self) -> None:
        """Close what was the process's. Repeatable."""
        while self.theirs:
            os.close(self.theirs.pop())

    def copy(self) -> None:
        """Begin to copy. Raises OSError when a path can't be opened."""
        loop = asyncio.get_running_loop()
        if not self.paths.wanted:
            self.ended.set()
            self.fed.set()
            return
        targets = [self.paths.stdout, *([] if self.paths.terminal else [self.paths.stderr])]
        left = threading.Semaphore(0)
        copies = 0
        for source, path in zip(self._ours, targets, strict=False):
            if path:
                target = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                _thread(_copied, lambda s=source, t=target: _copy(s, t), left.release)
                copies += 1
        if self.paths.stdin:
            _thread(_copied, self._feed, lambda: loop.call_soon_threadsafe(self.fed.set))
        _thread(_await, left, copies, lambda: loop.call_soon_threadsafe(self._all_ended))

    def _feed(self) -> None:
        fd = os.open(self.paths.stdin, os.O_RDONLY | os.O_CLOEXEC)  # waits for the first writer
        with contextlib.suppress(OSError):
            while data := os.read(fd, _PIECE):
                os.write(self._stdin, data)
        os.close(fd)

    def _all_ended(self) -> None:
        self.fed.set()
        self.ended.set()

    def close_stdin(self) -> None:
        """Let the process see the end of its input. A terminal has none. Repeatable."""
        if self._stdin >= 0 and self._master < 0:
            os.close(self._stdin)
            self._stdin = -1

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; without a terminal nothing happens."""
        if self._master >= 0:
            set_size(self._master, width, height)

    def close(self) -> None:
        """After the end: free what is ours."""
        self.drop_theirs()
        self.close_stdin()
        if self._master >= 0:
            os.close(self._master)
            self._master = self._stdin = -1
        while self._ours:
            os.close(self._ours.pop())


def _thread(target: Callable[..., None], *args: object) -> None:
    threading.Thread(target=target, args=args, daemon=True).start()


def _copied(copy: Callable[[], None], then: Callable[[], object]) -> None:
    try:
        copy()
    except OSError:  # the other end has gone
        return
    finally:
        with contextlib.suppress(RuntimeError):  # the shim is ending
            then()


def _copy(source: int, target: int) -> None:
    try:
        while data := os.read(source, _PIECE):
            left = memoryview(data)
            while left:
                left = left[os.write(target, left) :]
    finally:
        os.close(target)


def _await(left: threading.Semaphore, copies: int, then: Callable[[], object]) -> None:
    for _ in range(copies):
        left.acquire()
    with contextlib.suppress(RuntimeError):
        then()
