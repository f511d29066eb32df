"""Run a short helper process to its end, with a deadline, from the event loop.

``subprocess.Popen`` without preexec_fn uses vfork, which stays cheap however large the server is; the exit arrives through a
pidfd in the event loop, so nothing polls and no thread or SIGCHLD handler is needed. The child leads its own session: on
timeout or cancellation its whole process group is killed. Reaping belongs to a loop callback, not to the caller's task,
so that no cancellation can leave a zombie.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio

from bridge import log
from bridge.errors import HostError, TimedOut

_CHUNK = 65536
_DRAIN_SECONDS = 0.5
"""How long output is awaited after the exit, while something else still holds the pipes open."""
_REAP_SECONDS = 5.0
"""How long a caller waits for a killed process to be gone; one stuck in the kernel is reaped later by the loop."""

_logger = log.get("host.process")


@dataclass(frozen=True, slots=True)
class Completed:
    """What a process left: ``returncode`` as in subprocess (negative: killed by that signal), the head of each output.

    ``truncated`` tells that a stream was longer than ``max_output`` bytes; the surplus was read and dropped.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class _Output:
    """Collects one pipe up to a limit and reads on beyond it, so that the writer never blocks."""

    def __init__(self, pipe: IO[bytes], limit: int) -> None:
        self.pipe = pipe
        self.data = bytearray()
        self.truncated = False
        self._limit = limit
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> bool:
        """Take what one read gives; False at the end of the stream."""
        try:
            chunk = os.read(self.pipe.fileno(), _CHUNK)
        except BlockingIOError:
            return True
        room = self._limit - len(self.data)
        self.data += chunk[:room]
        self.truncated |= len(chunk) > room
        return bool(chunk)


class _Child:
    """One spawned process: its pipes and its pidfd as readers of the running loop."""

    def __init__(self, popen: subprocess.Popen[bytes], pidfd: int, data: bytes, max_output: int) -> None:
        assert popen.stdout is not None
        assert popen.stderr is not None
        self._popen = popen
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._input = memoryview(data)
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self._reap_at_exit = False
        self.stdout = _Output(popen.stdout, max_output)
        self.stderr = _Output(popen.stderr, max_output)
        self._open = [self.stdout, self.stderr]
        for output in self._open:
            self._loop.add_reader(output.pipe.fileno(), self._readable, output)
        self._loop.add_reader(pidfd, self._on_exit)
        if popen.stdin is not None and not data:
            popen.stdin.close()
        elif popen.stdin is not None:
            os.set_blocking(popen.stdin.fileno(), False)
            self._loop.add_writer(popen.stdin.fileno(), self._writable, popen.stdin)

    def _readable(self, output: _Output) -> None:
        if not output.read():
            self._close_output(output)

    def _close_output(self, output: _Output) -> None:
        self._open.remove(output)
        self._loop.remove_reader(output.pipe.fileno())
        output.pipe.close()
        if not self._open:
            self.drained.set()

    def _writable(self, pipe: IO[bytes]) -> None:
        try:
            self._input = self._input[os.write(pipe.fileno(), self._input) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it need not read its input
            self._input = self._input[:0]
        if not self._input:
            self._close_input()

    def _close_input(self) -> None:
        pipe = self._popen.stdin
        if pipe is not None and not pipe.closed:
            self._loop.remove_writer(pipe.fileno())
            pipe.close()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.exited.set()
        if self._reap_at_exit:
            self._reap()

    def _reap(self) -> None:
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        assert result is not None
        # Popen must know, or its finaliser would wait for a pid that may by then be another process.
        self._popen.returncode = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def kill_group(self) -> None:
        """SIGKILL the group. Only before ``release``: the unreaped leader keeps its number from being reused."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def release(self) -> int | None:
        """Close the pipes and reap, now or when it exits; returns the exit code when it is known."""
        self._close_input()
        for output in tuple(self._open):
            self._close_output(output)
        if self.exited.is_set():
            self._reap()
        else:
            self._reap_at_exit = True
        return self._popen.returncode


def _start(
    argv: Sequence[str], data: bytes, env: Mapping[str, str] | None, cwd: Path | None, max_output: int, pass_fds: Sequence[int]
) -> _Child:
    try:
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,  # also for nothing: crun gives its standard streams, and so the host's /dev/null, to whom it starts
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=env,
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except OSError as exc:
        raise HostError(f"can't run {argv[0]}: {exc.strerror or exc}", errno=exc.errno) from exc
    try:
        return _Child(popen, os.pidfd_open(popen.pid), data, max_output)
    except BaseException:
        popen.kill()
        popen.communicate()
        raise


@contextlib.contextmanager
def held(argv: Sequence[str], *, timeout: float) -> Iterator[int]:
    """Run ``argv``, which must answer what it reads (cat), while the block runs; yields its pid once it has answered.

    It ends with the block, or with this process, which closes its input. Blocks: call it in a worker thread. Raises HostError
    with what it said when it can't be started or does not answer, TimedOut after ``timeout`` seconds.
    """
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
        )
    except OSError as exc:
        raise HostError(f"can't run {argv[0]}: {exc.strerror or exc}", errno=exc.errno) from exc
    with child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and its stderr says why
                child.stdin.write(b"\n")
            answer = select.poll()
            answer.register(child.stdout, select.POLLIN)
            if not answer.poll(timeout * 1000):
                raise TimedOut(f"{argv[0]} did not answer within {timeout:g} s")
            if not child.stdout.read(1):
                raise HostError(f"{argv[0]}: {child.stderr.read(4096).decode(errors='replace').strip() or 'ended without a word'}")
            yield child.pid
        finally:
            child.kill()


async def run(
    argv: Sequence[str],
    *,
    input: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float,
    max_output: int = 1 << 20,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run ``argv`` in its own session and return its exit code and output, of which ``max_output`` bytes a stream are kept.

    ``timeout`` is in seconds. On timeout (raises TimedOut) or cancellation the whole process group is SIGKILLed and
    reaped. A process left behind by a leader that ended in time is not touched, but its output is awaited only for half
    a second. Raises HostError when the process can't be started.
    """
    child = _start(argv, input, env, cwd, max_output, pass_fds)
    ended = False
    try:
        with anyio.move_on_after(timeout):
            await child.exited.wait()
        if not child.exited.is_set():
            raise TimedOut(f"{argv[0]} did not end within {timeout:g} s")
        with anyio.move_on_after(_DRAIN_SECONDS):
            await child.drained.wait()
        ended = True
    finally:
        if not ended:
            child.kill_group()
        code = child.release()
        if code is None:
            with anyio.move_on_after(_REAP_SECONDS, shield=True):
                await child.exited.wait()
            if not child.exited.is_set():
                _logger.warning("%s was killed but is stuck in the kernel; it is reaped when it ends", argv[0])
    assert code is not None
    return Completed(code, bytes(child.stdout.data), bytes(child.stderr.data), child.stdout.truncated or child.stderr.truncated)
