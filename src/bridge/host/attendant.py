"""A small process that stays beside the server until it is told to go, or until the socket that is its input closes.

Like ``bridge.host.process``, but for more than one question: spawned with vfork, watched through a pidfd, reaped by a loop
callback, so that neither a cancelled caller nor a process stuck in the kernel leaves a zombie or a waiting thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence

from bridge.errors import HostError


class Attendant:
    """One such process. ``channel`` is our end of the packet socket that is its descriptor 0; ``exited`` is set once it is reaped."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start it. Raises HostError."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.exited = asyncio.Event()
        self.channel.setblocking(False)
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    argv, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True
                )
            except OSError as exc:
                self.channel.close()
                raise HostError(f"can't run {argv[0]}: {exc.strerror or exc}", errno=exc.errno) from exc
        self._loop = asyncio.get_running_loop()
        try:
            self._pidfd = os.pidfd_open(self._popen.pid)
        except OSError as exc:
            self.channel.close()
            self._popen.kill()
            self._popen.wait()
            raise HostError(f"can't watch {argv[0]}: {exc.strerror}", errno=exc.errno) from exc
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Its process id; another's once ``exited`` is set."""
        return self._popen.pid

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        assert result is not None
        # Popen must know, or its finaliser would wait for a pid that may by then be another process.
        self._popen.returncode = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        self.exited.set()

    def dismiss(self) -> None:
        """Close the channel: it ends by itself when it next reads. Idempotent."""
        self.channel.close()

    def kill(self) -> None:
        """SIGKILL, and close the channel. A process that is stuck in the kernel ends when the kernel lets it go. Idempotent."""
        self.channel.close()
        if not self.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """Stop watching one that does not end; for a server that ends itself, after which init reaps it."""
        if not self.exited.is_set():
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._popen.returncode = -signal.SIGKILL
            self.exited.set()
