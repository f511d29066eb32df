"""Who a container is and what it may do, on the real daemon: users and groups, capabilities, privilege, hidden paths."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.core.security import DEFAULT_CAPABILITIES
from bridge.host.facts import CAPABILITIES, gather
from bridge.testing.images import Entry, Layout, busybox_layer, tar
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

USERS = "localhost/users:1"
BAD_USERS = {"4294967296": "localhost/bad-uid:1", "0:2147483648": "localhost/bad-gid:1", "-1": "localhost/negative:1"}
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1001:\naudio:x:29:app\nvideo:x:44:app\n"
STRICT, MERGE = pb.SupplementalGroupsPolicy.Strict, pb.SupplementalGroupsPolicy.Merge


@pytest.fixture
async def images(kubelet: Kubelet, node: DaemonNode) -> None:
    """An image that runs as a user of its own, and some whose user is no id; once for the module."""
    if (await kubelet.cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=USERS)))).image is not None:
        return
    layer, path = await run_sync(busybox_layer, Path("/bin/busybox")), node.root / "users-layout"
    accounts = tar([Entry("etc/passwd", PASSWD), Entry("etc/group", GROUP)])
    with Layout(path) as layout:
        layout.image(USERS, [layer, accounts], config={"User": "app", "Cmd": ["sleep", "1000"]})
        for user, name in BAD_USERS.items():
            layout.image(name, [layer, accounts], config={"User": user})
    await kubelet.cri.admin.import_image(admin.ImportImageRequest(path=str(path)))
    await run_sync(shutil.rmtree, path)


def secured(**security: Any) -> dict[str, Any]:
    """Changes of a container's config."""
    context = pb.LinuxContainerSecurityContext(**{"namespace_options": namespaces(), **security})
    return {"linux": pb.LinuxContainerConfig(security_context=context)}


def number(value: int) -> pb.Int64Value:
    return pb.Int64Value(value=value)


def capabilities(add: list[str] | None = None, drop: list[str] | None = None, ambient: list[str] | None = None) -> pb.Capability:
    return pb.Capability(add_capabilities=add or [], drop_capabilities=drop or [], add_ambient_capabilities=ambient or [])


def mask(names: Any) -> int:
    return sum(1 << bit for bit, name in enumerate(CAPABILITIES) if name in names)


def parsed(status: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in status.splitlines())}


async def own_status(kubelet: Kubelet, container: str, pid: str = "1") -> dict[str, str]:
    """/proc/PID/status of the container's first process, or, with "self", of an exec."""
    return parsed(await kubelet.output(container, f"cat /proc/{pid}/status"))


async def refused(kubelet: Kubelet, pod: str, field: str, code: Status = Status.INVALID_ARGUMENT, **changes: Any) -> None:
    with pytest.raises(CriError) as caught:
        await kubelet.create(pod, name="refused", **changes)
    assert (caught.value.code, field in caught.value.message) == (code, True), caught.value


async def privileged_pod(kubelet: Kubelet) -> str:
    context = pb.LinuxSandboxSecurityContext(namespace_options=namespaces(), privileged=True)
    config = kubelet.pod_config()
    assert config.linux is not None
    config.linux.security_context = context
    return await kubelet.run(config=config)


async def test_users_and_their_groups(kubelet: Kubelet, images: None) -> None:
    features = (await kubelet.cri.runtime.status(pb.StatusRequest())).features
    assert features is not None
    assert features.supplemental_groups_policy
    pod = await kubelet.run()
    image: dict[str, Any] = {"image": pb.ImageSpec(image=USERS)}
    cases: list[tuple[dict[str, Any], int, int, list[int]]] = [
        ({}, 1000, 1001, [1001, 29, 44]),
        ({"supplemental_groups": [7, 44]}, 1000, 1001, [1001, 29, 44, 7]),
        ({"supplemental_groups": [7], "supplemental_groups_policy": STRICT}, 1000, 1001, [1001, 7]),
        ({"run_as_user": number(1000), "run_as_group": number(44), "supplemental_groups_policy": MERGE}, 1000, 44, [44, 29]),
        ({"run_as_username": "root"}, 0, 0, [0]),
        ({"run_as_user": number(0), "run_as_group": number(29), "supplemental_groups_policy": STRICT}, 0, 29, [29]),
    ]
    for index, (security, uid, gid, groups) in enumerate(cases):
        container = await kubelet.started(pod, name=f"c{index}", **image, **secured(**security))
        for pid in ("1", "self"):  # an exec is the same user in the same groups
            status = await own_status(kubelet, container, pid)
            assert set(status["Uid"].split()) == {str(uid)}
            assert set(status["Gid"].split()) == {str(gid)}
            assert sorted(map(int, status["Groups"].split())) == sorted(groups), (security, pid)
        told = (await kubelet.status(container)).user
        assert told is not None
        assert told.linux == pb.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups)


