"""The server restarts over the same files: what runs is adopted, what was half-way is undone, nothing is fatal."""

import contextlib
import dataclasses
import sqlite3

import anyio
import pytest

from bridge.core import records
from bridge.core.entities import ContainerState, SandboxState
from bridge.core.sandbox_run import new_id
from bridge.core.services import Services
from bridge.errors import IllegalTransition, TimedOut
from bridge.ports.runtime import ContainerSpec, Record
from bridge.testing.fakes import FakeContainer, FakeSandbox
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


async def running_pod(core: Services) -> tuple[str, str]:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    return sandbox.id, made.id


async def test_a_running_pod_is_adopted(world: World) -> None:
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
        before = core.containers.find(ident)
    async with world.started() as core:
        assert core.containers.find(ident) == before, "List is right before recovery ran"
        await core.recovery.run()
        assert core.containers.find(ident).state is ContainerState.RUNNING
        await core.containers.stop(ident, 1)
        assert core.containers.find(ident).exit_code == 143
        await core.sandboxes.remove(sandbox)
    assert world.leftovers() == []


async def test_an_exit_while_the_server_was_away_is_told(world: World) -> None:
    async with world.started() as core:
        _, ident = await running_pod(core)
    world.backend.containers[ident].exit(7)
    async with world.started() as core:
        await core.recovery.run()
        await core.live.containers[ident].exited.wait()
        assert core.containers.find(ident).exit_code == 7


async def test_what_had_ended_is_released_by_whoever_adopts_it(world: World) -> None:
    """The server may have been killed between the exit's record and the release, and nobody else knows."""
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
        world.backend.faults.fail_on.add("release")
        await core.containers.stop(ident, 0)
        assert not core.live.containers[ident].freed, "its removal goes step by step: the bundle is needed"
    async with world.started() as core:
        await core.recovery.run()
        entry = core.live.containers[ident]
        with anyio.fail_after(10):
            await entry.released.wait()
        assert entry.freed
        assert core.containers.find(ident).state is ContainerState.EXITED
        await core.sandboxes.remove(sandbox)
    assert world.leftovers() == []


async def test_a_pod_is_not_torn_down_below_a_release(world: World) -> None:
    async with world.started() as core:
        _, ident = await running_pod(core)
        await core.containers.stop(ident, 0)
    world.backend.faults.hung.add("release")
    async with world.started() as core, anyio.create_task_group() as group:
        await core.recovery.run()
        sandbox = core.containers.find(ident).sandbox_id
        group.start_soon(core.sandboxes.stop, sandbox)
        await anyio.wait_all_tasks_blocked()
        assert core.sandboxes.find(sandbox).state is SandboxState.READY
        core.live.containers[ident].released.set()
        with anyio.fail_after(10):
            await core.sandboxes.stop(sandbox)
        assert core.sandboxes.find(sandbox).state is SandboxState.STOPPED


async def test_a_lost_container_is_not_running(world: World) -> None:
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
    world.backend.containers.clear()
    async with world.started() as core:
        await core.recovery.run()
        lost = core.containers.find(ident)
        assert (lost.state, lost.exit_code, lost.reason) == (ContainerState.EXITED, 255, "ContainerLost")
        await core.sandboxes.remove(sandbox)
    world.images.mounted.clear()
    assert world.leftovers() == []


async def test_after_a_reboot_pods_are_stopped_and_can_be_removed(world: World) -> None:
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
        await core.sandboxes._tear_down(core.sandboxes.find(sandbox))
        await core.sandboxes.erase(core.sandboxes.find(sandbox))
    world.boot_id = "boot-2"
    world.backend.sandboxes.clear()
    world.backend.containers.clear()
    async with world.started() as core:
        await core.recovery.run()
        assert core.sandboxes.find(sandbox).state is SandboxState.STOPPED
        assert core.containers.find(ident).state is ContainerState.EXITED
        assert world.network.attached == {}
        await core.sandboxes.remove(sandbox)
    world.images.mounted.clear()
    assert world.leftovers() == []


