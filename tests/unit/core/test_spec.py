"""The spec as a whole: namespaces, seccomp, annotations, the sandbox container, and its price."""

from __future__ import annotations

import dataclasses
import json
import timeit
from pathlib import Path
from typing import Any

import pytest

from bridge.core.entities import User
from bridge.core.model import (
    ContainerSecurity,
    IDMapping,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SandboxSecurity,
    SecurityProfile,
    UserNamespace,
)
from bridge.core.security import MASKED_PATHS, READONLY_PATHS
from bridge.core.spec import SANDBOX_PID, Confinement, build_container, build_sandbox
from bridge.errors import InvalidRequest, Unsupported
from bridge.host.facts import HostFacts
from tests.unit.core.spec_cases import FACTS, PINS, SETTINGS, config, facts, inputs, sandbox


def _namespaces(spec: dict[str, Any]) -> dict[str, str | None]:
    return {entry["type"]: entry.get("path") for entry in spec["linux"]["namespaces"]}


def _build(security: ContainerSecurity | None = None, host: Any = FACTS, **changes: Any) -> dict[str, Any]:
    return build_container(inputs(security=security, **changes), host, SETTINGS)


def test_pod_namespaces_are_joined_by_path() -> None:
    expected = {"mount": None, "network": PINS["net"], "ipc": PINS["ipc"], "uts": PINS["uts"], "pid": None, "cgroup": None}
    assert _namespaces(_build()) == expected


def test_what_the_pod_did_not_pin_is_the_hosts() -> None:
    spec = _build(sandbox=sandbox(namespaces={"ipc": PINS["ipc"]}))
    assert _namespaces(spec).keys() == {"mount", "ipc", "pid", "cgroup"}


def test_cgroup_namespace_only_on_v2_and_never_when_privileged() -> None:
    assert "cgroup" not in _namespaces(_build(host=facts(cgroup_v2=False)))
    assert "cgroup" not in _namespaces(_build(ContainerSecurity(privileged=True), sandbox=sandbox(privileged=True)))


