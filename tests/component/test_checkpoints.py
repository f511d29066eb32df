"""Checkpoints of containers and pods over a fake runtime: what stands still goes on whatever happens, and what is restored goes on."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from bridge.aio import run_all
from bridge.core.entities import ContainerState, SandboxState
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, MountRequest, PodMetadata
from bridge.core.services import Services
from bridge.errors import (
    AlreadyExists,
    BridgeError,
    CorruptData,
    HostError,
    IllegalTransition,
    InvalidRequest,
    NotFound,
    RuntimeFailed,
    SignatureValidationFailed,
    TimedOut,
    Unmet,
    Unsupported,
)
from bridge.ports.images import ImageConfig
from bridge.ports.runtime import Ability, Feature, Support
from bridge.testing.fake_checkpoints import WholePods, WholeSandbox
from bridge.testing.fake_stores import IMAGE
from bridge.testing.fakes import FakeContainer
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


async def running(world: World, core: Services, name: str = "app", sandbox: str = "") -> FakeContainer:
    return await started(world, core, sandbox or (await core.sandboxes.run(pod(), "")).id, container(name))


async def started(world: World, core: Services, sandbox: str, config: ContainerConfig) -> FakeContainer:
    made = await core.containers.create(sandbox, config)
    fake = world.backend.containers[made.id]
    await anyio.Path(core.containers.bundle(made) / "config.json").write_text(json.dumps(fake.spec.oci))  # as every backend does
    await core.containers.start(made.id)
    return fake


@pytest.fixture
def whole(world: World) -> WholePods:
    """In the place of the world's backend, before its core starts."""
    world.backend = WholePods()
    return world.backend


def from_archive(path: Path, name: str = "again", **changes: object) -> ContainerConfig:
    return container(name, image=ImageSpec(str(path)), **changes)


def document(path: Path, name: str) -> dict[str, object]:
    with tarfile.open(path) as archive:
        member = archive.extractfile(f"./{name}")
        assert member is not None
        found = json.loads(member.read())
    assert isinstance(found, dict)
    return found


def replaced(path: Path, name: str, content: object) -> None:
    """Put another document into an archive."""
    (path.parent / name).write_text(json.dumps(content))
    with tarfile.open(path, "a") as archive:
        archive.add(path.parent / name, f"./{name}")


async def test_the_archive_says_whose_it_is_and_the_container_goes_on(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    out = tmp_path / "out.tar"
    await core.checkpoints.container(fake.id[:12], str(out), 0)
    config, spec = document(out, "config.dump"), document(out, "spec.dump")
    assert (config["id"], config["rootfsImageRef"], config["runtime"]) == (fake.id, IMAGE.id.removeprefix("sha256:"), "fake")
    assert (config["rootfsImageName"], config["rootfsImageDigest"]) == (IMAGE.repo_tags[0], IMAGE.repo_digests[0])
    assert spec["linux"]["namespaces"]  # type: ignore[index]
    assert all(each.keys() == {"type"} for each in spec["linux"]["namespaces"])  # type: ignore[index]
    assert config["createNetNS"] is True
    assert spec["process"] == fake.spec.oci["process"]
    assert "io.kubernetes.cri-o.Annotations" in spec["annotations"]  # type: ignore[operator]
    with tarfile.open(out) as archive:
        names = set(archive.getnames())
    assert {f"./{name}" for name in ("checkpoint/processes", "dump.log", "rootfs-diff.tar", "deleted.files", "bind.mounts")} <= names
    assert len(fake.checkpoints) == 1
    assert not fake.stands_still
    assert (core.store.container(fake.id).state, core.store.container(fake.id).paused) == (ContainerState.RUNNING, False)
    assert world.images.checkpoints.left() == []


@pytest.mark.parametrize("fault", ["pause", "checkpoint", "write_diff", "pack"])
async def test_it_goes_on_when_a_step_fails(world: World, core: Services, tmp_path: Path, fault: str) -> None:
    fake = await running(world, core)
    world.backend.faults.fail_on.add(fault)
    world.images.checkpoints.faults.fail_on.add(fault)
    with pytest.raises((RuntimeFailed, HostError)):
        await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 0)
    assert not fake.stands_still
    assert not core.store.container(fake.id).paused
    assert world.images.checkpoints.left() == []
    assert not (tmp_path / "out.tar").exists()


