"""The console socket: how a runtime hands a container's pty over."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path

from bridge.errors import HostError, InvalidRequest
from bridge.monitor.protocol import LaunchFailed


class ConsoleListener:
    """The socket on which a runtime hands over a pty master (OCI runtime command line: ``--console-socket``)."""

    def __init__(self, path: Path) -> None:
        """Listen at ``path``, replacing what is there. Raises InvalidRequest when the path is too long, else HostError."""
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._sock.bind(str(path))
            self._sock.listen(1)
            self._sock.setblocking(False)
        except OSError as exc:
            self._sock.close()
            if len(os.fsencode(path)) > 107:
                raise InvalidRequest("longer than a unix socket's 107 bytes", field="console_socket") from exc
            raise HostError(f"can't listen on {path}: {exc}", errno=exc.errno) from exc

    def take_master(self) -> int:
        """The pty master that the runtime, which has ended well, left in the socket. Raises LaunchFailed when there is none."""
        try:
            connection, _ = self._sock.accept()
            with connection:
                connection.setblocking(False)
                _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC)
        except OSError as exc:
            raise LaunchFailed(0, ["the runtime succeeded but sent no terminal to the console socket"]) from exc
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return array.array("i", data)[0]
        raise LaunchFailed(0, ["the runtime connected to the console socket but sent no terminal"])

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._sock.close()
        self._path.unlink(missing_ok=True)
