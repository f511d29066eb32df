"""Commands of the fake runtime that are processes of the host, with the pipes or the pty that a real runtime would give them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import termios
from typing import Any

import anyio

from bridge.ports.runtime import ExecSpec, ExitStatus
from bridge.testing.fakes import FakeContainer


class HostCommand:
    """One process in a session of its own; ``delete`` kills its process group."""

    def __init__(self, spec: ExecSpec) -> None:
        self.spec = spec
        self.deleted = False
        stdio: dict[str, Any] = {
            name: subprocess.DEVNULL if fd is None else fd for name, fd in zip(("stdin", "stdout", "stderr"), _given(spec), strict=True)
        }
        master, slave = os.openpty() if spec.process["terminal"] else (-1, -1)
        if slave >= 0:
            stdio = dict.fromkeys(stdio, slave)
        self._popen = subprocess.Popen(
            spec.process["args"],
            start_new_session=True,
            preexec_fn=_take_terminal if slave >= 0 else None,
            **stdio,
        )
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        if slave >= 0:
            os.close(slave)
            self._hand_over(master)
            os.close(master)

    def _hand_over(self, master: int) -> None:
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(self.spec.console))
            socket.send_fds(console, [b"pty"], [master])

    async def wait(self) -> ExitStatus:
        await anyio.wait_readable(self._pidfd)
        code = self._popen.wait()
        return ExitStatus(code if code >= 0 else 128 - code)

    async def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def delete(self) -> None:
        if not self.deleted:
            await self.kill(signal.SIGKILL)
            await self.wait()
            os.close(self._pidfd)
            self.deleted = True


def _given(spec: ExecSpec) -> tuple[int | None, int | None, int | None]:
    return spec.stdin, spec.stdout, spec.stderr


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def run_on_the_host(fake: FakeContainer) -> list[HostCommand]:
    """Have ``fake`` run its commands on the host; what it has run so far."""
    made: list[HostCommand] = []

    async def execute(spec: ExecSpec) -> HostCommand:
        made.append(HostCommand(spec))
        await anyio.lowlevel.checkpoint()
        return made[-1]

    fake.exec = execute  # type: ignore[method-assign,assignment]
    return made
