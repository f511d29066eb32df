"""Stopping a container: one task of the daemon a container, with a deadline that can only come nearer.

A second StopContainer with a shorter grace period brings the first one's SIGKILL forward (cri-o#8748: a grace period of a
day must not be final). Callers wait for the store to show the exit.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

import anyio

from bridge import log
from bridge.aio import Supervisor, describe
from bridge.core import stop_signal
from bridge.core.entities import ContainerState
from bridge.core.live import Live, LiveContainer
from bridge.core.model import NamespaceMode
from bridge.core.settings import CoreSettings
from bridge.core.store import Store
from bridge.errors import BridgeError, NotFound, TimedOut

_logger = log.get("core.stop")
_LONGEST_GRACE = 10 * 365 * 86400.0


@dataclass(slots=True)
class _Stop:
    deadline: float
    sooner: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    error: BridgeError | None = None


class Stopper:
    """See the module docstring."""

    def __init__(self, store: Store, live: Live, settings: CoreSettings, supervisor: Supervisor) -> None:
        self._store = store
        self._live = live
        self._settings = settings
        self._supervisor = supervisor
        self._stops: dict[str, _Stop] = {}

    async def stop(self, ident: str, timeout: float) -> None:
        """Signal, wait at most ``timeout`` s, kill. Returns once the exit is recorded; ended or never started is success.

        Raises TimedOut when even SIGKILL has not ended it within the kill timeout (a process stuck in the kernel).
        """
        container = self._store.containers.get(ident)
        if container is None or container.state is not ContainerState.RUNNING:
            return
        deadline = anyio.current_time() + min(max(timeout, 0.0), _LONGEST_GRACE)
        stop = self._stops.get(ident)
        if stop is None:
            stop = self._stops[ident] = _Stop(deadline)
            try:
                self._supervisor.spawn(f"stop container {ident}", lambda: self._run(ident, stop))
            except BaseException:
                del self._stops[ident]
                raise
        elif deadline < stop.deadline:
            stop.deadline = deadline
            stop.sooner.set()
        await stop.ended.wait()
        if stop.error is not None:
            raise stop.error.with_traceback(None)

    async def _run(self, ident: str, stop: _Stop) -> None:
        try:
            await self._stop(ident, self._live.container(ident), stop)
        except BridgeError as exc:
            stop.error = exc
        except BaseException as exc:
            stop.error = TimedOut(f"stopping container {ident} was cut off: {describe(exc)}")
            raise
        finally:
            self._stops.pop(ident, None)
            stop.ended.set()

    async def _stop(self, ident: str, entry: LiveContainer, stop: _Stop) -> None:
        container = self._store.container(ident)
        number = stop_signal.number(container.stop_signal)
        _set_free(entry)
        if anyio.current_time() < stop.deadline:
            await _deliver(entry, number)
            await self._grace(entry, stop)
        if not entry.exited.is_set():
            await self._kill(ident, entry)
        # Stopped means that the runtime's state and the cgroup are gone too, which the watch over the exit sees to.
        with anyio.move_on_after(self._settings.kill_timeout):
            await entry.released.wait()

    async def _kill(self, ident: str, entry: LiveContainer) -> None:
        container = self._store.container(ident)
        _set_free(entry)  # from one that was begun meanwhile
        own_pid_namespace = container.config.security.namespaces.pid is NamespaceMode.CONTAINER
        if not own_pid_namespace:
            _logger.debug("container %s has no PID namespace of its own: killing its whole cgroup", ident[:13])
        await _deliver(entry, signal.SIGKILL, all_processes=not own_pid_namespace)
        with anyio.move_on_after(self._settings.kill_timeout):
            await entry.exited.wait()
        if not entry.exited.is_set():
            raise TimedOut(f"container {ident} did not end within {self._settings.kill_timeout:g} s of SIGKILL")

    async def _grace(self, entry: LiveContainer, stop: _Stop) -> None:
        while not entry.exited.is_set() and anyio.current_time() < stop.deadline:
            stop.sooner = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(_first, entry.exited, group)
                group.start_soon(_first, stop.sooner, group)
                group.start_soon(_at, stop.deadline, group)


def _set_free(entry: LiveContainer) -> None:
    """End its checkpoint: while it stands still, it would not even hear SIGKILL (cgroup v1)."""
    if entry.checkpoint is not None:
        entry.checkpoint.cancel()


async def _first(event: anyio.Event, group: anyio.abc.TaskGroup) -> None:
    await event.wait()
    group.cancel_scope.cancel()


async def _at(deadline: float, group: anyio.abc.TaskGroup) -> None:
    await anyio.sleep_until(deadline)
    group.cancel_scope.cancel()


async def _deliver(entry: LiveContainer, number: int, *, all_processes: bool = False) -> None:
    try:
        await entry.handle.kill(number, all_processes=all_processes)
    except NotFound:
        _logger.debug("container %s ended before the signal reached it", entry.handle.id[:13])
