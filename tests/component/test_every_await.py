"""RunPodSandbox and CreateContainer, cancelled and failed at each of their awaits: nothing is left and a retry works."""

from __future__ import annotations

import functools
from typing import get_args

import pytest

from bridge.core.entities import ContainerState, SandboxState
from bridge.core.model import MountRequest
from bridge.core.sandbox_run import new_id
from bridge.core.services import Services
from bridge.testing.failpoints import How, interrupt
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root
MODES = get_args(How)
LONGEST = 400


async def run_pod(core: Services, ident: str) -> None:
    runner, backend = core.sandboxes._runner, core.ports.handlers.backend("")
    await runner.run(ident, pod(), "fake", "", backend)


@pytest.mark.parametrize("mode", MODES)
async def test_run_pod_sandbox(world: World, core: Services, mode: How) -> None:
    for at in range(1, LONGEST):
        ident = new_id()
        reached = await interrupt(functools.partial(run_pod, core, ident), at, mode)
        left = core.store.sandboxes.get(ident)
        if left is not None and left.state is SandboxState.READY:
            # The very last steps may be past the commit; then the pod is whole.
            assert left.ips, f"half a pod after {mode} at await {at}"
        elif left is None:
            assert world.leftovers() == [], f"left after {mode} at await {at}"
        # Else an undo step failed, and the record is kept: the retry below has to get past it.
        sandbox = await core.sandboxes.run(pod(), "")
        await core.sandboxes.remove(sandbox.id)
        await core.daemon.leftovers.settle()
        assert world.leftovers() == []
        if not reached:
            assert at > 5, "there was hardly anything to interrupt"
            return
    pytest.fail("never came to its end")


@pytest.mark.parametrize("mode", MODES)
async def test_create_container(world: World, core: Services, mode: How) -> None:
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
        await core.daemon.leftovers.settle()
        assert world.leftovers() == before
        if not reached:
            assert at > 5, "there was hardly anything to interrupt"
            return
    pytest.fail("never came to its end")
