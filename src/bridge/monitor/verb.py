"""Running a runtime's verb: its descriptors, its deadline, its pid file, and the end of everything it made when it fails.

For a container without a terminal the verb and the container share the stdio pipes, so the pipes are not read before the verb has
succeeded: if it fails, what it wrote to stderr is still there to be reported, and none of it was taken for container output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bridge import log
from bridge.errors import HostError
from bridge.monitor.parameters import Launch
from bridge.monitor.protocol import LaunchFailed
from bridge.monitor.reaper import Reaper

_TAIL_BYTES = 65536
_TAIL_LINES = 20
_CLEANUP_SECONDS = 30.0
_KILL_ROUNDS = 10

_logger = log.get("monitor.verb")


def spawn(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None, stdin: int, stdout: int, stderr: int) -> int:
    """Start ``argv`` as leader of its own session with these descriptors and no other; returns its pid. Raises HostError."""
    try:
        child = subprocess.Popen(argv, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
    except OSError as exc:
        raise HostError(f"can't run {argv[0]} in {cwd}: {exc.strerror or exc}", errno=exc.errno) from exc
    # The reaper alone waits for children: with a return code set, Popen's finaliser leaves the pid alone.
    child.returncode = 0
    return child.pid


async def run_verb(reaper: Reaper, launch: Launch, *, stdin: int, stdout: int, stderr: int, first: int, null: int) -> int:
    """Run the verb and return the pid it, or one before it, wrote to the pid file. Must run under ``reaper.hold()``.

    Verbs that the launch wants run before it read from ``null`` and write to ``first``. All of them together have the launch's time.

    Raises LaunchFailed without a tail (the caller holds the pipes), after everything of the verb was killed; the same happens when
    the calling task is cancelled.
    """
    try:
        launch.pid_file.unlink(missing_ok=True)
    except OSError as exc:
        raise HostError(f"can't remove a stale pid file {launch.pid_file}: {exc.strerror}", errno=exc.errno) from exc
    try:
        async with asyncio.timeout(launch.timeout):
            for argv in launch.before:
                await _to_its_end(reaper, launch, argv, stdin=null, stdout=first, stderr=first)
            await _to_its_end(reaper, launch, launch.argv, stdin=stdin, stdout=stdout, stderr=stderr)
    except TimeoutError as exc:
        raise LaunchFailed(None) from exc
    return _read_pid(launch.pid_file)


async def _to_its_end(reaper: Reaper, launch: Launch, argv: Sequence[str], *, stdin: int, stdout: int, stderr: int) -> None:
    verb = spawn(argv, cwd=launch.cwd, env=launch.env, stdin=stdin, stdout=stdout, stderr=stderr)
    exit_ = reaper.exit_of(verb)
    try:
        await asyncio.wait((exit_,))
    finally:
        if not exit_.done():
            kill_tree(verb)
    ended = exit_.result()
    if ended.code:
        raise LaunchFailed(ended.code if ended.signal is None else -ended.signal)


async def clean_up(reaper: Reaper, launch: Launch, null: int) -> None:
    """Run the request's ``on_failure`` command, if any, to its end or its deadline; its failure is only logged."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(launch.pid_file.read_text())
        if launch.told_by is None and reaper.is_child(pid):  # else it is the sandbox's, which lives on
            os.kill(pid, signal.SIGKILL)
    if not launch.on_failure:
        return
    try:
        pid = spawn(launch.on_failure, cwd=launch.cwd, env=launch.env, stdin=null, stdout=null, stderr=null)
    except HostError as exc:
        _logger.error("%s: clean-up after a failed launch: %s", launch.task, exc)
        return
    exit_ = reaper.exit_of(pid)
    await asyncio.wait((exit_,), timeout=_CLEANUP_SECONDS)
    if not exit_.done():
        kill_tree(pid)
        _logger.error("%s: clean-up after a failed launch did not end within %g s", launch.task, _CLEANUP_SECONDS)
    elif exit_.result().code:
        _logger.warning("%s: clean-up after a failed launch: exit code %d", launch.task, exit_.result().code)


def kill_tree(pid: int) -> None:
    """SIGKILL ``pid`` and all its descendants, which are stopped first so that none escapes by forking meanwhile."""
    seen: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        found = _descendants(pid) - seen
        if not found:
            break
        for each in found:
            with contextlib.suppress(OSError):
                os.kill(each, signal.SIGSTOP)
        seen |= found
    for each in seen:
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)


def _descendants(pid: int) -> set[int]:
    found, frontier = {pid}, [pid]
    while frontier:
        parent = frontier.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{thread}/children").read_text().split()
                frontier += [child for child in map(int, children) if child not in found]
                found.update(map(int, children))
    return found


def _read_pid(path: Path) -> int:
    try:
        pid = int(path.read_text())
    except (OSError, ValueError) as exc:
        raise LaunchFailed(0, [f"the runtime succeeded but its pid file {path} is unusable: {exc}"]) from exc
    if pid <= 1:
        raise LaunchFailed(0, [f"the runtime succeeded but wrote pid {pid} to {path}"])
    return pid


def tail(fd: int) -> tuple[str, ...]:
    """The last lines of what is readable now from non-blocking pipe ``fd``."""
    data = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(fd, _TAIL_BYTES):
            data = (data + chunk)[-_TAIL_BYTES:]
    return tuple(data.decode(errors="replace").splitlines()[-_TAIL_LINES:])