async def test_its_time_runs_out(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    world.backend.faults.hung.add("checkpoint")
    with pytest.raises(TimedOut, match="within 1 s"):
        await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 1)
    assert not fake.stands_still
    assert world.images.checkpoints.left() == []


async def test_a_stop_ends_it(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    world.backend.faults.hung.add("checkpoint")

    async def checkpoint() -> None:
        with pytest.raises(IllegalTransition, match="stop"):
            await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 60)

    async def stop() -> None:
        with anyio.fail_after(5):
            while not fake.checkpoints:
                await anyio.lowlevel.checkpoint()
            await core.containers.stop(fake.id, 10)

    await run_all((checkpoint, stop))
    assert core.store.container(fake.id).state is ContainerState.EXITED
    assert not fake.stands_still
    assert world.images.checkpoints.left() == []


async def test_a_server_that_ended_amid_it_lets_it_go_on(world: World, tmp_path: Path) -> None:
    async with world.started() as core:
        fake = await running(world, core)
        await core.store.apply_container(fake.id, "journal", paused=True)  # as a server that is killed leaves it
        await fake.pause()
    async with world.started() as core:
        await core.recovery.run()
        assert not fake.stands_still
        assert not core.store.container(fake.id).paused
        await core.sandboxes.remove(core.store.container(fake.id).sandbox_id)


@pytest.mark.parametrize("ability", [Ability.CHECKPOINT, Ability.PAUSE])
async def test_what_the_node_lacks_is_said_by_name(world: World, core: Services, tmp_path: Path, ability: Ability) -> None:
    fake = await running(world, core)
    features = world.backend.features
    lacking = {**features.abilities, ability: Feature(Support.UNSUPPORTED, "criu check: Error (criu/vdso.c:381): vdso: odd")}
    world.backend.features = dataclasses.replace(features, abilities=lacking)
    with pytest.raises(Unmet, match="vdso: odd"):
        await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 0)
    assert fake.checkpoints == []
    if ability is Ability.CHECKPOINT:
        with pytest.raises(Unmet, match=r"config\.image\.image: .* vdso: odd"):
            await core.containers.create(fake.spec.sandbox_id, from_archive(tmp_path / "out.tar"))