async def test_an_interrupted_creation_is_undone(world: World) -> None:
    async with world.started() as core:
        runner, ident = core.sandboxes._runner, new_id()
        sandbox = await runner.run(ident, pod(), "fake", "", core.ports.handlers.backend(""))
        half = dataclasses.replace(sandbox, state=SandboxState.CREATING, backend=None)
        body = records.dumps(half)
        await core.store._database.write(lambda db: db.execute("UPDATE sandboxes SET body = ?", (body,)))
    async with world.started() as core:
        assert core.sandboxes.list() == []
        await core.recovery.run()
        assert core.store.sandboxes == {}
        assert world.leftovers() == []
        assert (await core.sandboxes.run(pod(), "")).id != ident


async def test_an_unreadable_record_is_set_aside(world: World) -> None:
    async with world.started() as core:
        _, ident = await running_pod(core)
        other = await core.sandboxes.run(pod("other"), "")
    with contextlib.closing(sqlite3.connect(world.root / "state.db")) as db, db:
        db.execute("UPDATE sandboxes SET body = '{\"id\": 1' WHERE id <> ?", (other.id,))
    async with world.started() as core:
        await core.recovery.run()
        assert [sandbox.id for sandbox in core.sandboxes.list()] == [other.id]
        assert ident not in core.store.containers
        kept = await core.store._database.read(lambda db: db.execute("SELECT kind FROM set_aside ORDER BY kind").fetchall())
        assert [row[0] for row in kept] == ["containers", "sandboxes"]


async def test_an_owed_del_is_retried_after_a_restart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.core.detach._FIRST_PAUSE", 0.01)
    async with world.started() as core:
        sandbox = await core.sandboxes.run(pod(), "")
        world.network.faults.fail_on.add("delete")
        monkeypatch.setattr("bridge.core.detach._FIRST_PAUSE", 3600)
        await core.sandboxes.stop(sandbox.id)
        assert list(core.store.detachments) == [sandbox.id]
    monkeypatch.setattr("bridge.core.detach._FIRST_PAUSE", 0.01)
    async with world.started() as core:
        async with core.store.changes.subscribe():
            await core.recovery.run()

            with anyio.fail_after(5):
                while core.store.detachments:
                    await anyio.sleep(0.01)
        assert world.network.attached == {}


async def test_labels_and_annotations_survive_byte_for_byte(world: World) -> None:
    odd = {"": "\0", " k\n": "\t\r\n ", "κ": "\U0001f600\u2028\ufeff", "e\u0301": "é", "quote": '"\\${x}', "big": "ä" * 131072}
    async with world.started() as core:
        sandbox = await core.sandboxes.run(pod(labels=odd, annotations=odd), "")
        made = await core.containers.create(sandbox.id, container(labels=odd, annotations=odd))
    async with world.started() as core:
        await core.recovery.run()
        for config in (core.sandboxes.find(sandbox.id).config, core.containers.find(made.id).config):
            assert (config.labels, config.annotations) == (odd, odd)
        await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_what_ended_in_a_pod_that_could_not_be_recovered_is_told_as_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.started() as core:
        sandbox, ident = await running_pod(core)

    async def too_late(self: FakeSandbox, spec: ContainerSpec, record: Record) -> FakeContainer:
        raise TimedOut("it did not end within 20 s of SIGKILL")

    async with world.started() as core:
        with monkeypatch.context() as patch:
            patch.setattr(FakeSandbox, "load_container", too_late)
            await core.recovery.run()
        assert core.containers.find(ident).state is ContainerState.EXITED
        with pytest.raises(IllegalTransition, match="is exited: 'starting' is not possible now"):
            await core.containers.start(ident)
        await core.sandboxes.remove(sandbox)
    world.backend.containers.clear()
    world.images.mounted.clear()
    assert world.leftovers() == []
