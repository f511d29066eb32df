"""Image volumes in the life of a container: mounted after its record, unmounted at its exit, undone, recovered, never orphaned."""

import dataclasses
import os

import anyio
import pytest

from bridge.core.entities import Container
from bridge.core.model import ContainerConfig, ImageSpec, MountRequest
from bridge.core.services import Services
from bridge.errors import ImageVolumeMountFailed
from bridge.host import files
from bridge.testing.fake_stores import IMAGE
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


def with_volume(sub_path: str = "", image: str = IMAGE.id) -> ContainerConfig:
    request = MountRequest("/v", readonly=True, image=ImageSpec(image, user_specified_image="models:1"), image_sub_path=sub_path)
    return container(mounts=(request,))


async def made(core: Services, config: ContainerConfig) -> Container:
    sandbox = await core.sandboxes.run(pod(), "")
    return await core.containers.create(sandbox.id, config)


async def test_a_volume_is_let_go_with_its_container(world: World, core: Services) -> None:
    one = await made(core, with_volume("part"))
    assert one.mount_images == (IMAGE.id,)
    (target,) = world.images.volumes[one.id]
    assert target.parent.parent == core.containers.bundle(one)
    (mount,) = [each for each in world.backend.containers[one.id].spec.oci["mounts"] if each["destination"] == "/v"]
    assert mount == {"destination": "/v", "type": "bind", "source": str(target), "options": ["bind", "rprivate", "ro"]}
    await core.containers.remove(one.id)
    assert world.images.volumes == {}
    await core.sandboxes.remove(one.sandbox_id)
    assert world.leftovers() == []


async def test_a_start_unmounts_it_and_keeps_the_image(world: World, core: Services) -> None:
    one = await made(core, with_volume())
    (target,) = world.images.volumes[one.id]
    await files.mount_tmpfs(target, size=1 << 20)
    await core.containers.start(one.id)
    assert not os.path.ismount(target), "the container has a mount of its own"
    await core.containers.stop(one.id, 10)
    assert one.id in world.images.volumes
    await core.sandboxes.remove(one.sandbox_id)
    assert world.leftovers() == []


async def test_what_a_crash_left_mounted_goes_with_the_exit(world: World) -> None:
    async with world.started() as core:
        one = await made(core, with_volume())
        await core.containers.start(one.id)
        (target,) = world.images.volumes[one.id]
        await files.mount_tmpfs(target, size=1 << 20)
    async with world.started() as core:
        await core.recovery.run()
        await core.containers.stop(one.id, 10)
        with anyio.fail_after(5):
            while os.path.ismount(target):
                await anyio.sleep(0.01)  # no event tells of a mount that is gone
        await core.sandboxes.remove(one.sandbox_id)
    assert world.leftovers() == []


@pytest.mark.parametrize(
    ("config", "fails", "words"),
    [
        (with_volume("absent"), "", r"config\.mounts\[0\]: can't mount sub-path 'absent' of image 'models:1': 'absent' does not exist"),
        (with_volume(), "mount_volume", r"config\.mounts\[0\]: can't mount image 'models:1': mount failed"),
        (with_volume(image="nothing"), "", r"config\.mounts\[0\]\.image\.image: image 'nothing' is not in the store; pull it first"),
    ],
)
async def test_a_failure_leaves_nothing(world: World, core: Services, config: ContainerConfig, fails: str, words: str) -> None:
    world.images.faults.fail_on.add(fails)
    sandbox = await core.sandboxes.run(pod(), "")
    with pytest.raises(ImageVolumeMountFailed, match="^ImageVolumeMountFailed: " + words):
        await core.containers.create(sandbox.id, config)
    assert core.store.containers == {}
    assert world.images.volumes == {}
    assert not (world.run_dir / "sandboxes" / sandbox.id / "containers").exists() or not os.listdir(
        world.run_dir / "sandboxes" / sandbox.id / "containers"
    )
    await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_after_a_restart_it_is_the_same_container(world: World) -> None:
    async with world.started() as core:
        one = await made(core, with_volume())
    async with world.started() as core:
        await core.recovery.run()
        assert core.containers.find(one.id) == one
        assert await core.containers.create(one.sandbox_id, with_volume()) == one, "a retry finds it"
        assert one.id in world.images.volumes
        await core.sandboxes.remove(one.sandbox_id)
    assert world.images.volumes == {}
    assert world.leftovers() == []


async def test_a_half_made_one_and_one_without_a_record_are_let_go(world: World) -> None:
    async with world.started() as core:
        one = await made(core, with_volume())
        half = dataclasses.replace(
            one, id="f" * 64, config=dataclasses.replace(one.config, metadata=dataclasses.replace(one.config.metadata, attempt=1))
        )
        half = dataclasses.replace(half, state=type(one.state).CREATING, backend=None)
        await core.store.add(half)
    for ident in (half.id, "e" * 64):
        world.images.volumes[ident] = set()
    async with world.started() as core:
        await core.recovery.run()
        assert set(world.images.volumes) == {one.id}
        await core.sandboxes.remove(one.sandbox_id)
    assert world.leftovers() == []
