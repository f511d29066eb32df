"""The console socket and the size of a terminal."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from pathlib import Path

import pytest

from bridge.errors import HostError, InvalidRequest
from bridge.host import console
from bridge.host.console import ConsoleListener


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_terminal_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "tty" / "c"
    before = fds()
    listener = ConsoleListener(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    master, slave = os.openpty()
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(str(path))
        socket.send_fds(runtime, [b"/dev/ptmx"], [master])
    os.close(master)
    taken = listener.take_master()
    listener.close()
    assert not path.exists()
    assert not os.get_blocking(taken)
    assert not os.get_inheritable(taken)
    console.set_size(taken, 132, 43)
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2] == (43, 132)
    os.close(taken)
    os.close(slave)
    assert fds() == before


def test_a_runtime_that_sends_none(tmp_path: Path) -> None:
    listener = ConsoleListener(tmp_path / "c")
    with pytest.raises(HostError, match="sent no terminal to the console socket"):
        listener.take_master()
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(str(listener.path))
        runtime.send(b"sorry")
        with pytest.raises(HostError, match="connected to the console socket but sent no terminal"):
            listener.take_master()
    listener.close()
    listener.close()


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    before = fds()
    with pytest.raises(InvalidRequest, match="console_socket: longer than"):
        ConsoleListener(tmp_path / ("x" * 120))
    assert fds() == before
