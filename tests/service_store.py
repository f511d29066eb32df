"""A service manager for tests: it holds the descriptors that a server gives it and hands them to the next one, as systemd does."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# What systemd does between fork and exec: descriptors at 3 and above, variables that name them.
_PLACE = """
import os, sys
at = [int(fd) for fd in sys.argv[1].split(",") if fd]
for number, fd in enumerate(at):
    os.dup2(fd, 1000 + number)
for number in range(len(at)):
    os.dup2(1000 + number, 3 + number)
    os.close(1000 + number)
os.closerange(3 + len(at), 1000)
if at:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceStore:
    """Listens on ``path``; what is no matter of the store is passed on to ``further``. ``kept`` are the descriptors by name."""

    def __init__(self, path: Path, *, further: Path | None = None, capacity: int = 512) -> None:
        self.path = path
        self.capacity = capacity
        self.kept: dict[str, int] = {}
        self._further = further
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            message, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
            lines = dict(line.split("=", 1) for line in message.decode().splitlines())
            if "END" in lines:
                return
            name = lines.get("FDNAME", "")
            if "FDSTORE" in lines:
                assert name not in self.kept, f"{name} is stored twice"
                self.kept[name] = fds[0]
            elif "FDSTOREREMOVE" in lines:
                if name in self.kept:
                    os.close(self.kept.pop(name))
            elif "SETTLED" in lines:
                self._settled.set()
            elif self._further is not None:
                with contextlib.suppress(OSError):  # who listens there may not read any more
                    self._socket.sendto(message, socket.MSG_DONTWAIT, str(self._further))

    def settle(self) -> None:
        """Block until everything that was sent so far is done."""
        self._settled.clear()
        self._tell(b"SETTLED=1")
        assert self._settled.wait(10), "the store has failed: see the traceback of its thread"

    def _tell(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(10)
            sender.sendto(message, str(self.path))

    def environment(self) -> dict[str, str]:
        """What a server finds in its environment but for LISTEN_PID."""
        found = {"NOTIFY_SOCKET": str(self.path), "FDSTORE": str(self.capacity)}
        if self.kept:
            found |= {"LISTEN_FDS": str(len(self.kept)), "LISTEN_FDNAMES": ":".join(self.kept)}
        return found

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a server with what is in the store."""
        self.settle()
        fds = list(self.kept.values())
        command = [sys.executable, "-c", _PLACE, ",".join(map(str, fds)), sys.executable, "-m", "bridge", *argv]
        environment = {**env, **self.environment()}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=fds)

    def close(self) -> None:
        """End the thread, and let go of everything."""
        self._tell(b"END=1")
        self._thread.join(10)
        self._socket.close()
        while self.kept:
            os.close(self.kept.popitem()[1])