async def test_a_user_that_the_image_does_not_know(kubelet: Kubelet, node: DaemonNode, images: None) -> None:
    pod = await kubelet.run()
    who: dict[str, Any] = {"run_as_user": number(4321), "run_as_group": number(77)}
    container = await kubelet.started(
        pod, image=pb.ImageSpec(image=USERS), working_dir="/var", envs=[pb.KeyValue(key="X", value=b"\n")], **secured(**who)
    )
    assert await kubelet.output(container, "id -un; id -gn; echo ~; echo $HOME") == "4321\n77\n/var\n/var"
    lines = (await kubelet.output(container, "cat /etc/passwd")).splitlines()
    assert lines == [*PASSWD.decode().splitlines(), "4321:x:4321:77:4321 user:/var:/sbin/nologin"]
    assert await kubelet.output(container, "stat -c '%a %u %g' /etc/passwd /etc/group") == "644 0 0\n644 0 0"
    fixed = await kubelet.started(pod, name="fixed", image=pb.ImageSpec(image=USERS), **secured(readonly_rootfs=True, **who))
    assert await kubelet.output(fixed, "id -un; grep -c ' /etc/passwd [^ ]* ro,' /proc/mounts") == "4321\n1"
    bundles = node.root / "run" / "sandboxes" / pod / "containers"
    assert (bundles / container / "etc" / "passwd").exists()
    await kubelet.stop(container, 0)
    await kubelet.remove(container)
    assert not (bundles / container).exists()
    known = await kubelet.started(pod, name="known", image=pb.ImageSpec(image=USERS))
    assert await kubelet.output(known, "id -un; echo $HOME; grep -c ' /etc/passwd ' /proc/mounts || true") == "app\n/home/app\n0"


async def test_generated_files_belong_to_root_in_a_user_namespace_too(kubelet: Kubelet, images: None) -> None:
    one = [pb.IdMapping(host_id=200000, container_id=0, length=65536)]
    user_namespace = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=one, gids=one)
    options = pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER, userns_options=user_namespace)
    pod = await kubelet.run(options=options)
    who = secured(namespace_options=options, run_as_user=number(4321), run_as_group=number(77))
    container = await kubelet.started(pod, image=pb.ImageSpec(image=USERS), **who)
    assert await kubelet.output(container, "id -un; id -gn; stat -c '%a %u %g' /etc/passwd /etc/group") == "4321\n77\n644 0 0\n644 0 0"
    beyond: list[tuple[str, dict[str, Any]]] = [
        ("run_as_user", {"run_as_user": number(65536)}),
        ("run_as_group", {"run_as_user": number(1), "run_as_group": number(70000)}),
        ("supplemental_groups", {"supplemental_groups": [1, 70000]}),
    ]
    for field, ids in beyond:
        await refused(kubelet, pod, f"config.linux.security_context.{field}", **secured(namespace_options=options, **ids))


async def test_home_brings_no_line_of_its_own_cve_2022_4318(kubelet: Kubelet, images: None) -> None:
    pod = await kubelet.run()
    home = pb.KeyValue(key="HOME", value=b"/x\nevil:x:0:0::/:/bin/sh\n#")
    changes: dict[str, Any] = {"image": pb.ImageSpec(image=USERS), "envs": [home], "working_dir": "/tmp"}
    container = await kubelet.started(pod, **changes, **secured(run_as_user=number(4321)))
    assert await kubelet.output(container, "wc -l < /etc/passwd; grep -c evil /etc/passwd || true; id -u") == "3\n0\n4321"