@pytest.mark.parametrize(
    ("pod", "container", "expected"),
    [
        (NamespaceMode.POD, NamespaceMode.POD, {"pid": SANDBOX_PID}),
        (NamespaceMode.CONTAINER, NamespaceMode.CONTAINER, {"pid": None}),
        (NamespaceMode.CONTAINER, NamespaceMode.POD, {"pid": None}),
        (NamespaceMode.POD, NamespaceMode.CONTAINER, {"pid": None}),
        (NamespaceMode.NODE, NamespaceMode.POD, {}),
        (NamespaceMode.NODE, NamespaceMode.NODE, {}),
        (NamespaceMode.CONTAINER, NamespaceMode.TARGET, {"pid": "/proc/77/ns/pid"}),
    ],
)
def test_pid_namespace(pod: NamespaceMode, container: NamespaceMode, expected: dict[str, str | None]) -> None:
    security = ContainerSecurity(namespaces=NamespaceOptions(pid=container, target_id="t"))
    spec = _build(security, sandbox=sandbox(pid=pod), pid_target=Path("/proc/77/ns/pid"))
    assert {key: path for key, path in _namespaces(spec).items() if key == "pid"} == expected


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (NamespaceOptions(pid=NamespaceMode.TARGET), "target_id"),
        (NamespaceOptions(network=NamespaceMode.CONTAINER), "network"),
        (NamespaceOptions(ipc=NamespaceMode.TARGET), "ipc"),
    ],
)
def test_impossible_namespaces(options: NamespaceOptions, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _build(ContainerSecurity(namespaces=options))
    assert caught.value.field == f"config.linux.security_context.namespace_options.{field}"


def test_user_namespaces() -> None:
    user = UserNamespace(NamespaceMode.POD, (IDMapping(100000, 0, 1000),), (IDMapping(200000, 0, 2000),))
    options = NamespaceOptions(pid=NamespaceMode.CONTAINER, user=user)
    pod = sandbox(namespaces={**PINS, "user": "/run/s/user"})
    pod = dataclasses.replace(pod, config=dataclasses.replace(pod.config, security=SandboxSecurity(namespaces=options)))
    for built in (_build(sandbox=pod, user=User(999, 999)), build_sandbox(pod, Path("/pause"), ["/pause"], FACTS, SETTINGS)):
        linux = built["linux"]
        assert linux["namespaces"][0] == {"type": "user", "path": "/run/s/user"}, "joined first: it owns the others"
        assert linux["uidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 1000}]
        assert linux["gidMappings"] == [{"containerID": 0, "hostID": 200000, "size": 2000}]
    assert (built["process"]["user"]["uid"], built["process"]["user"]["gid"]) == (999, 1999), "the last ids there are"
    with pytest.raises(InvalidRequest, match="run_as_user: 1000 is beyond"):
        _build(sandbox=pod, user=User(1000, 0))
    assert "uidMappings" not in _build()["linux"]


def test_privileged_needs_a_privileged_pod() -> None:
    with pytest.raises(InvalidRequest) as caught:
        _build(ContainerSecurity(privileged=True))
    assert caught.value.field == "config.linux.security_context.privileged"


def test_privileged_is_unhidden_and_unfiltered() -> None:
    security = ContainerSecurity(privileged=True, seccomp=SecurityProfile(ProfileType.RUNTIME_DEFAULT))
    linux = _build(security, sandbox=sandbox(privileged=True))["linux"]
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & linux.keys()


def test_nothing_runs_unprotected_by_default() -> None:
    spec = _build(ContainerSecurity(seccomp=SecurityProfile()))
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert spec["linux"]["maskedPaths"] == list(MASKED_PATHS)
    assert spec["linux"]["readonlyPaths"] == list(READONLY_PATHS)
    assert "CAP_SYS_ADMIN" not in spec["process"]["capabilities"]["bounding"]


def test_seccomp_choices() -> None:
    unconfined = ContainerSecurity(seccomp=SecurityProfile(ProfileType.UNCONFINED))
    asked = inputs(security=ContainerSecurity(seccomp=SecurityProfile()))
    assert "seccomp" not in _build(unconfined)["linux"]
    assert "seccomp" not in build_container(inputs(), FACTS, SETTINGS)["linux"]  # unset is unconfined, as the CRI says
    assert "seccomp" in build_container(asked, FACTS, SETTINGS)["linux"]
    strict = dataclasses.replace(SETTINGS, seccomp_when_unset=ProfileType.RUNTIME_DEFAULT)
    assert "seccomp" in build_container(inputs(), FACTS, strict)["linux"]
    assert "seccomp" not in build_container(inputs(security=unconfined), FACTS, strict)["linux"]
    own = dataclasses.replace(SETTINGS, seccomp_profile={"defaultAction": "SCMP_ACT_LOG"})
    assert build_container(asked, FACTS, own)["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_LOG"


def test_apparmor_profile_is_the_one_that_was_found() -> None:
    assert _build(confinement=Confinement(apparmor="strict"))["process"]["apparmorProfile"] == "strict"
    assert "apparmorProfile" not in _build()["process"]


def test_seccomp_localhost() -> None:
    local = ContainerSecurity(seccomp=SecurityProfile(ProfileType.LOCALHOST, "/p/x.json"))
    spec = _build(local, confinement=Confinement({"defaultAction": "SCMP_ACT_ALLOW"}))
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"
    for changes in ({}, {"confinement": Confinement({"no": "profile"})}):
        with pytest.raises(InvalidRequest) as caught:
            _build(local, **changes)
        assert caught.value.field == "config.linux.security_context.seccomp.localhost_ref"


def test_kernel_without_seccomp() -> None:
    bare = facts(seccomp=False)
    assert "seccomp" not in _build(host=bare)["linux"]
    with pytest.raises(Unsupported, match="seccomp"):
        _build(ContainerSecurity(seccomp=SecurityProfile()), bare)


def test_annotations_in_both_families() -> None:
    annotations = _build(config=config(annotations={"team": "a", "weird key/ü": "b\n"}))["annotations"]
    assert annotations["team"] == "a"
    assert annotations["weird key/ü"] == "b\n"
    assert annotations["io.kubernetes.cri.container-type"] == annotations["io.kubernetes.cri-o.ContainerType"] == "container"
    assert annotations["io.kubernetes.cri.sandbox-id"] == annotations["io.kubernetes.cri-o.SandboxID"] == "sandbox-1"
    assert annotations["io.kubernetes.cri.container-name"] == "app"
    assert annotations["io.kubernetes.cri.sandbox-namespace"] == "default"
    assert annotations["io.kubernetes.cri.image-name"] == "busybox:1"


def test_annotations_that_steer_a_runtime_are_held_back_cve_2024_3154() -> None:
    steering = {
        "org.systemd.property.SuccessAction": "'poweroff'",
        "run.oci.hooks.stdout": "/etc/shadow",
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri-o.SandboxID": "another",
        "dev.gvisor.internal.x": "1",
    }
    given = inputs(config=config(annotations=steering))
    annotations = build_container(given, FACTS, SETTINGS)["annotations"]
    assert not {"org.systemd.property.SuccessAction", "run.oci.hooks.stdout", "dev.gvisor.internal.x"} & annotations.keys()
    assert annotations["io.kubernetes.cri.container-type"] == "container"
    assert annotations["io.kubernetes.cri-o.SandboxID"] == "sandbox-1"
    allowed = dataclasses.replace(SETTINGS, allowed_annotations=("dev.gvisor.", "io.kubernetes.cri."))
    annotations = build_container(given, FACTS, allowed)["annotations"]
    assert annotations["dev.gvisor.internal.x"] == "1"
    assert annotations["io.kubernetes.cri.container-type"] == "container"


def test_sandbox_container_has_no_privilege() -> None:
    spec = build_sandbox(sandbox(pid=NamespaceMode.POD), Path("/pause"), ["/catatonit", "-P"], FACTS, SETTINGS, Confinement())
    assert _namespaces(spec) == {
        "mount": None,
        "pid": None,
        "network": PINS["net"],
        "ipc": PINS["ipc"],
        "uts": PINS["uts"],
        "cgroup": None,
    }
    process = spec["process"]
    assert process["args"] == ["/catatonit", "-P"]
    assert process["noNewPrivileges"] is True
    assert not any(process["capabilities"].values())
    assert process["user"]["uid"] == process["user"]["gid"] == 65535
    assert process["oomScoreAdj"] == -998
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert "/proc/sys" in spec["linux"]["readonlyPaths"]
    assert spec["root"] == {"path": "/pause", "readonly": True}
    assert [mount["destination"] for mount in spec["mounts"]] == ["/proc", "/dev"]
    assert spec["linux"]["cgroupsPath"] == "/pods/web/cri-bridge-sandbox-sandbox-1"
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert spec["annotations"]["io.kubernetes.cri.container-type"] == "sandbox"


def _sandbox_spec(security: SandboxSecurity, confinement: Confinement | None = None, host: HostFacts = FACTS) -> dict[str, Any]:
    pod = sandbox()
    pod = dataclasses.replace(pod, config=dataclasses.replace(pod.config, security=security))
    return build_sandbox(pod, Path("/p"), ["/x"], host, SETTINGS, confinement)


def test_sandbox_runs_as_asked() -> None:
    user = _sandbox_spec(SandboxSecurity(run_as_user=7, run_as_group=8, supplemental_groups=(9, 8)))["process"]["user"]
    assert user == {"uid": 7, "gid": 8, "additionalGids": [8, 9]}
    for wrong in (SandboxSecurity(run_as_user=2**32), SandboxSecurity(run_as_user=1, supplemental_groups=(-1,))):
        with pytest.raises(InvalidRequest, match=r"run_as_user|supplemental_groups"):
            _sandbox_spec(wrong)


def test_profiles_of_the_sandbox_container() -> None:
    local = SandboxSecurity(seccomp=SecurityProfile(ProfileType.LOCALHOST, "x"))
    found = Confinement({"defaultAction": "SCMP_ACT_LOG"}, apparmor="strict")
    spec = _sandbox_spec(local, found)
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_LOG"
    assert spec["process"]["apparmorProfile"] == "strict"
    assert "seccomp" not in _sandbox_spec(SandboxSecurity(seccomp=SecurityProfile(ProfileType.UNCONFINED)), Confinement())["linux"]
    assert "seccomp" in _sandbox_spec(SandboxSecurity(), Confinement())["linux"]
    privileged = _sandbox_spec(dataclasses.replace(local, privileged=True), Confinement())
    assert "seccomp" not in privileged["linux"]
    assert "apparmorProfile" not in privileged["process"]
    assert "seccomp" not in _sandbox_spec(local)["linux"]  # after a restart the file need not be there any more


def test_a_sandbox_on_a_kernel_without_seccomp() -> None:
    """A kubelet asks for RuntimeDefault for every sandbox, whatever the host can."""
    bare = facts(seccomp=False)
    assert "seccomp" not in _sandbox_spec(SandboxSecurity(seccomp=SecurityProfile()), Confinement(), bare)["linux"]
    with pytest.raises(Unsupported, match="seccomp"):
        _sandbox_spec(SandboxSecurity(seccomp=SecurityProfile(ProfileType.LOCALHOST, "x")), Confinement({}), bare)


def test_cgroup_below_the_pods_with_both_drivers() -> None:
    assert _build()["linux"]["cgroupsPath"] == "/pods/web/cri-bridge-container-1"
    systemd = dataclasses.replace(SETTINGS, cgroup_driver="systemd")
    pod = sandbox(cgroup_parent="/kubepods.slice/kubepods-podx.slice")
    assert build_container(inputs(sandbox=pod), FACTS, systemd)["linux"]["cgroupsPath"] == "kubepods-podx.slice:cri-bridge:container-1"


def test_spec_is_json_and_shares_nothing_with_the_next() -> None:
    given = inputs(security=ContainerSecurity(seccomp=SecurityProfile()))
    first = build_container(given, FACTS, SETTINGS)
    text = json.dumps(first)
    first["mounts"].clear()
    first["linux"]["seccomp"]["syscalls"].clear()
    first["process"]["capabilities"]["bounding"].append("CAP_SYS_ADMIN")
    assert json.dumps(build_container(given, FACTS, SETTINGS)) == text


def test_building_takes_less_than_a_millisecond() -> None:
    given = inputs(security=ContainerSecurity(seccomp=SecurityProfile()))
    assert min(timeit.repeat(lambda: build_container(given, FACTS, SETTINGS), number=50, repeat=5)) / 50 < 0.001
