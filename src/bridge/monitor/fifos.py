"""Stdio of a process that another holds: named pipes in a directory, made here, opened by whoever runs the process (a shim).

An output is opened for reading without waiting for its writer, so it ends when the last writer closes it. An input is opened both
ways, for there is no writing to a pipe that nobody reads yet.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from bridge import log
from bridge.errors import HostError

STDIN, STDOUT, STDERR = "stdin", "stdout", "stderr"
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_BOTH = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW

_logger = log.get("monitor.fifos")


@dataclass(frozen=True, slots=True)
class Fifos:
    """Open ends of one process's stdio: what ``outputs`` (by name) say is to be read, ``stdin`` to be written."""

    outputs: dict[str, int]
    stdin: int | None

    def close(self) -> None:
        """Close every end."""
        for end in (*self.outputs.values(), *(() if self.stdin is None else (self.stdin,))):
            os.close(end)


def open_all(directory: Path, *, terminal: bool, stdin: bool, owner: tuple[int, int] | None) -> Fifos:
    """Make what is missing of ``directory`` and its fifos (0600, of ``owner``), and open our ends. Raises HostError.

    What is there already keeps what is in it: after the loss of a monitor, what its successor has to log.
    """
    outputs: dict[str, int] = {}
    writer: int | None = None
    try:
        directory.mkdir(mode=0o711 if owner is not None else 0o700, parents=True, exist_ok=True)
        for name in (STDOUT,) if terminal else (STDOUT, STDERR):
            outputs[name] = open_one(directory / name, _READ, owner)
        if stdin:
            writer = open_one(directory / STDIN, _BOTH, owner)
    except OSError as exc:
        Fifos(outputs, writer).close()
        raise HostError(f"can't make the fifos in {directory}: {exc.strerror}", errno=exc.errno) from exc
    except BaseException:
        Fifos(outputs, writer).close()
        raise
    return Fifos(outputs, writer)


def open_one(path: Path, flags: int = _BOTH, owner: tuple[int, int] | None = None) -> int:
    """One end of the fifo at ``path``, made if it is missing. Raises OSError, HostError when something else is there."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    else:
        if owner is not None:
            os.chown(path, *owner, follow_symlinks=False)
    end = os.open(path, flags)
    if not stat.S_ISFIFO(os.fstat(end).st_mode):
        os.close(end)
        raise HostError(f"{path} is not a fifo")
    return end


class Spool:
    """Keeps a fifo read, and the last of what came in a file: between half of and all ``limit`` bytes, the older half at ``path``.1.

    For the log of a shim, which stands still when nobody reads it and must not fill /run either.
    """

    def __init__(self, fifo: int, path: Path, limit: int) -> None:
        """Owns ``fifo`` from now on. Raises HostError when ``path`` can't be written."""
        self._fifo = fifo
        self.path = path
        self._half = limit // 2
        try:
            self._file = _open_file(path)
            self._size = os.fstat(self._file).st_size
        except OSError as exc:
            os.close(fifo)
            raise HostError(f"can't open {path}: {exc.strerror}", errno=exc.errno) from exc

    def fileno(self) -> int:
        """What to wait for."""
        return self._fifo

    def readable(self) -> None:
        """Take what one read gives; a file that can't be written costs the words, never the shim."""
        try:
            data = os.read(self._fifo, 65536)
        except BlockingIOError:
            return
        try:
            if self._size + len(data) > self._half:
                os.replace(self.path, f"{self.path}.1")
                fresh = _open_file(self.path)
                os.close(self._file)
                self._file, self._size = fresh, 0
            self._size += os.write(self._file, data[-self._half :])
        except OSError as exc:
            _logger.debug("can't write %s: %s", self.path, exc.strerror)

    def close(self) -> None:
        """Let go of the fifo and the file."""
        os.close(self._fifo)
        os.close(self._file)


def _open_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