async def test_ids_that_are_none_cve_2024_40635(kubelet: Kubelet, images: None) -> None:
    pod = await kubelet.run()
    for user, name in BAD_USERS.items():
        await refused(kubelet, pod, "image user", image=pb.ImageSpec(image=name))
        image = (await kubelet.cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=name)))).image
        assert image is not None
        assert (image.uid, image.username) == (number(0), "") if user.startswith("0") else (None, user)
    for value in (-1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62):
        await refused(kubelet, pod, "config.linux.security_context.run_as_user", **secured(run_as_user=number(value)))
    await refused(kubelet, pod, "run_as_group", **secured(run_as_user=number(1), run_as_group=number(1 << 32)))
    await refused(kubelet, pod, "supplemental_groups[1]", **secured(supplemental_groups=[1, 1 << 32]))
    await refused(kubelet, pod, "run_as_group", **secured(run_as_group=number(1)))
    await refused(kubelet, pod, "run_as_username", **secured(run_as_username="nobody-here"))
    await refused(kubelet, pod, "run_as_username", **secured(run_as_username="4294967296"))
    await refused(kubelet, pod, "run_as_username", **secured(run_as_username="root", run_as_user=number(0)))


async def test_the_pods_own_process_runs_as_asked(kubelet: Kubelet) -> None:
    shared = namespaces(pid=pb.NamespaceMode.POD)
    config = kubelet.pod_config()
    assert config.linux is not None
    config.linux.security_context = pb.LinuxSandboxSecurityContext(
        namespace_options=shared, run_as_user=number(12), run_as_group=number(34), supplemental_groups=[56, 78]
    )
    pod = await kubelet.run(config=config)
    status = parsed(Path(f"/proc/{(await kubelet.pod_info(pod))['pid']}/status").read_text())
    assert (set(status["Uid"].split()), set(status["Gid"].split())) == ({"12"}, {"34"})
    assert sorted(map(int, status["Groups"].split())) == [34, 56, 78]
    assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapBnd"], 16)) == ("2", "1", 0)
    refusals: list[tuple[str, dict[str, Any]]] = [
        ("run_as_group", {"run_as_group": number(1)}),
        ("run_as_user", {"run_as_user": number(1 << 32)}),
        ("supplemental_groups[0]", {"supplemental_groups": [-1]}),
    ]
    for field, security in refusals:
        wrong = kubelet.pod_config()
        assert wrong.linux is not None
        wrong.linux.security_context = pb.LinuxSandboxSecurityContext(namespace_options=shared, **security)
        with pytest.raises(CriError) as caught:
            await kubelet.run(config=wrong)
        assert caught.value.code is Status.INVALID_ARGUMENT
        assert f"config.linux.security_context.{field}" in caught.value.message


async def test_capabilities(kubelet: Kubelet, images: None) -> None:
    pod = await kubelet.run()
    held = gather().capabilities
    default = frozenset(DEFAULT_CAPABILITIES) & held
    cases: list[tuple[pb.Capability | None, frozenset[str]]] = [
        (None, default),
        (capabilities(add=["NET_ADMIN"], drop=["CAP_CHOWN", "kill"]), (default | {"CAP_NET_ADMIN"}) - {"CAP_CHOWN", "CAP_KILL"}),
        (capabilities(drop=["ALL"]), frozenset()),
        (capabilities(add=["CAP_NET_BIND_SERVICE"], drop=["ALL"]), frozenset({"CAP_NET_BIND_SERVICE"})),
        (capabilities(add=["ALL"]), held),
        (capabilities(add=["all"], drop=["SYS_ADMIN"]), held - {"CAP_SYS_ADMIN"}),
    ]
    for index, (change, wanted) in enumerate(cases):
        container = await kubelet.started(pod, name=f"c{index}", **secured(capabilities=change))
        for pid in ("1", "self"):
            status = await own_status(kubelet, container, pid)
            found = {status[name] for name in ("CapBnd", "CapPrm", "CapEff")}
            assert found == {f"{mask(wanted):016x}"}, (change, pid)
            assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0  # CVE-2022-24769
    only = capabilities(drop=["ALL"], ambient=["NET_BIND_SERVICE"])
    user: dict[str, Any] = {"image": pb.ImageSpec(image=USERS)}
    container = await kubelet.started(pod, name="ambient", **user, **secured(capabilities=only))
    for pid in ("1", "self"):
        status = await own_status(kubelet, container, pid)
        assert {int(status[name], 16) for name in ("CapEff", "CapAmb", "CapBnd")} == {mask({"CAP_NET_BIND_SERVICE"})}
    plain = await kubelet.started(pod, name="plain", **user, **secured(capabilities=capabilities(add=["NET_ADMIN"])))
    status = await own_status(kubelet, plain)
    assert (int(status["CapEff"], 16), int(status["CapInh"], 16)) == (0, 0)
    field = "config.linux.security_context.capabilities.add_capabilities"
    await refused(kubelet, pod, f"{field}[1]", **secured(capabilities=capabilities(add=["KILL", "SYS_ADMN"])))
    lacking = sorted(frozenset(CAPABILITIES) - held)
    if lacking:
        await refused(kubelet, pod, lacking[0], Status.PERMISSION_DENIED, **secured(capabilities=capabilities(add=lacking[:1])))


