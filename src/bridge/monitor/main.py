"""The monitor process: command line, single instance, becoming a daemon, and the loop.

It stays when it gets SIGTERM or SIGINT while it holds tasks, because the containers' stdio would go with it: end it with the
``shutdown`` request and ``force``, or with SIGKILL (the containers go on, without logs).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge import log
from bridge.errors import BridgeError, HostError, Unavailable
from bridge.host import syscalls
from bridge.monitor import renewal
from bridge.monitor.place import TAKEN, Place
from bridge.monitor.reaper import Reaper
from bridge.monitor.renewal import Standing
from bridge.monitor.service import Service

OOM_SCORE_ADJ = -999
"""What the monitor asks for: killing it would cost every container its logs. Containers get theirs from their spec."""

_ACCEPTS = 16
_LOOK_SECONDS = 1.0
_ACCEPT_PAUSE = 1.0
_CREDENTIALS = struct.Struct("3i")

_logger = log.get("monitor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the monitor until it is shut down; the exit code is 1 when it can't start, TAKEN when another one serves its socket."""
    options = _options(argv)
    if options.resume is not None:
        return _resume(options)
    try:
        _prepare_process(options)
        log_fd = _open_log(options.log_file)
        place = Place.take(options.socket)
    except BridgeError as exc:
        sys.stderr.write(f"cri-bridge monitor: {exc}\n")
        return TAKEN if isinstance(exc, Unavailable) else 1
    if options.detach and os.fork():
        os._exit(0)  # the socket listens already: whoever waits for this process can connect now
    try:
        if options.detach:
            os.setsid()
        _replace_standard_streams(log_fd)
        log.setup(options.log_level)
        _join_cgroups(options.cgroup)
        _lower_oom_score()
        here = Standing(place.lock, place.listener.fileno(), time.time_ns(), syscalls.raise_nofile())  # five a container
        asyncio.run(_serve(place, here, {}))
    finally:
        place.leave()
    return 0


def _resume(options: argparse.Namespace) -> int:
    """The program of a monitor that renewed itself: everything is inherited."""
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]
    log.setup(options.log_level)
    state = renewal.read(options.resume)
    here, listener = renewal.standing(state)
    place = Place(options.socket, here.lock, listener)
    try:
        asyncio.run(_serve(place, here, state))
    finally:
        place.leave()
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cri-bridge monitor", description="Hold the stdio, logs and exits of containers.")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to serve; one monitor per path")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-file", type=Path, default=None, help="append the monitor's own log here (default: stderr)")
    parser.add_argument("--detach", action="store_true", help="go on in the background; this process ends when the socket is served")
    parser.add_argument("--resume", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--cgroup", type=Path, action="append", default=[], help="cgroup directory to join (may be repeated)")
    return parser.parse_args(argv)


def _prepare_process(options: argparse.Namespace) -> None:
    """Undo what was inherited and would be handed on to containers: signals, umask, Python's environment, the directory."""
    options.socket = options.socket.absolute()
    options.log_file = options.log_file and options.log_file.absolute()
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    os.chdir("/")
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]


def _open_log(log_file: Path | None) -> int:
    """The descriptor for the monitor's own log: stderr unless a file is given. Raises HostError."""
    if log_file is None:
        return os.dup(2)
    try:
        return os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        raise HostError(f"can't open {log_file}: {exc.strerror}", errno=exc.errno) from exc


def _replace_standard_streams(log_fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(log_fd, 2)
    os.close(null)
    os.close(log_fd)


def _join_cgroups(directories: Sequence[Path]) -> None:
    for directory in directories:
        try:
            (directory / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as exc:  # it then shares the server's: worse, but no reason to have no monitor
            _logger.warning("can't join cgroup %s: %s", directory, exc.strerror)


def _lower_oom_score() -> None:
    file = Path("/proc/self/oom_score_adj")
    try:
        if int(file.read_text()) > OOM_SCORE_ADJ:
            file.write_text(str(OOM_SCORE_ADJ))
    except OSError as exc:
        _logger.warning("can't lower oom_score_adj to %d: %s", OOM_SCORE_ADJ, exc.strerror)


async def _serve(place: Place, here: Standing, state: Mapping[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    syscalls.set_child_subreaper()
    reaper = Reaper()
    stopped = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        service = Service(group, reaper, stopped.set, here)
        if state:
            service.resume(state)
        reaper.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_terminate, service, stopped)
        accept = Acceptor(place, service, here)
        accept.start()
        _logger.info("monitor %d serves %s", os.getpid(), place.path)
        gc.collect()
        gc.freeze()  # what lives from here on is small: keep collections short
        await stopped.wait()
        await asyncio.sleep(0)  # let the answer to the shutdown request leave
        accept.stop()
        service.close()
    reaper.stop()  # not before the group's last launch was cleaned up


def _on_terminate(service: Service, stopped: asyncio.Event) -> None:
    count = len(service.tasks) + len(service.tasks.launching)
    if count:
        _logger.warning("asked to terminate, but holding %d tasks: staying (see the shutdown request)", count)
    else:
        stopped.set()


class Acceptor:
    """Accepts clients that are root or this process's user, and sees to it that they find the socket."""

    def __init__(self, place: Place, service: Service, here: Standing) -> None:
        self._place = place
        self._service = service
        self._here = here
        self._loop = asyncio.get_running_loop()
        self._look = self._loop.call_later(_LOOK_SECONDS, self._look_after)
        self._said = ""

    def start(self) -> None:
        """Begin, or go on after a pause."""
        self._loop.add_reader(self._place.listener.fileno(), self._readable)

    def stop(self) -> None:
        """Accept nobody any more."""
        self._look.cancel()
        self._loop.remove_reader(self._place.listener.fileno())
        self._place.listener.close()

    def _look_after(self) -> None:
        self._look = self._loop.call_later(_LOOK_SECONDS, self._look_after)
        if self._place.is_held():
            return
        before = self._place.listener.fileno()
        try:
            self._place.take_again()
        except BridgeError as exc:
            if str(exc) != self._said:
                self._said = str(exc)
                _logger.error("the socket was deleted, and can't be made anew: %s", exc)
            return
        self._said = ""
        self._loop.remove_reader(before)
        self.start()
        self._here = dataclasses.replace(self._here, lock=self._place.lock, listener=self._place.listener.fileno())
        self._service.stands(self._here)
        _logger.warning("the socket %s was deleted: it was made anew", self._place.path)

    def _readable(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _ = self._place.listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:  # out of descriptors: the level-triggered event would spin
                _logger.error("can't accept a client: %s", exc.strerror)
                self._loop.remove_reader(self._place.listener.fileno())
                self._loop.call_later(_ACCEPT_PAUSE, self.start)
                return
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid in (0, os.geteuid()):
                self._service.connect(sock)
            else:
                _logger.warning("refused a client of uid %d", uid)
                sock.close()
