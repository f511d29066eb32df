"""What a failed creation or a removal could not take away: kept on record, not shown, its name free, tried again until it is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from bridge.core.services import Services
from bridge.errors import HostError, NotFound, Unavailable
from bridge.host import files
from bridge.ports.network import PortMapping
from tests.component.conftest import World, container, pod
from tests.component.test_recovery import running_pod

pytestmark = pytest.mark.root
MAPPED = pod(port_mappings=(PortMapping(80, 8080),))
Breakage = Callable[[World, pytest.MonkeyPatch], Callable[[], None]]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried again by itself, unless a test says so."""
    monkeypatch.setattr("bridge.core.leftovers._FIRST_PAUSE", 3600)
    monkeypatch.setattr("bridge.core.detach._FIRST_PAUSE", 3600)


def refuse_created(monkeypatch: pytest.MonkeyPatch, core: Services, method: str) -> None:
    """The next creation fails at its last step, when everything is made."""
    real = getattr(core.store, method)

    async def refusing(ident: str, event: str, **facts: object) -> object:
        if event == "created":
            monkeypatch.setattr(core.store, method, real)
            raise HostError("the disk is full")
        return await real(ident, event, **facts)

    monkeypatch.setattr(core.store, method, refusing)


def busy_directory(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    busy, real = [True], files.remove_tree

    async def remove_tree(path: Path) -> None:
        if busy and path.is_relative_to(world.run_dir / "sandboxes"):
            raise HostError(f"can't remove {path}: Device or resource busy")
        await real(path)

    monkeypatch.setattr(files, "remove_tree", remove_tree)
    return busy.clear


def broken_backend(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    world.backend.faults.broken.add("delete_sandbox")
    return world.backend.faults.broken.clear


def hanging_del(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    world.network.faults.hung.add("delete")
    return world.network.faults.hung.clear


BREAKAGES = {"Device or resource busy": busy_directory, "delete failed": broken_backend, "cni del: it did not end": hanging_del}


async def failed_creation(core: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    refuse_created(monkeypatch, core, "apply_sandbox")
    with pytest.raises(HostError, match="the disk is full"):
        await core.sandboxes.run(MAPPED, "")
    (left,) = core.store.sandboxes
    return left


@pytest.mark.parametrize("words", BREAKAGES)
async def test_a_creation_whose_undo_fails_is_finished_later(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    world.settings["undo_timeout"] = 1.0
    async with world.started() as core:
        heal = BREAKAGES[words](world, monkeypatch)
        left = await failed_creation(core, monkeypatch)
        assert words in core.store.sandboxes[left].unremoved
        assert any(left[:13] in line and words in line and "tried again" in line for line in caplog.messages)
        assert core.sandboxes.list() == []
        assert core.load()["unremoved"] == 1
        again = await core.sandboxes.run(MAPPED, "")  # neither its name nor its host port is held
        assert [one.id for one in core.sandboxes.list()] == [again.id]
        heal()
        await core.remove_remains()
        assert list(core.store.sandboxes) == [again.id]
        assert core.load()["unremoved"] == 0
        await core.sandboxes.remove(again.id)
        assert world.leftovers() == []


@pytest.mark.parametrize("words", ["Device or resource busy", "delete failed"])
async def test_it_survives_restarts(world: World, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    async with world.started() as core:
        heal = BREAKAGES[words](world, monkeypatch)
        left = await failed_creation(core, monkeypatch)
    async with world.started() as core:
        again = await core.sandboxes.run(MAPPED, "")  # not even while recovery has yet to come
        await core.recovery.run()
        assert words in core.store.sandboxes[left].unremoved
        assert [one.id for one in core.sandboxes.list()] == [again.id]
    heal()
    async with world.started() as core:
        await core.recovery.run()
        assert list(core.store.sandboxes) == [again.id]
        await core.sandboxes.remove(again.id)
        assert world.leftovers() == []


async def test_it_is_tried_again_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.core.leftovers._FIRST_PAUSE", 0.01)
    async with world.started() as core:
        heal = broken_backend(world, monkeypatch)
        await failed_creation(core, monkeypatch)
        heal()
        with anyio.fail_after(10):
            while core.store.sandboxes:
                await anyio.sleep(0.01)
        await core.recovery.detacher.settle()
        assert world.leftovers() == []


@pytest.mark.parametrize("call", ["delete", "remove_rootfs"])
async def test_a_container_whose_undo_fails(world: World, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    async with world.started() as core:
        sandbox = await core.sandboxes.run(pod(), "")
        broken = (world.backend if call == "delete" else world.images).faults.broken
        broken.add(call)
        refuse_created(monkeypatch, core, "apply_container")
        with pytest.raises(HostError, match="the disk is full"):
            await core.containers.create(sandbox.id, container())
        (left,) = core.store.containers.values()
        assert left.unremoved
        assert core.containers.list() == []
        again = await core.containers.create(sandbox.id, container())
        assert [one.id for one in core.containers.list()] == [again.id]
    async with world.started() as core:
        await core.recovery.run()  # it fails once more, which costs neither the pod nor the other container anything
        assert core.sandboxes.find(sandbox.id).state == "ready"
        assert {left.id, again.id} == set(core.store.containers)
        broken.clear()
        await core.remove_remains()
        assert [again.id] == list(core.store.containers)
        await core.sandboxes.remove(sandbox.id)
        assert world.leftovers() == []


async def test_a_removal_that_failed_needs_nobody_to_ask_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.started() as core:
        sandbox, ident = await running_pod(core)
        world.images.faults.broken.add("remove_rootfs")
        with pytest.raises(HostError, match="umount failed"):
            await core.sandboxes.remove(sandbox)
        assert (core.sandboxes.list(), core.containers.list()) == ([], [])
        again = await core.sandboxes.run(pod(), "")
        world.images.faults.broken.clear()
        assert await core.remove_remains()
        with pytest.raises(NotFound):
            core.containers.find(ident)
        await core.sandboxes.remove(again.id)
        assert world.leftovers() == []


async def test_an_interrupted_creation_on_a_backend_that_is_away_holds_no_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.started() as core:
        heal = broken_backend(world, monkeypatch)
        left = await failed_creation(core, monkeypatch)
        heal()
    async with world.started() as core:
        with monkeypatch.context() as patch:

            async def away(name: str, opening: object) -> None:
                raise Unavailable("the handler is disabled: its binary is missing")

            patch.setattr(core.ports.handlers, "reopen", away)
            await core.recovery.run()
            assert "binary is missing" in core.store.sandboxes[left].unremoved
        assert (await core.sandboxes.run(MAPPED, "")).id != left
        await core.remove_remains()
        assert left not in core.store.sandboxes
