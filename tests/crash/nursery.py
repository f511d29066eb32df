"""Servers that are there at once: a process that has imported everything forks one whenever one is to start.

Half of what a sweep costs would else be Python's imports: a server is restarted in every second case. ``nursery`` gives a function that
starts ``cri-bridge`` with arguments; what it returns behaves as subprocess.Popen does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

_IMPORTED = ("bridge.__main__", "bridge.cli.main", "bridge.cli.serve", "bridge.daemon", "bridge.testing.failpoints")
_PLUGINS = ("bridge.generic.oci", "bridge.generic.shim", "bridge_runc", "bridge_gvisor")
_ROOM = 1 << 18

Start = Callable[[Sequence[str], Mapping[str, str], IO[bytes]], "Forked"]


class Forked:
    """A server. Its methods are those of Popen that DaemonNode uses."""

    def __init__(self, nursery: _Client, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery
        self._pidfd = os.pidfd_open(pid)
        self._reaping = threading.Lock()
        weakref.finalize(self, os.close, self._pidfd)

    def poll(self) -> int | None:
        """Its exit code once it has ended, negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As ``poll``, after its end. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([f"server {self.pid}"], timeout or 0)
            with self._reaping:  # threads may wait at once
                if self.returncode is None:
                    self.returncode = self._nursery.reap(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing when it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class _Client:
    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> Forked:
        """Run ``cri-bridge`` with ``argv`` in the environment ``env``; what it says goes to ``log``."""
        return Forked(self, self._ask({"argv": list(argv), "env": dict(env)}, log.fileno()))

    def reap(self, pid: int) -> int:
        return self._ask({"reap": pid})

    def _ask(self, question: Mapping[str, object], *fds: int) -> int:
        with self._lock:
            socket.send_fds(self._end, [json.dumps(question).encode()], fds)
            answer = self._end.recv(_ROOM)
        assert answer, "the nursery is gone"
        return int(answer)


@contextlib.contextmanager
def nursery(env: Mapping[str, str]) -> Iterator[Start]:
    """The function that starts servers, for as long as the block lasts."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        argv = [sys.executable, "-m", "tests.crash.nursery", str(theirs.fileno())]
        process = subprocess.Popen(argv, env=dict(env), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        try:
            yield _Client(mine).start
        finally:
            mine.close()
            process.wait(30)


def main(number: int) -> None:
    """The nursery itself; ends with its client."""
    for name in (*_IMPORTED, *_PLUGINS):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=number) as end:
        while True:
            data, fds, _, _ = socket.recv_fds(end, _ROOM, 1)
            if not data:
                return
            question = json.loads(data)
            if "reap" in question:
                end.send(str(os.waitstatus_to_exitcode(os.waitpid(question["reap"], 0)[1])).encode())
                continue
            pid = os.fork()
            if not pid:
                end.close()
                _serve(question["argv"], question["env"], fds[0])
            os.close(fds[0])
            end.send(str(pid).encode())


def _serve(argv: Sequence[str], env: Mapping[str, str], log: int) -> None:
    code = 1
    try:
        os.setsid()
        for fd in (1, 2):
            os.dup2(log, fd)
        os.close(log)
        os.environ.clear()
        os.environ.update(env)
        gc.unfreeze()
        code = importlib.import_module("bridge.__main__").main(argv)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
