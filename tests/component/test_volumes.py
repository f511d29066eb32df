"""Volumes through core, over real paths and mounts: what the spec binds, what is made, what is refused and by which field."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from bridge.core.model import ContainerConfig, ImageSpec, MountPropagation, MountRequest
from bridge.core.services import Services
from bridge.errors import BridgeError, InvalidRequest, RROUnsupported
from bridge.host import mounts, syscalls
from bridge.ports.runtime import Ability, Feature, Support
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


async def bound(world: World, core: Services, config: ContainerConfig) -> list[dict[str, Any]]:
    """The mounts of the spec that a backend is given for config.mounts."""
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, config)
    places = {mount.container_path for mount in config.mounts}
    return [mount for mount in world.backend.containers[made.id].spec.oci["mounts"] if mount["destination"] in places]


async def refused(core: Services, config: ContainerConfig) -> BridgeError:
    """Why it can't be made; of the try nothing may be left."""
    sandbox = await core.sandboxes.run(pod(), "")
    with pytest.raises(BridgeError) as caught:
        await core.containers.create(sandbox.id, config)
    assert not core.store.members(sandbox.id)
    return caught.value


async def test_a_link_is_followed_once(world: World, core: Services, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    [mount] = await bound(world, core, container(mounts=(MountRequest("/v", str(tmp_path / "link"), mount_options=("noexec",)),)))
    assert mount == {
        "destination": "/v",
        "type": "bind",
        "source": str(tmp_path / "real"),
        "options": ["rbind", "rprivate", "rw", "noexec"],
    }


async def test_a_missing_path_is_made(world: World, core: Services, tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep"
    [mount] = await bound(world, core, container(mounts=(MountRequest("/v", f"{path}/"),)))
    assert mount["source"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize("how", ["refuse", "never"])
async def test_a_missing_path_is_refused_as_configured(world: World, tmp_path: Path, how: str) -> None:
    path = tmp_path / "hostname"
    world.settings = {"create_missing_volumes": False} if how == "refuse" else {"never_created_volumes": (str(path),)}
    async with world.started() as core:
        error = await refused(core, container(mounts=(MountRequest("/ok", str(tmp_path)), MountRequest("/v", f"{tmp_path}/./hostname/"))))
        assert isinstance(error, InvalidRequest)
        assert error.field == "config.mounts[1].host_path"
        assert error.message.endswith("No such file or directory")
        assert not path.exists()
        if how == "never":
            await core.containers.create((await core.sandboxes.run(pod("b"), "")).id, container(mounts=(MountRequest("/v", f"{path}2"),)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file/x", "Not a directory"),
        ("dangling", "File exists"),
        ("loop", "Too many levels of symbolic links"),
        ("n" * 300, "File name too long"),
    ],
)
async def test_a_path_that_can_not_be(world: World, core: Services, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("absent/too")
    (tmp_path / "loop").symlink_to("loop")
    error = await refused(core, container(mounts=(MountRequest("/v", str(tmp_path / name)),)))
    assert isinstance(error, InvalidRequest)
    assert error.field == "config.mounts[0].host_path"
    assert words in error.message
    assert str(tmp_path / name) in error.message


async def test_what_the_request_alone_shows_touches_nothing(world: World, core: Services, tmp_path: Path) -> None:
    fine = MountRequest("/a", str(tmp_path / "never-made"))
    for mount, field in (
        (MountRequest("/v", "relative"), "host_path"),
        (MountRequest("/v", "/a\0b"), "host_path"),
        (MountRequest("/", str(tmp_path)), "container_path"),
        (MountRequest("", str(tmp_path)), "container_path"),
        (MountRequest("/v", str(tmp_path), mount_options=("suid",)), "mount_options[0]"),
        (MountRequest("/v", str(tmp_path), recursive_read_only=True), "recursive_read_only"),
    ):
        error = await refused(core, container(mounts=(fine, mount)))
        assert isinstance(error, InvalidRequest)
        assert error.field == f"config.mounts[1].{field}"
    assert not (tmp_path / "never-made").exists()


async def test_recursive_read_only_is_a_copy(world: World, core: Services, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    asked = MountRequest("/dir", str(tmp_path / "dir"), readonly=True, recursive_read_only=True, mount_options=("noexec",))
    wanted = [asked, dataclasses.replace(asked, container_path="/file", host_path=str(tmp_path / "file"))]
    first, second = await bound(world, core, container(mounts=tuple(wanted)))
    for mount, name in ((first, "dir"), (second, "file")):
        assert mount["options"] == ["rbind", "rprivate", "ro", "noexec"]
        assert mount["source"] != str(tmp_path / name)
        copies = [each for each in mounts.read_mountinfo() if each.target == mount["source"]]
        assert [("ro" in each.options, list(each.propagation)) for each in copies] == [(True, [])]
    [made] = core.store.containers
    await core.containers.remove(made)
    assert not Path(first["source"]).exists()


@pytest.mark.parametrize("runtime", [True, False])
async def test_recursive_read_only_without_copies_is_the_runtimes(world: World, tmp_path: Path, runtime: bool) -> None:
    world.host = {"mount_copies": False}
    if not runtime:
        abilities = {**world.backend.features.abilities, Ability.RECURSIVE_READ_ONLY: Feature(Support.UNSUPPORTED, "too old")}
        world.backend.features = dataclasses.replace(world.backend.features, abilities=abilities)
    config = container(mounts=(MountRequest("/v", str(tmp_path), readonly=True, recursive_read_only=True),))
    async with world.started() as core:
        if runtime:
            [mount] = await bound(world, core, config)
            assert (mount["source"], mount["options"]) == (str(tmp_path), ["rbind", "rprivate", "rro"])
        else:
            error = await refused(core, config)
            assert isinstance(error, RROUnsupported)
            assert str(error).startswith("RROUnsupported: config.mounts[0].recursive_read_only: neither this kernel nor handler 'fake'")


@pytest.mark.parametrize(
    ("propagation", "works"),
    [
        (MountPropagation.PRIVATE, ["private", "slave", "shared"]),
        (MountPropagation.HOST_TO_CONTAINER, ["slave", "shared"]),
        (MountPropagation.BIDIRECTIONAL, ["shared"]),
    ],
)
async def test_what_spreads_needs_a_mount_that_spreads(
    world: World, core: Services, tmp_path: Path, propagation: MountPropagation, works: list[str]
) -> None:
    place = tmp_path / "mount"
    place.mkdir()
    syscalls.mount("x", place, "tmpfs")
    (place / "below").mkdir()
    config = container(mounts=(MountRequest("/v", str(place / "below"), propagation=propagation),))
    changes = [("private", syscalls.MS_PRIVATE), ("shared", syscalls.MS_SHARED), ("slave", syscalls.MS_SLAVE)]
    for name, flag in changes:
        peer = tmp_path / "peer"
        if name == "slave":  # a slave needs a master that stays
            peer.mkdir()
            syscalls.mount(place, peer, "", syscalls.MS_BIND)
        syscalls.mount("", place, "", flag)
        if name in works:
            await bound(world, core, config)
            for ident in list(core.store.containers):
                await core.containers.remove(ident)
        else:
            error = await refused(core, config)
            assert isinstance(error, InvalidRequest)
            assert error.field == "config.mounts[0].propagation"
            assert f"{place / 'below'} lies on {place}" in error.message


async def test_no_volumes_cost_no_process(world: World, core: Services, tmp_path: Path) -> None:
    lookups = core.containers._creator.lookups
    sandbox = await core.sandboxes.run(pod(), "")
    await core.containers.create(sandbox.id, container())
    assert lookups.statistics().free == 0
    await core.containers.create(sandbox.id, container("b", mounts=(MountRequest("/v", str(tmp_path)),)))
    assert lookups.statistics().free == 1
    assert os.listdir(tmp_path)


async def test_an_image_and_a_host_path_side_by_side(world: World, core: Services, tmp_path: Path) -> None:
    image = MountRequest("/i", image=ImageSpec("busybox"), readonly=True)
    first, second = await bound(world, core, container(mounts=(image, MountRequest("/v", str(tmp_path)))))
    assert first["options"][:3] == ["bind", "rprivate", "ro"]
    assert second["source"] == str(tmp_path)
