"""SELinux labels through core: journaled with the pod, worn by all that belongs to it, unique, freed, and there after a restart.

The kernel of a test need not have SELinux: files can hold labels all the same, and the one mount that is to carry a context
is made without it and looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bridge.core import selinux
from bridge.core.model import ContainerSecurity, MountRequest, NamespaceMode, NamespaceOptions, SandboxSecurity, SELinuxOptions
from bridge.core.relabel import SKIP_ANNOTATION
from bridge.core.services import Services
from bridge.errors import InvalidRequest, LimitExceeded, NetworkFailed, TimedOut
from bridge.host import syscalls
from bridge.host.selinux import ATTRIBUTE, Contexts
from tests.component.conftest import PRIVATE_PID, World, container, pod
from tests.unit.selinux_trees import tree

pytestmark = pytest.mark.root
PROCESS, FILE = "system_u:system_r:container_t:", "system_u:object_r:container_file_t:"


@pytest.fixture
def mounts_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of tmpfs mounts; a context is taken off them before the kernel sees it."""
    seen: list[str] = []
    real = syscalls.mount

    def mount(source: str, target: Path, fstype: str = "", flags: int = 0, data: str = "") -> None:
        if fstype == "tmpfs":
            seen.append(data)
        real(source, target, fstype, flags, data.partition(",context=")[0])

    monkeypatch.setattr(syscalls, "mount", mount)
    return seen


@pytest.fixture
def labelled(world: World, tmp_path: Path, mounts_made: list[str]) -> World:
    root = tree(tmp_path / "host")
    contexts = Contexts(PROCESS + "s0", FILE + "s0", "system_u:object_r:container_ro_file_t:s0", "targeted", root)
    world.settings = {"selinux": contexts, "selinux_categories": 3}
    return world


def level(label: str) -> str:
    return selinux.parse(label).level


def wants(options: SELinuxOptions | None = None, **namespaces: Any) -> SandboxSecurity:
    return SandboxSecurity(namespaces=NamespaceOptions(**{"pid": NamespaceMode.CONTAINER, **namespaces}), selinux=options)


async def test_all_of_a_pod_wears_one_level_and_other_pods_wear_others(labelled: World, mounts_made: list[str], core: Services) -> None:
    one = await core.sandboxes.run(pod("one"), "")
    two = await core.sandboxes.run(pod("two"), "")
    assert one.selinux_process.startswith(PROCESS + "s0:c")
    assert level(one.selinux_process) == level(one.selinux_mount) != level(two.selinux_mount)
    assert mounts_made[0] == f'mode=1777,size={64 << 20},context="{one.selinux_mount}"'
    directory = labelled.run_dir / "sandboxes" / one.id
    for name in ("hosts", "hostname", "resolv.conf"):
        assert os.getxattr(directory / name, ATTRIBUTE) == one.selinux_mount.encode() + b"\0"
    made = await core.containers.create(one.id, container())
    oci = labelled.backend.containers[made.id].spec.oci
    assert (oci["process"]["selinuxLabel"], oci["linux"]["mountLabel"]) == (one.selinux_process, one.selinux_mount)
    assert labelled.images.labels[made.id] == one.selinux_mount
    await core.containers.start(made.id)
    await core.execs.run(made.id, ["true"], 5)
    assert labelled.backend.containers[made.id].execs[0].process["selinuxLabel"] == one.selinux_process


async def test_levels_come_back_with_removal_and_failure(labelled: World, core: Services) -> None:
    pods = [await core.sandboxes.run(pod(name), "") for name in ("one", "two", "three")]
    assert len({level(each.selinux_process) for each in pods}) == 3
    with pytest.raises(LimitExceeded, match="all 3 pairs"):
        await core.sandboxes.run(pod("four"), "")
    await core.sandboxes.stop(pods[1].id)
    with pytest.raises(LimitExceeded):  # a stopped pod's files are still there
        await core.sandboxes.run(pod("four"), "")
    await core.sandboxes.remove(pods[1].id)
    labelled.network.faults.fail_on.add("add")
    with pytest.raises(NetworkFailed):
        await core.sandboxes.run(pod("four"), "")
    four = await core.sandboxes.run(pod("four"), "")
    assert four.selinux_process == pods[1].selinux_process


async def test_a_restart_knows_which_levels_are_taken_and_labels_new_containers_as_before(labelled: World) -> None:
    async with labelled.started() as core:
        one = await core.sandboxes.run(pod("one"), "")
        two = await core.sandboxes.run(pod("two"), "")
    async with labelled.started() as core:
        await core.recovery.run()
        three = await core.sandboxes.run(pod("three"), "")
        assert len({level(each.selinux_process) for each in (one, two, three)}) == 3
        made = await core.containers.create(one.id, container())
        assert labelled.backend.containers[made.id].spec.oci["process"]["selinuxLabel"] == one.selinux_process


