"""How containers behind a shim end: their exit as the shim tells it, or as its binary's verb "delete" does when the shim has died."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
from anyio import to_thread

from bridge import log
from bridge.aio import Supervisor
from bridge.errors import BridgeError, HostError, IllegalTransition, NotFound, RuntimeFailed, ShimGone, TimedOut, Unavailable
from bridge.host import cgroup_kill, cgroups
from bridge.ports.host import Monitor
from bridge.ports.runtime import ExitStatus, SandboxKind
from bridge.shimv2.runtime import SHIM_DIED, ShimRuntime, oom_kills
from bridge.shimv2.shim import Shim, end_runtime
from bridge.shimv2.task import ShimTask, Status

LOST_CODE = 255
CONTAINER_LOST = "ContainerLost"
_PAUSE_SECONDS = 0.2
_EVENT_SECONDS, _POLL_SECONDS = 1.0, 0.02
_KILL = 9
_OOM_FILE = "oom"

_logger = log.get("shimv2.exits")


@asynccontextmanager
async def held(task: ShimTask, keep: Callable[[ShimTask], Awaitable[None]]) -> AsyncIterator[None]:
    """Run ``keep`` beside the block, and end it with the block."""
    async with Supervisor(f"stdio of {task.id[:13]}") as tasks:
        tasks.spawn(f"hold the stdio of {task.id[:13]}", lambda: keep(task))
        yield


async def asked(
    monitor: Monitor,
    ask: Callable[[Monitor], Awaitable[None]],
    hold: Callable[[Monitor], Awaitable[None]],
    ended: ExitStatus | None,
) -> None:
    """``ask`` about a container whose stdio a monitor may not hold yet, as it replaced another a moment ago: it is told to, then.

    Raises IllegalTransition when the container has ended.
    """
    try:
        await ask(monitor)
    except NotFound as exc:  # for a kubelet that word means that there is no such container
        if ended is not None:
            raise IllegalTransition(f"it has ended: {exc}") from exc
        await hold(monitor)
        await ask(monitor)


async def is_over(task: ShimTask) -> bool:
    """Whether its shim says that it has ended, or is gone, or knows it no more. Raises RuntimeFailed, TimedOut."""
    try:
        return (await task.state()).status is Status.STOPPED
    except (NotFound, ShimGone):
        return True


async def of(runtime: ShimRuntime, shim: Shim, task: ShimTask, bundle: Path, cgroup: str | None) -> ExitStatus:
    """The exit of a container that was started: a Wait, and another one after each loss of the connection."""
    while True:
        try:
            status = await task.wait()
        except NotFound as exc:
            _logger.warning("container %s: its shim does not know it any more: %s", task.id[:13], exc)
            return ExitStatus(LOST_CODE, at_ns=time.time_ns(), reason=CONTAINER_LOST)
        except ShimGone as exc:
            if not await shim.is_alive():
                return await bury(runtime, shim, task.id, bundle, cgroup, str(exc))
        except (Unavailable, TimedOut, RuntimeFailed) as exc:
            _logger.warning("container %s can't be waited for now: %s", task.id[:13], exc)
        else:
            if status.signal == _KILL and cgroup is None:
                await _last_event(runtime, task.id)
            # Counted before the shim's state, and with it the cgroup, is freed.
            killed = await _ran_out(runtime, task.id, bundle, cgroup)
            return replace(status, oom_killed=killed, at_ns=status.at_ns or time.time_ns())
        await anyio.sleep(_PAUSE_SECONDS)


async def _ran_out(runtime: ShimRuntime, ident: str, bundle: Path, cgroup: str | None) -> bool:
    """Whether memory ran out, by any of the ways to know: an event, the cgroup, the file that Kata leaves in the bundle.

    The file is for CRI-O, by whose annotations Kata knows it, and is there also when nobody took the event.
    """
    if ident in runtime.oom:
        return True
    return await to_thread.run_sync(lambda: oom_kills(cgroup) > 0 or (bundle / _OOM_FILE).exists())


async def _last_event(runtime: ShimRuntime, ident: str) -> None:
    """Events come by another way than the answer to Wait. A shim tells that memory ran out before it tells of the exit."""
    with anyio.move_on_after(_EVENT_SECONDS):
        while ident not in runtime.ended and ident not in runtime.oom:  # noqa: ASYNC110 - an Event each would be kept for all
            await anyio.sleep(_POLL_SECONDS)


async def bury(runtime: ShimRuntime, shim: Shim, ident: str, bundle: Path, cgroup: str | None, why: str) -> ExitStatus:
    """End a container whose shim has died, by the binary's verb "delete", and say how it ended. Repeatable."""
    words = "; ".join(await shim.last_words()) or "it said nothing"
    _logger.error("container %s: its shim has died (%s), its last words: %s", ident[:13], why, words)
    oom = await _ran_out(runtime, ident, bundle, cgroup)
    status = ExitStatus(LOST_CODE)
    try:
        status = await clean_up(runtime, ident, bundle)
    except BridgeError as exc:
        _logger.error("container %s: its dead shim can't be cleaned up after: %s", ident[:13], exc)
    await to_thread.run_sync(_end_cgroup, cgroup, runtime.settings.timeouts.kill)
    return replace(status, signal=None, oom_killed=oom, at_ns=status.at_ns or time.time_ns(), reason=SHIM_DIED)


