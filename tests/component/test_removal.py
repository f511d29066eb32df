"""What is left of a container after its exit, and how it goes away."""

import os

import anyio
import pytest

from bridge.core.entities import ContainerState
from bridge.core.services import Services
from bridge.errors import BridgeError, NotFound
from bridge.host import files
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


async def exited(core: Services) -> str:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    await core.containers.stop(made.id, 10)
    return made.id


async def test_an_exit_unmounts_the_root_and_keeps_the_container(core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    rootfs = core.containers.bundle(made) / "rootfs"
    await files.mount_tmpfs(rootfs, size=1 << 20)
    await core.containers.start(made.id)
    assert os.path.ismount(rootfs)
    await core.containers.stop(made.id, 10)
    with anyio.fail_after(5):
        while os.path.ismount(rootfs):
            await anyio.sleep(0.01)  # no event tells of a mount that is gone
    assert core.containers.find(made.id).state is ContainerState.EXITED


async def test_a_root_that_is_still_mounted_goes_with_the_removal(world: World, core: Services) -> None:
    ident = await exited(core)
    rootfs = core.containers.bundle(core.containers.find(ident)) / "rootfs"
    await files.mount_tmpfs(rootfs, size=1 << 20)
    await core.containers.remove(ident)
    assert not rootfs.exists()
    await core.sandboxes.remove(core.sandboxes.list()[0].id)
    assert world.leftovers() == []


async def test_a_removal_that_fails_half_way_is_repeated(world: World, core: Services) -> None:
    ident = await exited(core)
    world.images.faults.fail_on.add("remove_rootfs")
    with pytest.raises(BridgeError, match="umount failed"):
        await core.containers.remove(ident)
    await core.containers.remove(ident)
    with pytest.raises(NotFound):
        core.containers.find(ident)
    await core.sandboxes.remove(core.sandboxes.list()[0].id)
    assert world.leftovers() == []