async def test_a_containers_own_options(labelled: World, core: Services) -> None:
    made = await core.sandboxes.run(pod(security=wants(SELinuxOptions(type="pod_t"))), "")
    assert made.selinux_process == f"system_u:system_r:pod_t:{level(made.selinux_process)}"
    security = ContainerSecurity(namespaces=PRIVATE_PID, selinux=SELinuxOptions(level="s0:c7,c9"))
    own = await core.containers.create(made.id, container(security=security))
    assert labelled.backend.containers[own.id].spec.oci["process"]["selinuxLabel"] == "system_u:system_r:pod_t:s0:c7,c9"
    assert labelled.images.labels[own.id] == FILE + "s0:c7,c9"


async def test_wrong_options_name_their_field_and_leave_nothing(labelled: World, core: Services) -> None:
    with pytest.raises(InvalidRequest, match=r"^config\.linux\.security_context\.selinux_options\.level"):
        await core.sandboxes.run(pod(security=wants(SELinuxOptions(level="secret"))), "")
    made = await core.sandboxes.run(pod(), "")
    security = ContainerSecurity(namespaces=PRIVATE_PID, selinux=SELinuxOptions(type='t"'))
    with pytest.raises(InvalidRequest, match=r"^config\.linux\.security_context\.selinux_options\.type"):
        await core.containers.create(made.id, container(security=security))
    await core.sandboxes.remove(made.id)
    assert labelled.leftovers() == []
    assert core.live.selinux_levels == set()


async def test_a_pod_in_the_hosts_ipc_namespace_is_left_to_the_policy(labelled: World, mounts_made: list[str], core: Services) -> None:
    made = await core.sandboxes.run(pod(security=wants(ipc=NamespaceMode.NODE)), "")
    assert made.selinux_process
    own = await core.containers.create(made.id, container())
    oci = labelled.backend.containers[own.id].spec.oci
    assert "selinuxLabel" not in oci["process"]
    assert "mountLabel" not in oci["linux"]
    assert labelled.images.labels[own.id] == ""
    assert mounts_made == []
    assert ATTRIBUTE not in os.listxattr(labelled.run_dir / "sandboxes" / made.id / "hosts")


async def test_without_selinux_options_are_checked_and_nothing_is_labelled(world: World, core: Services) -> None:
    made = await core.sandboxes.run(pod(security=wants(SELinuxOptions(type="pod_t", level="s0:c1"))), "")
    assert (made.selinux_process, made.selinux_mount) == ("", "")
    with pytest.raises(InvalidRequest, match=r"selinux_options\.level"):
        await core.sandboxes.run(pod("other", security=wants(SELinuxOptions(level="1"))), "")


async def test_a_volume_is_relabelled_when_it_asks_for_it(labelled: World, core: Services, tmp_path: Path) -> None:
    asked, other = tmp_path / "asked", tmp_path / "other"
    for path in (asked, other):
        path.mkdir()
        (path / "file").write_text("x")
    mounts = (MountRequest("/a", str(asked), selinux_relabel=True), MountRequest("/b", str(other)))
    made = await core.sandboxes.run(pod(), "")
    await core.containers.create(made.id, container(mounts=mounts))
    assert os.getxattr(asked / "file", ATTRIBUTE) == made.selinux_mount.encode() + b"\0"
    assert ATTRIBUTE not in os.listxattr(other / "file")


async def test_relabelling_is_refused_where_the_host_needs_its_labels(labelled: World, core: Services, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/usr")
    made = await core.sandboxes.run(pod(), "")
    for path in ("/etc", "/usr/../home", str(tmp_path / "link")):
        with pytest.raises(InvalidRequest, match=r"^config\.mounts\[0\]\.selinux_relabel: /\S* belongs to the host"):
            await core.containers.create(made.id, container(mounts=(MountRequest("/a", path, selinux_relabel=True),)))
    assert ATTRIBUTE not in os.listxattr("/etc")


async def test_an_unconfined_container_and_a_host_without_selinux_relabel_nothing(labelled: World, core: Services, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    wanted = (MountRequest("/a", str(tmp_path / "data"), selinux_relabel=True),)
    spc = await core.sandboxes.run(pod(security=wants(SELinuxOptions(type="spc_t"))), "")
    await core.containers.create(spc.id, container(mounts=wanted))
    assert ATTRIBUTE not in os.listxattr(tmp_path / "data")


async def test_a_relabelling_that_takes_too_long_names_its_field(labelled: World, core: Services, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    made = await core.sandboxes.run(pod(), "")
    labelled.settings["relabel_timeout"] = 0.001
    async with labelled.started() as slow:
        await slow.recovery.run()
        wanted = (MountRequest("/a", str(tmp_path / "data"), selinux_relabel=True),)
        with pytest.raises(TimedOut, match=r"^config\.mounts\[0\]\.selinux_relabel: .* within 0\.001 s"):
            await slow.containers.create(made.id, container(mounts=wanted))


async def test_a_pod_may_have_volumes_trusted_that_are_labelled_right_at_their_top(labelled: World, core: Services, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    made = await core.sandboxes.run(pod(annotations={SKIP_ANNOTATION: "true"}), "")
    wanted = (MountRequest("/a", str(tmp_path / "data"), selinux_relabel=True),)
    await core.containers.create(made.id, container("one", mounts=wanted))
    (tmp_path / "data/new").write_text("x")
    await core.containers.create(made.id, container("two", mounts=wanted))
    assert ATTRIBUTE not in os.listxattr(tmp_path / "data/new")