async def test_what_can_not_be_checkpointed(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    created = await core.containers.create(fake.spec.sandbox_id, container("created"))
    (tmp_path / "link").symlink_to(tmp_path / "else")
    cases: list[tuple[str, str, int, type[BridgeError], str]] = [
        (created.id, "/out.tar", 0, IllegalTransition, "is created"),
        ("f" * 64, "/out.tar", 0, NotFound, "f" * 64),
        (fake.id, "out.tar", 0, InvalidRequest, "location"),
        (fake.id, "", 0, InvalidRequest, "location"),
        (fake.id, str(tmp_path) + "/", 0, InvalidRequest, "location"),
        (fake.id, str(tmp_path), 0, InvalidRequest, "is no file"),
        (fake.id, str(tmp_path / "link"), 0, InvalidRequest, "is no file"),
        (fake.id, str(tmp_path / "absent" / "out.tar"), 0, NotFound, "location"),
        (fake.id, "/out.tar", -1, InvalidRequest, "timeout"),
    ]
    for ident, location, timeout, error, words in cases:
        with pytest.raises(error, match=words):
            await core.checkpoints.container(ident, location, timeout)
    assert fake.checkpoints == []


async def test_a_restored_container_goes_on_with_its_files(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 0)
    made = await core.containers.create(fake.spec.sandbox_id, from_archive(tmp_path / "out.tar"))
    assert (made.image_id, made.config.image.image) == (IMAGE.id, str(tmp_path / "out.tar"))
    assert await core.containers.create(fake.spec.sandbox_id, from_archive(tmp_path / "out.tar")) == made
    await core.containers.start(made.id)
    restored = world.backend.containers[made.id]
    assert restored.restored == f"pid {fake.pid}"
    assert list(world.images.checkpoints.applied.values()) == [fake.id]
    await core.sandboxes.remove(fake.spec.sandbox_id)
    assert world.leftovers() == []


async def test_a_created_one_is_restored_after_a_restart_of_the_server_too(world: World, tmp_path: Path) -> None:
    async with world.started() as core:
        fake = await running(world, core)
        await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 0)
        made = await core.containers.create(fake.spec.sandbox_id, from_archive(tmp_path / "out.tar"))
    async with world.started() as core:
        await core.recovery.run()
        await core.containers.start(made.id)
        again = world.backend.containers[made.id]
        assert again.loaded is not None
        assert again.loaded.restore == again.spec.restore == Path(core.store.container(made.id).checkpoint)
        assert again.restored == f"pid {fake.pid}"
        await core.sandboxes.remove(fake.spec.sandbox_id)


