"""What may happen while recovery is under way, when a backend is away, and when records were lost."""

import dataclasses
import sqlite3

import anyio
import pytest

from bridge.core.entities import ContainerState, SandboxState
from bridge.errors import HostError, NotFound, Unavailable
from bridge.ports.runtime import ContainerSpec, Record
from bridge.testing.fake_handlers import FakeHandlers
from bridge.testing.fakes import FakeContainer, FakeSandbox
from tests.component.conftest import World, container, pod
from tests.component.test_recovery import running_pod

pytestmark = pytest.mark.root


async def test_requests_wait_until_recovery_has_looked_at_the_pod(world: World) -> None:
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
    async with world.started() as core:
        done = []

        async def remove() -> None:
            await core.sandboxes.remove(sandbox)
            done.append("removed")

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(remove)
                await anyio.wait_all_tasks_blocked()
                assert done == []
                assert core.containers.find(ident).state is ContainerState.RUNNING, "reads do not wait"
                other = await core.sandboxes.run(pod("other"), "")
                await core.recovery.run()
        assert done == ["removed"]
        await core.sandboxes.remove(other.id)
    assert world.leftovers() == []


@pytest.mark.parametrize("error", [NotFound("the handler is disabled: its binary is missing"), Unavailable("the monitor is away")])
async def test_a_pod_whose_backend_is_away_is_kept(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
    async with world.started() as core:

        def away(self: FakeHandlers, name: str, opening: object = None) -> None:
            raise error

        with monkeypatch.context() as patch, anyio.fail_after(5):
            patch.setattr(FakeHandlers, "backend", away)
            patch.setattr(FakeHandlers, "states", lambda self: ())
            await dataclasses.replace(core.recovery, pause=0.01).run()
            assert core.containers.find(ident).state is ContainerState.RUNNING
            assert core.sandboxes.find(sandbox).state is SandboxState.READY
            for call in (core.sandboxes.stop(sandbox), core.containers.stop(ident, 1), core.containers.create(sandbox, container("two"))):
                with pytest.raises(Unavailable, match="can't be reached"):
                    await call
        with anyio.fail_after(5):
            while core.live.unreachable:
                await anyio.sleep(0.01)
        await core.containers.stop(ident, 1)
        assert core.containers.find(ident).exit_code == 143
        await core.sandboxes.remove(sandbox)
    assert world.leftovers() == []


@pytest.mark.parametrize(
    ("failures", "error"), [(2, HostError("Too many open files")), (99, HostError("Too many open files")), (1, ValueError("not JSON"))]
)
async def test_a_container_that_cannot_be_taken_over_is_lost_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, failures: int, error: Exception
) -> None:
    """After some tries, as most of what hinders it passes; and what may run of it ends, so that the next attempt is the only one."""
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
        other = await core.containers.create(sandbox, container("other"))
        await core.containers.start(other.id)
    load = FakeSandbox.load_container
    left = failures

    async def failing(self: FakeSandbox, spec: ContainerSpec, record: Record) -> FakeContainer:
        nonlocal left
        if spec.id == ident:
            left -= 1
            if left >= 0:
                raise error
        return await load(self, spec, record)

    async with world.started() as core:
        with monkeypatch.context() as patch, anyio.fail_after(10):
            patch.setattr(FakeSandbox, "load_container", failing)
            await dataclasses.replace(core.recovery, pause=0.01).run()
            if isinstance(error, HostError):
                assert core.containers.find(ident).state is ContainerState.RUNNING, "nobody knows better yet"
            while core.live.unreachable:
                await anyio.sleep(0.01)
        found, lost = core.containers.find(ident), failures == 99 or isinstance(error, ValueError)
        assert found.state is (ContainerState.EXITED if lost else ContainerState.RUNNING)
        assert (found.reason, found.exit_code) == (("ContainerLost", 255) if lost else ("", 0))
        assert (ident in world.backend.containers) is not lost
        assert core.sandboxes.find(sandbox).state is SandboxState.READY
        await core.containers.stop(other.id, 1)
        assert core.containers.find(other.id).exit_code == 143, "it is watched"
        await core.containers.remove(ident)
        await core.sandboxes.remove(sandbox)
    assert world.leftovers() == []


async def test_what_no_record_owns_is_removed(world: World) -> None:
    async with world.started() as core:
        await running_pod(core)
        kept = await core.sandboxes.run(pod("kept"), "")
        made = await core.containers.create(kept.id, container())
    with sqlite3.connect(world.root / "state.db") as db:
        db.execute("UPDATE sandboxes SET body = 'damaged' WHERE id <> ?", (kept.id,))
    async with world.started() as core:
        await core.recovery.run()
        assert set(world.backend.containers) == {made.id}
        assert world.images.mounted == {made.id}
        assert [path.name for path in (world.run_dir / "sandboxes").iterdir()] == [kept.id]
        await core.sandboxes.remove(kept.id)
    world.network.attached.clear()  # whose address it was stood in the damaged record; CNI GC is told what to keep
    assert world.leftovers() == []
