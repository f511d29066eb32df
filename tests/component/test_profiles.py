"""Profiles from a request to what the backend gets, on a recorded host with AppArmor; and over a restart."""

import dataclasses
from pathlib import Path

import pytest

from bridge.core.model import ContainerSecurity, NamespaceMode, NamespaceOptions, ProfileType, SandboxSecurity, SecurityProfile
from bridge.core.spec import SpecSettings
from bridge.errors import InvalidRequest
from tests.component.conftest import PRIVATE_PID, World, container, pod
from tests.unit.host.test_apparmor import tree

pytestmark = pytest.mark.root
SHARED_PID = NamespaceOptions(pid=NamespaceMode.POD)


def _local(name: str) -> SecurityProfile:
    return SecurityProfile(ProfileType.LOCALHOST, name)


@pytest.fixture
def with_profiles(world: World) -> World:
    """A host with AppArmor and a directory of seccomp profiles."""
    (world.root / "host").mkdir()
    (world.root / "seccomp").mkdir()
    (world.root / "seccomp" / "a.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    root = tree(world.root / "host")
    settings = SpecSettings(apparmor_profile="cri-bridge-default", apparmor_root=root, seccomp_profile_root=world.root / "seccomp")
    return dataclasses.replace(world, host={"apparmor": True, "seccomp": True}, spec_settings=settings)


async def test_profiles_reach_the_backend(with_profiles: World) -> None:
    world = with_profiles
    async with world.started() as core:
        security = SandboxSecurity(SHARED_PID, apparmor=_local("/usr/sbin/ntpd"), seccomp=_local("a.json"), privileged=False)
        sandbox = await core.sandboxes.run(pod(security=security), "")
        made = world.backend.sandboxes[sandbox.id].spec.oci
        assert made is not None
        assert (made["process"]["apparmorProfile"], made["linux"]["seccomp"]["defaultAction"]) == ("/usr/sbin/ntpd", "SCMP_ACT_LOG")
        for name, profile, wanted in (
            ("unset", None, "cri-bridge-default"),
            ("default", SecurityProfile(), "cri-bridge-default"),
            ("none", SecurityProfile(ProfileType.UNCONFINED), "unconfined"),
            ("local", _local("k8s-apparmor-example-deny-write"), "k8s-apparmor-example-deny-write"),
        ):
            asked = ContainerSecurity(namespaces=SHARED_PID, apparmor=profile, seccomp=_local(str(world.root / "seccomp/a.json")))
            ident = (await core.containers.create(sandbox.id, container(name, security=asked))).id
            oci = world.backend.containers[ident].spec.oci
            assert oci["process"]["apparmorProfile"] == wanted
            assert oci["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_LOG"
            assert core.live.containers[ident].process["apparmorProfile"] == wanted  # an exec starts from that
        with pytest.raises(InvalidRequest, match=r"apparmor\.localhost_ref: profile 'absent' is not loaded"):
            await core.containers.create(
                sandbox.id, container(security=ContainerSecurity(namespaces=SHARED_PID, apparmor=_local("absent")))
            )
        assert len(world.backend.containers) == 4


async def test_a_pod_is_adopted_though_its_profile_is_gone(with_profiles: World) -> None:
    world = with_profiles
    async with world.started() as core:
        security = SandboxSecurity(SHARED_PID, seccomp=_local("a.json"), apparmor=_local("/usr/sbin/ntpd"))
        sandbox = await core.sandboxes.run(pod(security=security), "")
    (world.root / "seccomp" / "a.json").unlink()
    (world.root / "host/sys/kernel/security/apparmor/profiles").write_text("")
    async with world.started() as core:
        await core.recovery.run()
        assert core.sandboxes.find(sandbox.id).state == "ready"
        await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []


async def test_a_pod_with_a_missing_profile_leaves_nothing(with_profiles: World) -> None:
    async with with_profiles.started() as core:
        for security in (SandboxSecurity(PRIVATE_PID, seccomp=_local("b.json")), SandboxSecurity(PRIVATE_PID, apparmor=_local("absent"))):
            with pytest.raises(InvalidRequest, match=r"config\.linux\.security_context\.(seccomp|apparmor)\.localhost_ref"):
                await core.sandboxes.run(pod(security=security), "")
        assert core.sandboxes.list() == []
    assert with_profiles.leftovers() == []


async def test_an_unknown_user_gets_its_entry_in_the_bundle(world: World) -> None:
    async with world.started() as core:
        sandbox = await core.sandboxes.run(pod(), "")
        mounted = world.images.mount_rootfs

        async def with_accounts(container_id: str, image_id: str, target: Path, **more: object) -> object:
            made = await mounted(container_id, image_id, target, **more)  # type: ignore[arg-type]
            (target / "etc").mkdir()
            for name, line in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")):
                (target / "etc" / name).write_text(line)
                (target / "etc" / name).chmod(0o644)
            return made

        world.images.mount_rootfs = with_accounts  # type: ignore[assignment,method-assign]
        security = ContainerSecurity(namespaces=PRIVATE_PID, run_as_user=4321, run_as_group=77)
        made = await core.containers.create(sandbox.id, container(security=security, working_dir="/srv"))
        oci = world.backend.containers[made.id].spec.oci
        sources = {mount["destination"]: Path(mount["source"]) for mount in oci["mounts"]}
        bundle = core.containers.bundle(made)
        assert sources["/etc/passwd"] == bundle / "etc/passwd"
        assert sources["/etc/passwd"].read_text().endswith("\n4321:x:4321:77:4321 user:/srv:/sbin/nologin\n")
        assert sources["/etc/group"].read_text().endswith("\n77:x:77:\n")
        assert "HOME=/srv" in oci["process"]["env"]
        await core.containers.remove(made.id)
        assert not bundle.exists()
        await core.sandboxes.remove(sandbox.id)
    assert world.leftovers() == []