async def never_runs(runtime: ShimRuntime, task: ShimTask | None) -> bool:
    """Whether it was created in a guest and never started: it has no exit that a Wait could tell, and Delete is all that it takes."""
    if task is None or runtime.settings.kind is not SandboxKind.VM:
        return False
    try:  # a Start that is under way in a guest's shim is over before that says anything else
        return (await task.state()).status is Status.CREATED
    except (NotFound, ShimGone):
        return False


async def free(runtime: ShimRuntime, shim: Shim, ident: str, bundle: Path) -> bool:
    """Have the shim forget a container that has ended, or never ran; whether it knew it. Raises RuntimeFailed, TimedOut, ShimGone."""
    try:
        await ShimTask(shim, ident).delete(timeout=runtime.settings.timeouts.delete)
    except NotFound:
        return False
    except ShimGone:
        if await shim.is_alive():
            raise
        await _try_clean_up(runtime, ident, bundle)
        return False
    return True


async def free_unfinished(runtime: ShimRuntime, shim: Shim, ident: str, bundle: Path, cgroup: str | None) -> None:
    """``free`` of a container whose Create may have been cut off.

    A shim ends the runtime that it runs for a call when the caller's connection breaks or the call takes too long, and then knows
    nothing of the container, of which the runtime leaves whatever it had made: its state, a cgroup, a process in that.
    A guest's is its agent's, which the verb "delete" beside a living shim could take the whole machine for.
    Raises RuntimeFailed, TimedOut, HostError, ShimGone.
    """
    if await free(runtime, shim, ident, bundle):
        return
    settings = runtime.settings
    await to_thread.run_sync(end_runtime, settings.binary.path, ident, bundle)
    await to_thread.run_sync(_end_cgroup, cgroup, settings.timeouts.kill)
    if settings.kind is not SandboxKind.VM:
        await _try_clean_up(runtime, ident, bundle)


async def _try_clean_up(runtime: ShimRuntime, ident: str, bundle: Path) -> None:
    try:
        await clean_up(runtime, ident, bundle)
    except BridgeError as exc:  # mostly: it was cleaned up after already. A dead shim must not keep a pod (cri-o#9994)
        _logger.warning("container %s can't be cleaned up after: %s", ident[:13], exc)


async def clean_up(runtime: ShimRuntime, ident: str, bundle: Path) -> ExitStatus:
    """The verb "delete" after a dead shim. A bundle that is gone, or goes meanwhile, had nothing left to clean up. Raises RuntimeFailed."""
    try:
        return await runtime.settings.binary.delete(ident, bundle)
    except (RuntimeFailed, HostError) as exc:
        if await to_thread.run_sync((bundle / "config.json").exists):
            raise
        _logger.debug("%s: its bundle is gone: %s", ident[:13], exc)
        return ExitStatus(LOST_CODE)


async def let_go(runtime: ShimRuntime, ident: str, status: ExitStatus | None) -> None:
    """Have the monitor forget a container, of which it is told ``status`` if it was told nothing before. Repeatable. Raises MonitorGone."""

    async def forget(monitor: Monitor) -> None:
        with contextlib.suppress(NotFound):
            await monitor.ended(ident, status or ExitStatus(LOST_CODE), drain=runtime.settings.drain)
        await monitor.forget(ident)

    await runtime.lasting(forget)


def _end_cgroup(cgroup: str | None, timeout: float) -> None:
    directory = cgroup_kill.kill_directory(cgroup)
    if directory is None or cgroup is None:
        return
    for each in cgroups.layout().directories(cgroup):
        cgroup_kill.kill_all(each, timeout=timeout)
        cgroups.remove_directory(each)
