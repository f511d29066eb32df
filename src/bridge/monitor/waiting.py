"""The exit of a container whose process the host doesn't know, because it runs inside a sandbox: told by a command of its runtime.

The command (``runsc wait ID``) lasts as long as the container, and answers ``{"id", "exitStatus"}`` also when it is asked after
the exit. One that fails is run again while the sandbox lives; the sandbox's death is the container's.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time

from bridge import log
from bridge.errors import HostError
from bridge.monitor.parameters import WaitCommand
from bridge.monitor.reaper import OnExit, Reaper
from bridge.monitor.verb import kill_tree, spawn, tail
from bridge.ports.runtime import ExitStatus

SANDBOX_DIED = "SandboxDied"
"""Reason of an exit that was the sandbox's (code 137)."""
EXIT_UNKNOWN = "ExitUnknown"
"""Reason of an exit that the runtime could not tell while the sandbox lived on (code 255)."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_TRIES = 8
_GRACE_SECONDS = 1.0
"""How long a command may take to answer after the sandbox has died: the container may have ended by itself just before."""
_ANSWER_BYTES = 65536

_logger = log.get("monitor.waiting")


class ExitWaiter:
    """Calls ``on_exit`` once. ``pidfd`` is the sandbox's process, None when it is gone; it stays the caller's."""

    def __init__(self, reaper: Reaper, command: WaitCommand, pidfd: int | None, on_exit: OnExit) -> None:
        self._reaper, self._command, self._on_exit = reaper, command, on_exit
        self._loop = asyncio.get_running_loop()
        self._pidfd = pidfd
        self._pid: int | None = None
        self._pipes: tuple[int, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        if pidfd is not None:
            self._loop.add_reader(pidfd, self._sandbox_died)
        self._run()

    def close(self) -> None:
        """Let go, without a word. Repeatable; to be called before the pidfd is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            self._pidfd = None
        if self._pid is not None:
            if self._reaper.is_child(self._pid):
                kill_tree(self._pid)
            self._reaper.forget(self._pid)
            self._pid = None
        while self._pipes:
            os.close(self._pipes[0])
            self._pipes = self._pipes[1:]

    def _run(self) -> None:
        self._timer = None
        command = self._command
        answer, answer_end = os.pipe()
        words, words_end = os.pipe()
        self._pipes = (answer, words)
        try:
            os.set_blocking(answer, False)
            os.set_blocking(words, False)
            pid = spawn(command.argv, cwd=command.cwd, env=command.env, stdin=subprocess.DEVNULL, stdout=answer_end, stderr=words_end)
        except HostError as exc:
            self._failed(exc.message)
            return
        finally:
            os.close(answer_end)
            os.close(words_end)
        self._pid = pid
        self._reaper.watch(pid, self._ended)

    def _ended(self, status: ExitStatus) -> None:
        self._pid = None
        answer, words = self._pipes
        try:
            text = os.read(answer, _ANSWER_BYTES)
        except BlockingIOError:
            text = b""
        code = exit_code(text) if status.code == 0 else None
        if code is None:
            self._failed("; ".join(tail(words)) or f"exit code {status.code}")
        else:
            self._tell(ExitStatus(code=code, at_ns=time.time_ns()))

    def _failed(self, why: str) -> None:
        while self._pipes:
            os.close(self._pipes[0])
            self._pipes = self._pipes[1:]
        self._failures += 1
        if self._pidfd is None or _has_ended(self._pidfd):
            self._tell_death()
        elif self._failures >= _TRIES:
            _logger.error("%s: the runtime can't tell its exit: %s", self._command.task, why)
            self._tell(ExitStatus(code=255, at_ns=time.time_ns(), reason=EXIT_UNKNOWN))
        else:
            _logger.warning("%s: the runtime can't tell its exit now: %s", self._command.task, why)
            pause = min(_FIRST_PAUSE * 2 ** (self._failures - 1), _LONGEST_PAUSE)
            self._timer = self._loop.call_later(pause, self._run)

    def _sandbox_died(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        if self._timer is not None or self._pid is None:
            self._tell_death()
        else:
            self._timer = self._loop.call_later(_GRACE_SECONDS, self._tell_death)

    def _tell_death(self) -> None:
        self._tell(ExitStatus(code=128 + signal.SIGKILL, signal=signal.SIGKILL, at_ns=time.time_ns(), reason=SANDBOX_DIED))

    def _tell(self, status: ExitStatus) -> None:
        self.close()
        self._loop.call_soon(self._on_exit, status)


def exit_code(text: bytes) -> int | None:
    """The code in a command's answer; None when that is no answer."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    code = found.get("exitStatus") if isinstance(found, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= 255 else None


def _has_ended(pidfd: int) -> bool:
    """Whether the process is dead, be it reaped or not."""
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        pass
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False