async def test_a_restored_one_is_told_and_adopted_as_any_other(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    async with world.started() as core:
        fake = await running(world, core)
        await core.checkpoints.container(fake.id, str(out), 0)
        async with core.events.subscribe(lambda failure: None) as stream:
            made = await core.containers.create(fake.spec.sandbox_id, from_archive(out))
            await core.containers.start(made.id)
            told = [await anext(stream) for _ in range(6)]
        assert [each.kind for each in told if each.subject == made.id] == ["created", "started"]
        pid = world.backend.containers[made.id].pid
    async with world.started() as core:
        await core.recovery.run()
        again = core.store.container(made.id)
        assert (again.state, again.pid, world.backend.containers[made.id].pid) == (ContainerState.RUNNING, pid, pid)
        await core.checkpoints.container(made.id, str(out), 0)
        assert document(out, "config.dump")["restored"] is True
        world.backend.containers[made.id].exit(3)
        with anyio.fail_after(10):
            while core.store.container(made.id).state is not ContainerState.EXITED:
                await anyio.sleep(0.01)
        assert core.store.container(made.id).exit_code == 3
        await core.sandboxes.remove(fake.spec.sandbox_id)


async def test_what_can_not_be_restored_leaves_nothing(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    sandbox, good = fake.spec.sandbox_id, tmp_path / "good.tar"
    await core.checkpoints.container(fake.id, str(good), 0)
    before = world.leftovers()
    (tmp_path / "text").write_text("no archive")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name, error in (("text", CorruptData), ("empty.tar", CorruptData), ("absent", NotFound)):
        with pytest.raises(error):
            await core.containers.create(sandbox, from_archive(tmp_path / name))
        assert world.leftovers() == before
    world.images.checkpoints.faults.fail_on.add("apply")
    with pytest.raises(CorruptData, match="damaged"):
        await core.containers.create(sandbox, from_archive(good))
    assert world.leftovers() == before


async def test_its_mounts_must_be_asked_for_again(world: World, core: Services, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    mounts = (MountRequest(container_path="/data", host_path=str(tmp_path / "data")),)
    sandbox = await core.sandboxes.run(pod(), "")
    made = await started(world, core, sandbox.id, container(mounts=mounts))
    await core.checkpoints.container(made.id, str(tmp_path / "out.tar"), 0)
    with pytest.raises(InvalidRequest, match=r"config\.mounts: .*/data"):
        await core.containers.create(sandbox.id, from_archive(tmp_path / "out.tar"))
    await core.containers.create(sandbox.id, from_archive(tmp_path / "out.tar", mounts=mounts))


async def test_an_image_that_is_not_there_is_pulled(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 0)
    world.images.images.clear()
    await core.containers.create(fake.spec.sandbox_id, from_archive(tmp_path / "out.tar"))
    assert world.images.pulled == [(IMAGE.repo_digests[0], "default")]


async def test_another_image_of_the_same_name_will_not_do(world: World, core: Services, tmp_path: Path) -> None:
    fake = await running(world, core)
    await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 0)
    before = world.leftovers()
    of_another = {**document(tmp_path / "out.tar", "config.dump"), **dict.fromkeys(("rootfsImageRef", "rootfsImageID"), "8" * 64)}
    replaced(tmp_path / "out.tar", "config.dump", of_another)
    with pytest.raises(NotFound, match=f"another image now than sha256:{'8' * 64}"):
        await core.containers.create(fake.spec.sandbox_id, from_archive(tmp_path / "out.tar"))
    assert world.images.pulled == [(IMAGE.repo_digests[0], "default")]
    assert world.leftovers() == before


async def test_an_image_that_is_a_checkpoint_is_restored_where_that_is_allowed(world: World, tmp_path: Path) -> None:
    held = dataclasses.replace(IMAGE, id="sha256:" + "9" * 64, repo_tags=("example.com/held:1",), repo_digests=(), config=ImageConfig())
    world.images.images.append(held)
    world.images.checkpoints.images[held.id] = tmp_path / "out.tar"
    wanted = container("again", image=ImageSpec("example.com/held:1"))
    async with world.started() as core:
        fake = await running(world, core)
        await core.checkpoints.container(fake.id, str(tmp_path / "out.tar"), 0)
        with pytest.raises(Unmet, match=r"security\.restore_checkpoint_images is off"):
            await core.containers.create(fake.spec.sandbox_id, wanted)
    world.settings["restore_images"] = True
    async with world.started() as core:
        await core.recovery.run()
        made = await core.containers.create(fake.spec.sandbox_id, wanted)
        await core.containers.start(made.id)
        assert (made.image_id, world.backend.containers[made.id].restored) == (IMAGE.id, f"pid {fake.pid}")
        world.images.refused.add(("example.com/held:1", "default"))
        with pytest.raises(SignatureValidationFailed):
            await core.containers.create(fake.spec.sandbox_id, dataclasses.replace(wanted, metadata=ContainerMetadata("third")))
        await core.sandboxes.remove(fake.spec.sandbox_id)


async def test_a_pod_stands_still_as_a_whole_and_is_made_again(world: World, core: Services, tmp_path: Path) -> None:
    one = await running(world, core, "one")
    two = await running(world, core, "two", one.spec.sandbox_id)
    out = tmp_path / "pod.tar"
    seen: list[tuple[bool, bool]] = []
    checkpoint = two.checkpoint

    async def watched(images: Path, work: Path, *, timeout: float) -> None:
        seen.append((one.stands_still, two.stands_still))
        await checkpoint(images, work, timeout=timeout)

    two.checkpoint = watched  # type: ignore[method-assign]
    await core.pod_checkpoints.checkpoint(one.spec.sandbox_id, str(out), (), {})
    assert seen == [(True, True)]
    assert not one.stands_still
    assert not two.stands_still
    assert world.images.checkpoints.left() == []
    with pytest.raises(AlreadyExists, match="remove it first"):
        await core.pod_checkpoints.restore(str(out), None, "", {}, ())
    await core.sandboxes.remove(one.spec.sandbox_id)
    sandbox, made = await core.pod_checkpoints.restore(str(out), None, "", {}, ())
    assert sandbox.config == pod()
    assert [each.config.metadata.name for each in made] == ["one", "two"]
    assert [world.backend.containers[each.id].restored for each in made] == [f"pid {one.pid}", f"pid {two.pid}"]
    assert {core.store.container(each.id).state for each in made} == {ContainerState.RUNNING}
    await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_a_pod_can_be_made_again_as_another(world: World, core: Services, tmp_path: Path) -> None:
    one = await running(world, core, "one")
    await running(world, core, "two", one.spec.sandbox_id)
    out = tmp_path / "pod.tar"
    await core.pod_checkpoints.checkpoint(one.spec.sandbox_id, str(out), (one.id[:12],), {})
    other = pod(metadata=PodMetadata("copy", "uid-copy", "default"))
    sandbox, made = await core.pod_checkpoints.restore(str(out), other, "", {}, (container("one", labels={"a": "b"}),))
    assert (sandbox.config.metadata.name, [dict(each.config.labels) for each in made]) == ("copy", [{"a": "b"}])


async def test_pods_that_are_refused_leave_nothing(world: World, core: Services, tmp_path: Path) -> None:
    one = await running(world, core, "one")
    created = await core.containers.create(one.spec.sandbox_id, container("created"))
    out, pods = str(tmp_path / "pod.tar"), core.pod_checkpoints
    for chosen, options, error in (
        ((created.id,), {}, IllegalTransition),
        (("f" * 64,), {}, NotFound),
        ((), {"leave": "1"}, InvalidRequest),
    ):
        with pytest.raises(error):
            await pods.checkpoint(one.spec.sandbox_id, out, chosen, options)
    await pods.checkpoint(one.spec.sandbox_id, out, (), {})
    await core.checkpoints.container(one.id, str(tmp_path / "one.tar"), 0)
    other, before = pod("other"), world.leftovers()
    with pytest.raises(InvalidRequest, match="container_configs"):
        await pods.restore(out, other, "", {}, (container("three"),))
    with pytest.raises(InvalidRequest, match="options"):
        await pods.restore(out, other, "", {"a": "b"}, ())
    with pytest.raises(NotFound):
        await pods.restore(str(tmp_path / "absent"), other, "", {}, ())
    with pytest.raises(CorruptData, match=r"pod\.json"):
        await pods.restore(str(tmp_path / "one.tar"), other, "", {}, ())
    world.backend.faults.fail_on.add("start")
    with pytest.raises(RuntimeFailed):
        await pods.restore(out, other, "", {}, ())
    assert world.leftovers() == before


async def test_a_pod_that_is_written_down_as_one(whole: WholePods, world: World, core: Services, tmp_path: Path) -> None:
    one = await running(world, core, "one")
    sandbox, out = one.spec.sandbox_id, tmp_path / "pod.tar"
    await running(world, core, "two", sandbox)
    with pytest.raises(Unsupported, match="ask for CheckpointPod"):
        await core.checkpoints.container(one.id, str(tmp_path / "one.tar"), 0)
    with pytest.raises(Unsupported, match="container_ids"):
        await core.pod_checkpoints.checkpoint(sandbox, str(out), (one.id,), {})
    await core.pod_checkpoints.checkpoint(sandbox, str(out), (), {})
    assert one.checkpoints == []
    assert world.images.checkpoints.left() == []
    await core.sandboxes.remove(sandbox)
    again, made = await core.pod_checkpoints.restore(str(out), None, "", {}, ())
    restored = whole.sandboxes[again.id]
    assert isinstance(restored, WholeSandbox)
    assert restored.restored == f"pod of [{one.pid}, {one.pid + 1 if one.pid else 0}]"
    assert {whole.containers[each.id].restored for each in made} == {"with its pod"}
    assert [each.config.image.image for each in made] == ["busybox", "busybox"]
    assert (again.restoring, core.store.sandboxes[again.id].state) == ("", SandboxState.READY)
    with tarfile.open(out) as archive:
        archive.extract("./0.tar", tmp_path, filter="data")
    with pytest.raises(Unsupported, match="ask for RestorePod"):
        await core.containers.create(again.id, from_archive(tmp_path / "0.tar"))
    await core.sandboxes.remove(again.id)
    assert world.leftovers() == []


async def test_a_pod_as_one_that_fails_leaves_nothing(whole: WholePods, world: World, core: Services, tmp_path: Path) -> None:
    one = await running(world, core, "one")
    sandbox, out = one.spec.sandbox_id, str(tmp_path / "pod.tar")
    before = world.leftovers()
    whole.faults.fail_on.add("checkpoint_pod")
    with pytest.raises(RuntimeFailed, match="runsc"):
        await core.pod_checkpoints.checkpoint(sandbox, out, (), {})
    assert world.leftovers() == before
    await core.pod_checkpoints.checkpoint(sandbox, out, (), {})
    features = whole.features
    lacking = {**features.abilities, Ability.CHECKPOINT: Feature(Support.UNSUPPORTED, "checkpoint not supported when using hostinet")}
    whole.features = dataclasses.replace(features, abilities=lacking)
    with pytest.raises(Unmet, match="hostinet"):
        await core.pod_checkpoints.checkpoint(sandbox, out, (), {})
    with pytest.raises(Unmet, match="hostinet"):
        await core.pod_checkpoints.restore(out, pod("other"), "", {}, ())
    assert world.leftovers() == before


async def test_a_pod_of_the_other_kind_is_refused(world: World, tmp_path: Path) -> None:
    out = tmp_path / "pod.tar"
    async with world.started() as core:
        one = await running(world, core, "one")
        await core.pod_checkpoints.checkpoint(one.spec.sandbox_id, str(out), (), {})
        await core.sandboxes.remove(one.spec.sandbox_id)
    world.backend = WholePods()
    async with world.started() as core:
        with pytest.raises(InvalidRequest, match=r"checkpoint_path: .*as one"):
            await core.pod_checkpoints.restore(str(out), None, "", {}, ())
        assert world.leftovers() == []


@pytest.mark.parametrize("started", [False, True])
async def test_a_server_that_ended_amid_a_restore_leaves_nothing_of_the_pod(world: World, tmp_path: Path, *, started: bool) -> None:
    async with world.started() as core:
        made = await core.sandboxes.run(pod(), "", str(tmp_path / "unpacked"))  # as a server that is killed leaves it
        member = await core.containers.create(made.id, container())
        if started:
            await core.containers.start(member.id)
    async with world.started() as core:
        await core.recovery.run()
        assert core.sandboxes.list() == []
        assert world.leftovers() == []


async def test_a_reboot_amid_a_restore_leaves_nothing_of_the_pod(world: World, tmp_path: Path) -> None:
    async with world.started() as core:
        made = await core.sandboxes.run(pod(), "", str(tmp_path / "unpacked"))
        await core.containers.start((await core.containers.create(made.id, container())).id)
    world.boot_id = "boot-2"
    async with world.started() as core:
        await core.recovery.run()
        assert core.sandboxes.list() == []


async def test_who_gives_up_a_restore_leaves_nothing_that_is_still_being_created(world: World, core: Services, tmp_path: Path) -> None:
    one, out = await running(world, core, "one"), str(tmp_path / "pod.tar")
    await core.pod_checkpoints.checkpoint(one.spec.sandbox_id, out, (), {})
    await core.sandboxes.remove(one.spec.sandbox_id)
    began, unpack = anyio.Event(), world.images.checkpoints.unpack

    async def slow(ident: str, location: Path) -> Path:
        found: Path = await unpack(ident, location)
        if location.name == "0.tar":  # the container's, which has no record yet
            began.set()
            await anyio.sleep_forever()
        return found

    world.images.checkpoints.unpack = slow
    async with anyio.create_task_group() as group:
        group.start_soon(core.pod_checkpoints.restore, out, None, "", {}, ())
        with anyio.fail_after(10):
            await began.wait()
        group.cancel_scope.cancel()
    assert core.sandboxes.list() == []
    assert not core.containers.creations
    assert world.leftovers() == []
