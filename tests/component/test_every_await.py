"""RunPodSandbox and CreateContainer, cancelled and failed at each of their awaits: nothing is left and a retry works."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest

from bridge.core.entities import ContainerState, SandboxState
from bridge.core.model import MountRequest
from bridge.core.sandbox_run import new_id
from bridge.core.services import Services
from bridge.errors import HostError
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root
MODES = ("cancel", "fail")
LONGEST = 400
_INJECTED = "injected failure"


class Interrupted:
    """Drives an awaitable and interferes at its ``at``-th suspension.

    "cancel" cancels the scope around it, as a shutdown does. "fail" lets what was awaited finish and then raises in its
    place, as an operation that had its effect and failed all the same.
    """

    def __init__(self, work: Awaitable[Any], at: int, mode: str, scope: anyio.CancelScope) -> None:
        self._work = work
        self._at = at
        self._mode = mode
        self._scope = scope
        self.suspensions = 0
        self.done = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited_for = steps.throw(error) if error is not None else next(steps)
            except StopIteration as end:
                self.done = True
                return end.value
            error = None
            self.suspensions += 1
            if self.suspensions == self._at and self._mode == "cancel":
                self._scope.cancel()
            try:
                yield waited_for
            except BaseException as exc:  # noqa: BLE001 - handed on to the work
                error = exc
            if self.suspensions == self._at and self._mode == "fail" and error is None and not _is_cancelled():
                error = HostError(_INJECTED)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def interrupt(work: Callable[[], Awaitable[Any]], at: int, mode: str) -> bool:
    """Whether the work was long enough to be interrupted."""
    with anyio.CancelScope() as scope:
        interrupted = Interrupted(work(), at, mode, scope)
        try:
            await interrupted
        except HostError as exc:
            if _INJECTED not in str(exc):  # whoever met it may have said where
                raise
    return interrupted.suspensions >= at


async def run_pod(core: Services, ident: str) -> None:
    runner, backend = core.sandboxes._runner, core.ports.handlers.backend("")
    await runner.run(ident, pod(), "fake", "", backend)


@pytest.mark.parametrize("mode", MODES)
async def test_run_pod_sandbox(world: World, core: Services, mode: str) -> None:
    for at in range(1, LONGEST):
        ident = new_id()
        reached = await interrupt(functools.partial(run_pod, core, ident), at, mode)
        left = core.store.sandboxes.get(ident)
        if left is not None and left.state is SandboxState.READY:
            # The very last steps may be past the commit; then the pod is whole.
            assert left.ips, f"half a pod after {mode} at await {at}"
        elif left is None:
            assert world.leftovers() == [], f"left after {mode} at await {at}"
        # Else a failing undo left a record in phase creating: the retry below has to get past it.
        sandbox = await core.sandboxes.run(pod(), "")
        await core.sandboxes.remove(sandbox.id)
        assert world.leftovers() == []
        if not reached:
            assert at > 5, "there was hardly anything to interrupt"
            return
    pytest.fail("never came to its end")


@pytest.mark.parametrize("mode", MODES)
async def test_create_container(world: World, core: Services, mode: str) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    before = world.leftovers()
    (world.root / "volume").mkdir()
    volume = str(world.root / "volume")
    # One that is only looked at, and one of which a copy is made: each with steps of its own.
    volumes = (MountRequest("/plain", volume), MountRequest("/copied", volume, readonly=True, recursive_read_only=True))
    wanted = container(mounts=volumes)
    for at in range(1, LONGEST):
        ident = new_id()
        reached = await interrupt(functools.partial(core.containers._creator.create, ident, sandbox, wanted), at, mode)
        left = core.store.containers.get(ident)
        if left is None:
            assert world.leftovers() == before, f"left after {mode} at await {at}"
        elif left.state is ContainerState.CREATED:
            await core.containers.remove(ident)
        made = await core.containers.create(sandbox.id, wanted)
        await core.containers.remove(made.id)
        assert world.leftovers() == before
        if not reached:
            assert at > 5, "there was hardly anything to interrupt"
            return
    pytest.fail("never came to its end")
