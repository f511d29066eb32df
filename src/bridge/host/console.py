"""Terminals of containers: the socket on which a runtime hands a pty over, and a pty's size."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from pathlib import Path

from bridge.errors import HostError, InvalidRequest

_PATH_MAX = 107  # struct sockaddr_un


class ConsoleListener:
    """The socket on which a runtime hands over a pty master (OCI runtime command line: ``--console-socket``)."""

    def __init__(self, path: Path) -> None:
        """Listen at ``path``, replacing what is there. Raises InvalidRequest when the path is too long, else HostError."""
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            self._sock.bind(str(path))
            self._sock.listen(1)
            self._sock.setblocking(False)
        except OSError as exc:
            self._sock.close()
            if len(os.fsencode(path)) > _PATH_MAX:
                raise InvalidRequest(f"longer than a unix socket's {_PATH_MAX} bytes", field="console_socket") from exc
            raise HostError(f"can't listen on {path}: {exc}", errno=exc.errno) from exc

    def take_master(self) -> int:
        """The pty master, non-blocking, that the runtime, which has ended well, left in the socket. Raises HostError when there is none."""
        try:
            connection, _ = self._sock.accept()
            with connection:
                connection.setblocking(False)
                _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC)
        except OSError as exc:
            raise HostError("the runtime succeeded but sent no terminal to the console socket", errno=exc.errno) from exc
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                master = array.array("i", data)[0]
                os.set_blocking(master, False)
                return master
        raise HostError("the runtime connected to the console socket but sent no terminal")

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._sock.close()
        self.path.unlink(missing_ok=True)


def set_size(master: int, width: int, height: int) -> None:
    """Set a terminal's size in columns and rows, which sends SIGWINCH to its foreground processes."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