async def test_privileged(kubelet: Kubelet) -> None:
    pod = await privileged_pod(kubelet)
    everything = await kubelet.started(
        pod,
        **secured(
            privileged=True,
            capabilities=capabilities(drop=["ALL"]),
            masked_paths=["/etc/passwd"],
            readonly_paths=["/tmp"],
            seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.Localhost, localhost_ref="absent.json"),
            apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.Localhost, localhost_ref="absent"),
        ),
    )
    status = await own_status(kubelet, everything)
    assert (int(status["CapEff"], 16), status["Seccomp"]) == (mask(gather().capabilities), "0")
    script = """
        test -s /etc/passwd && touch /tmp/x && echo unhidden
        grep -c '^sysfs /sys sysfs rw' /proc/mounts; grep -c ' /sys/fs/cgroup[^ ]* [^ ]* ro,' /proc/mounts
        test -c /dev/kmsg && echo devices; grep -c ' /proc/sys ' /proc/mounts; true
    """
    said = await kubelet.output(everything, script)
    assert said == "unhidden\n1\n0\ndevices\n0"
    modest = await kubelet.started(pod, name="modest")
    assert int((await own_status(kubelet, modest))["CapEff"], 16) == mask(frozenset(DEFAULT_CAPABILITIES) & gather().capabilities)
    assert await kubelet.output(modest, "test -e /dev/kmsg || echo none") == "none"
    plain = await kubelet.run()
    await refused(kubelet, plain, "config.linux.security_context.privileged", **secured(privileged=True))


async def test_hidden_paths_and_new_privileges(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    script = """
        for path in /proc/kcore /proc/keys /proc/timer_list; do test -s $path && head -c 1 $path | grep -q . && echo "read $path"; done
        for path in /proc/sys/kernel/domainname /proc/sysrq-trigger; do (echo x > $path) 2>/dev/null && echo "wrote $path"; done
        ls -A /sys/firmware | grep .
        grep NoNewPrivs /proc/self/status | tr -d '\\t'
    """
    default = await kubelet.started(pod)
    assert await kubelet.output(default, script) == "NoNewPrivs:0"
    tight = await kubelet.started(pod, name="tight", **secured(no_new_privs=True))
    assert await kubelet.output(tight, script) == "NoNewPrivs:1"
    assert (await own_status(kubelet, tight))["NoNewPrivs"] == "1"
    own = await kubelet.started(pod, name="own", **secured(masked_paths=["/etc/group", "/home", "/not/there"], readonly_paths=["/tmp"]))
    shut = "test -s /etc/group || (echo x > /home/x) 2>/dev/null || (echo x > /tmp/x) 2>/dev/null || echo shut"
    assert await kubelet.output(own, shut) == "shut"
    await refused(kubelet, pod, "masked_paths[1]", **secured(masked_paths=["/proc/kcore", "proc/keys"]))
    await refused(kubelet, pod, "readonly_paths[0]", **secured(readonly_paths=[""]))


async def test_a_read_only_root(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, **secured(readonly_rootfs=True))
    places = "/x /etc/x /etc/hosts /etc/hostname /etc/resolv.conf /tmp/x /dev/shm/x /dev/x"
    script = f"for place in {places}; do (echo x > $place) 2>/dev/null && echo $place; done; cat /etc/hostname"
    written = (await kubelet.output(container, script)).splitlines()
    assert written == ["/dev/shm/x", "/dev/x", kubelet.configs[pod].hostname]
    other = await kubelet.started(pod, name="other")
    assert await kubelet.output(other, "cat /dev/shm/x") == "x"  # the pod's, shared by its containers
    assert os.stat("/etc/hosts").st_size > 0
