"""A server process of one's own, with its monitor: for the demo, the conformance suite and tests. It may be killed at will.

Nothing here knows what is in the configuration: who starts a server wrote its file. Everything blocks but what says ``async``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import anyio

from bridge.errors import BridgeError, HostError, TimedOut
from bridge.monitor.client import MonitorClient

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRDELBR = 0x8913, 0x8914, 0x89A1
_IFF_UP = 1


class PrivateServer:
    """``cri-bridge serve`` with the file ``config``. ``directory`` gets its log (server.log) and a socket for its word of being ready."""

    def __init__(self, config: Path, directory: Path, *, start_timeout: float = 60.0, stop_timeout: float = 40.0) -> None:
        self._config = config
        self._notify = directory / "notify"
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self.log_file = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process, while one runs."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        """Start it and return when it has told that it is ready. Raises HostError, TimedOut."""
        self._notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(self._notify))
            process = self.spawn()
            deadline = time.monotonic() + self._start_timeout
            while time.monotonic() < deadline:
                if select.select([told], [], [], 0.05)[0] and b"READY=1" in told.recv(256):
                    return
                if process.poll() is not None:
                    raise HostError(f"the server ended with code {process.returncode}:\n{self.log_tail()}")
        raise TimedOut(f"the server was not ready within {self._start_timeout:g} s:\n{self.log_tail()}")

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it and don't wait. It finds the modules that this process finds, installed or not."""
        path = os.pathsep.join(dict.fromkeys(entry for entry in sys.path if entry))
        environment = {**os.environ, "PYTHONPATH": path, "NOTIFY_SOCKET": str(self._notify)}
        argv = [sys.executable, "-m", "bridge", "--config", str(self._config), "serve"]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        return self.process

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if it takes too long; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self._stop_timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """Its last words."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        return ""


async def monitor_pid(path: Path) -> int | None:
    """The monitor that serves ``path``, or None. (The socket's peer credentials name the process that bound it, which has ended.)"""
    with contextlib.suppress(BridgeError, OSError):
        async with MonitorClient.connect(path) as monitor:
            return monitor.pid
    return None


async def kill_monitor(path: Path, *, timeout: float = 10.0) -> None:
    """SIGKILL the monitor that serves ``path`` and wait until it has gone. Raises HostError when there is none, TimeoutError."""
    pid = await monitor_pid(path)
    if pid is None:
        raise HostError(f"no monitor answers on {path}")
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with anyio.fail_after(timeout):
            await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


async def end_monitor(path: Path) -> None:
    """Have the monitor end, whatever it holds; absent is success."""
    with contextlib.suppress(BridgeError, OSError):  # it may never have started, and it closes the connection as it goes
        async with MonitorClient.connect(path, timeout=0.5) as monitor:
            pidfd = os.pidfd_open(monitor.pid)
            try:
                with contextlib.suppress(BridgeError):
                    await monitor.shutdown(force=True)
                with anyio.move_on_after(10):
                    await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)


def remove_bridge(name: str) -> None:
    """Take the network bridge ``name`` down and delete it (netdevice(7), linux/sockios.h); absent is success."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(OSError):
        flags = struct.unpack("16xH22x", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0)))[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags & ~_IFF_UP))
        fcntl.ioctl(control, _SIOCBRDELBR, struct.pack("16s24x", name.encode()))
