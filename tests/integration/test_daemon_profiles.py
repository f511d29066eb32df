"""Seccomp and AppArmor profiles on the real daemon: which one is in force, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.host.facts import gather
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

DEFAULT, UNCONFINED, LOCALHOST = pb.SecurityProfileProfileType
NO_CHMOD = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}
CHMOD = "touch /tmp/x; chmod 700 /tmp/x 2>&1 || true; grep Seccomp: /proc/self/status | tr -d '\\t'"
DENIED = "chmod: /tmp/x: Permission denied\nSeccomp:2"
FIELD = "config.linux.security_context"


@pytest.fixture
def profiles(node: DaemonNode) -> Path:
    """The configured root with some profiles; a good one lies beside it, out of reach."""
    root = node.root / "seccomp"
    shutil.rmtree(root, ignore_errors=True)
    (root / "profiles").mkdir(parents=True)
    (root / "profiles" / "no-chmod.json").write_text(json.dumps(NO_CHMOD))
    (root / "typo.json").write_text(json.dumps({**NO_CHMOD, "syscalls": [{"names": ["fchmodt"], "action": "SCMP_ACT_ERRNO"}]}))
    (root / "broken.json").write_text("{")
    (node.root / "outside.json").write_text(json.dumps(NO_CHMOD))
    (root / "link.json").symlink_to(node.root / "outside.json")
    return root


def profile(kind: pb.SecurityProfileProfileType, reference: str = "") -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=kind, localhost_ref=reference)


def secured(**security: Any) -> dict[str, Any]:
    context = filled(pb.LinuxContainerSecurityContext(namespace_options=namespaces()), security)
    return {"linux": pb.LinuxContainerConfig(security_context=context)}


def filled(context: Any, fields: dict[str, Any]) -> Any:
    """``context`` with its fields set, one by one: the constructor warns of the deprecated ones."""
    for name, value in fields.items():
        setattr(context, name, value)
    return context


async def refused(kubelet: Kubelet, pod: str, words: str, code: Status = Status.INVALID_ARGUMENT, **security: Any) -> None:
    with pytest.raises(CriError) as caught:
        await kubelet.create(pod, name="refused", **secured(**security))
    assert (caught.value.code, words in caught.value.message) == (code, True), caught.value


def pod_config(kubelet: Kubelet, **security: Any) -> pb.PodSandboxConfig:
    config = kubelet.pod_config()
    assert config.linux is not None
    options = namespaces(pid=pb.NamespaceMode.POD)
    config.linux.security_context = filled(pb.LinuxSandboxSecurityContext(namespace_options=options), security)
    return config


async def pause_status(kubelet: Kubelet, pod: str) -> dict[str, str]:
    pid = (await kubelet.pod_info(pod))["pid"]
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


async def test_which_seccomp_profile_is_in_force(kubelet: Kubelet, profiles: Path) -> None:
    pod = await kubelet.run()
    local = str(profiles / "profiles" / "no-chmod.json")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "Seccomp:0"),
        ({"seccomp": profile(UNCONFINED)}, "Seccomp:0"),
        ({"seccomp": profile(DEFAULT)}, "Seccomp:2"),
        ({"seccomp": profile(LOCALHOST, local)}, DENIED),
        ({"seccomp": profile(LOCALHOST, "profiles/no-chmod.json")}, DENIED),
        ({"seccomp_profile_path": f"localhost/{local}"}, DENIED),
        ({"seccomp_profile_path": "runtime/default"}, "Seccomp:2"),
        ({"seccomp_profile_path": "unconfined"}, "Seccomp:0"),
        ({"seccomp": profile(UNCONFINED), "seccomp_profile_path": f"localhost/{local}"}, "Seccomp:0"),
    ]
    for index, (security, says) in enumerate(cases):
        name = f"c{index}"
        container = await kubelet.started(pod, f"{CHMOD}; exec sleep 1000", name, **secured(**security))
        lines = says.splitlines()
        assert await kubelet.log(pod, name, until=lambda found: bool(found) and "Seccomp" in found[-1]) == [f"stdout F {x}" for x in lines]
        assert await kubelet.output(container, CHMOD) == says  # an exec is filtered alike


async def test_seccomp_profiles_that_are_refused(kubelet: Kubelet, profiles: Path, node: DaemonNode) -> None:
    pod = await kubelet.run()
    field = f"{FIELD}.seccomp.localhost_ref: "
    for reference, why in (
        ("absent.json", "does not exist"),
        (str(node.root / "outside.json"), "is not below"),
        ("../outside.json", "'..'"),
        ("link.json", "can't be followed"),
        ("profiles", "not a regular file"),
        ("broken.json", "not JSON"),
        ("typo.json", "restricts 'fchmodt'"),
    ):
        await refused(kubelet, pod, why, seccomp=profile(LOCALHOST, reference))
        await refused(kubelet, pod, field, seccomp=profile(LOCALHOST, reference))
    await refused(kubelet, pod, field, seccomp=profile(LOCALHOST))
    await refused(kubelet, pod, f"{FIELD}.seccomp_profile_path", seccomp_profile_path="nonsense")


async def test_seccomp_of_the_pods_own_process(kubelet: Kubelet, profiles: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "2"),
        ({"seccomp": profile(DEFAULT)}, "2"),
        ({"seccomp": profile(LOCALHOST, "profiles/no-chmod.json")}, "2"),
        ({"seccomp": profile(UNCONFINED)}, "0"),
        ({"seccomp_profile_path": "unconfined"}, "0"),
        ({"seccomp": profile(LOCALHOST, "absent.json"), "privileged": True}, "0"),
    ]
    for security, mode in cases:
        pod = await kubelet.run(config=pod_config(kubelet, **security))
        assert (await pause_status(kubelet, pod))["Seccomp"] == mode, security
    for options in (namespaces(), namespaces(pid=pb.NamespaceMode.POD)):  # with a process of its own or without
        with pytest.raises(CriError, match=r"seccomp\.localhost_ref.*does not exist"):
            await kubelet.run(config=pod_config(kubelet, seccomp=profile(LOCALHOST, "absent.json"), namespace_options=options))


@pytest.mark.skipif(gather().apparmor, reason="this host has AppArmor")
async def test_apparmor_on_a_host_without_it(kubelet: Kubelet) -> None:
    pod = await kubelet.run(config=pod_config(kubelet, apparmor=profile(DEFAULT)))
    fine: list[dict[str, Any]] = [
        {"apparmor": profile(DEFAULT)},
        {"apparmor": profile(UNCONFINED)},
        {"apparmor_profile": "runtime/default"},
    ]
    for index, security in enumerate(fine):
        container = await kubelet.started(pod, name=f"c{index}", **secured(**security))
        assert await kubelet.output(container, "echo runs") == "runs"
    field = f"{FIELD}.apparmor: profile 'strict'"
    refusals: list[dict[str, Any]] = [
        {"apparmor": profile(LOCALHOST, "strict")},
        {"apparmor": profile(LOCALHOST, "localhost/strict")},
        {"apparmor_profile": "localhost/strict"},
        {"apparmor": profile(LOCALHOST, "strict"), "apparmor_profile": "unconfined"},
    ]
    for security in refusals:
        await refused(kubelet, pod, field, Status.UNIMPLEMENTED, **security)
    await kubelet.create(pod, name="new wins", **secured(apparmor=profile(UNCONFINED), apparmor_profile="localhost/strict"))
    await refused(kubelet, pod, f"{FIELD}.apparmor_profile", apparmor_profile="strict")
    with pytest.raises(CriError, match=r"apparmor: profile 'strict'"):
        await kubelet.run(config=pod_config(kubelet, apparmor=profile(LOCALHOST, "strict")))
