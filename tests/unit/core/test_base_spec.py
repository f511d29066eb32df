"""A base spec below a container's own: for each part, who wins."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bridge.core import base_spec
from bridge.core.model import ContainerSecurity
from bridge.core.spec import build_container
from bridge.errors import ConfigError
from tests.unit.core.spec_cases import FACTS, SETTINGS, config, facts, inputs

Spec = dict[str, Any]
SHOWN: Spec = {"resources": {"devices": [{"allow": False, "access": "rwm"}]}}


def laid(base: Spec, *, security: ContainerSecurity | None = None, ours: Spec | None = None, **changes: Any) -> Spec:
    request = security or ContainerSecurity()
    given = ours or build_container(inputs(config=config(**changes), security=request), facts(nofile=(1024, 4096)), SETTINGS)
    before = copy.deepcopy((base, given))
    spec = base_spec.lay_over(base, given, request)
    assert (base, given) == before, "neither is changed"
    json.dumps(spec)
    return spec


def test_an_empty_base_changes_nothing() -> None:
    ours = build_container(inputs(), FACTS, SETTINGS)
    assert laid({}, ours=ours) == ours


def test_what_the_request_decides_is_ours_alone() -> None:
    base: Spec = {
        "process": {
            **{"args": ["evil"], "cwd": "/evil", "terminal": True, "user": {"uid": 9, "umask": 63}, "oomScoreAdj": -1000},
            **{"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}, "apparmorProfile": "unconfined", "selinuxLabel": "x"},
        },
        "root": {"path": "/evil", "readonly": True},
        "hostname": "evil",
        "linux": {
            "namespaces": [{"type": "user"}],
            "cgroupsPath": "/evil",
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            "mountLabel": "x",
            "uidMappings": [{}],
        },
    }
    ours = build_container(inputs(), facts(seccomp=False), SETTINGS)
    spec = laid(base, ours=ours)
    assert spec["process"].pop("user") == {**ours["process"]["user"], "umask": 63}
    assert spec == {**ours, "process": {key: value for key, value in ours["process"].items() if key != "user"}}


def test_environment_below_and_rlimits_above_ours() -> None:
    base = {
        "process": {
            "env": ["PATH=/base", "ONLY=base"],
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 9}, {"type": "RLIMIT_CORE"}],
        }
    }
    process = laid(base, envs=(("A", "1"),))["process"]
    assert "ONLY=base" in process["env"]
    assert "A=1" in process["env"]
    assert [entry for entry in process["env"] if entry.startswith("PATH=")] != ["PATH=/base"]
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 9}, {"type": "RLIMIT_CORE"}]


@pytest.mark.parametrize(("base", "ours", "both"), [(True, False, True), (False, True, True), (False, False, False)])
def test_no_new_privileges_when_either_says_so(base: bool, ours: bool, both: bool) -> None:
    spec = laid({"process": {"noNewPrivileges": base}}, security=ContainerSecurity(no_new_privs=ours))
    assert spec["process"]["noNewPrivileges"] is both


def test_mounts_by_destination_ours_first_and_no_generated_run() -> None:
    base = {
        "mounts": [
            {"destination": "/proc/", "type": "evil"},
            {"destination": "/run", "type": "tmpfs"},
            {"destination": "/opt/a/b", "type": "bind", "source": "/b"},
            {"destination": "/data", "type": "tmpfs"},
        ]
    }
    mounts = laid(base)["mounts"]
    assert [mount for mount in mounts if mount["destination"].startswith("/proc")] == [
        mounts[next(i for i, m in enumerate(mounts) if m["type"] == "proc")]
    ]
    places = [mount["destination"] for mount in mounts]
    assert "/run" not in places
    assert {"/data", "/opt/a/b"} < set(places)
    assert [place.count("/") for place in places] == sorted(place.count("/") for place in places)
    kept = laid({"mounts": [{"destination": "/run", "type": "bind", "source": "/x"}]})["mounts"]
    assert "/run" in [mount["destination"] for mount in kept], "only the tmpfs of generated specs goes"


def test_resources_key_by_key_and_device_rules_between_ours() -> None:
    allowed = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}
    base = {
        "linux": {
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "a"}, allowed],
                "cpu": {"shares": 9, "idle": 1},
                "pids": {"limit": 7},
            },
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
        }
    }
    ours = build_container(inputs(), FACTS, SETTINGS)
    ours["linux"]["resources"] |= {"cpu": {"shares": 512}, "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "major": 1}]}
    linux = laid(base, ours=ours)["linux"]
    assert linux["resources"] == {
        "devices": [{"allow": False, "access": "rwm"}, allowed, {"allow": True, "major": 1}],
        "cpu": {"shares": 512, "idle": 1},
        "pids": {"limit": 7},
    }
    assert linux["devices"] == base["linux"]["devices"]


def test_hidden_paths_are_the_requests_else_the_bases() -> None:
    base = {"linux": {"maskedPaths": ["/proc/mine"], "readonlyPaths": []}}
    linux = laid(base)["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == (["/proc/mine"], [])
    asked = laid(base, security=ContainerSecurity(masked_paths=("/proc/asked",)))["linux"]
    assert asked["maskedPaths"] == ["/proc/asked"]
    assert "/proc/kcore" in laid({})["linux"]["maskedPaths"]


def test_a_base_hides_nothing_that_a_user_namespace_shows() -> None:
    base = {"linux": {"maskedPaths": ["/proc/mine"], "readonlyPaths": ["/proc/sys"]}}
    ours = {**build_container(inputs(), FACTS, SETTINGS), "linux": SHOWN}
    laid_over = base_spec.lay_over(base, ours, ContainerSecurity(), user_namespace=True)
    assert not {"maskedPaths", "readonlyPaths"} & set(laid_over["linux"]), "procMount Unmasked was asked for"


def test_hooks_annotations_version_and_what_we_say_nothing_of() -> None:
    base = {
        "ociVersion": "1.2.0",
        "hooks": {"poststop": [{"path": "/base"}]},
        "annotations": {"a": "base", "io.kubernetes.cri.container-name": "evil"},
        "linux": {"personality": {"domain": "LINUX32"}, "intelRdt": {"closID": "c"}, "rootfsPropagation": "rslave"},
        "vm": {"hypervisor": {"path": "/h"}},
    }
    ours = build_container(inputs(), FACTS, SETTINGS)
    spec = laid(base, ours={**ours, "hooks": {"poststop": [{"path": "/ours"}]}})
    assert spec["ociVersion"] == "1.2.0"
    assert laid({"ociVersion": "1.0.0-rc1"})["ociVersion"] == ours["ociVersion"]
    assert spec["hooks"] == {"poststop": [{"path": "/base"}, {"path": "/ours"}]}
    assert (spec["annotations"]["a"], spec["annotations"]["io.kubernetes.cri.container-name"]) == ("base", "app")
    assert {key: spec["linux"][key] for key in base["linux"]} == base["linux"]
    assert spec["vm"] == base["vm"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"process": []}', "process: must be an object"),
        ('{"process": {"rlimits": [{}]}}', "process.rlimits: must be a list of objects with 'type'"),
        ('{"process": {"env": ["x"]}}', "process.env"),
        ('{"mounts": {}}', "mounts: must be a list"),
        ('{"linux": {"devices": [{"type": "c"}]}}', "linux.devices"),
        ('{"linux": {"resources": []}}', "linux.resources: must be an object"),
        ('{"linux": {"resources": {"devices": [1]}}}', "linux.resources.devices"),
        ('{"linux": {"maskedPaths": ["x"]}}', "linux.maskedPaths: must be absolute paths"),
        ('{"hooks": {"later": []}}', "hooks.later"),
        ('{"hooks": {"poststop": [{"path": "h"}]}}', "hooks.poststop"),
    ],
)
def test_a_wrong_file_is_refused_naming_the_key(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        base_spec.parse(text)
    assert words in caught.value.message


def test_a_generated_spec_is_valid() -> None:
    whole = build_container(inputs(), FACTS, SETTINGS)
    assert base_spec.parse(json.dumps(whole)) == whole
