"""CDI spec files: what is valid, and the reason for everything that isn't. Source: CDI specification 1.1.0."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.core.cdi_spec import VERSIONS, Edits, is_qualified, parse
from bridge.errors import ConfigError

WHOLE: dict[str, Any] = {
    "cdiVersion": "1.1.0",
    "kind": "vendor.com/class.part",
    "annotations": {"vendor.com/note": "x"},
    "containerEdits": {"env": ["ALL=1"]},
    "devices": [
        {
            "name": "0",
            "annotations": {"a": "b"},
            "containerEdits": {
                "env": ["A=1", "B="],
                "deviceNodes": [
                    {
                        **{"path": "/dev/c0", "hostPath": "/dev/x0", "type": "c", "major": 1, "minor": 2, "fileMode": 438},
                        **{"permissions": "rw", "uid": 0, "gid": 4294967295},
                    }
                ],
                "netDevices": [{"hostInterfaceName": "eth7", "name": "net0"}],
                "mounts": [{"hostPath": "tmpfs", "containerPath": "/t", "type": "tmpfs", "options": ["ro"]}],
                "hooks": [{"hookName": "poststop", "path": "/bin/h", "args": ["h"], "env": ["E=1"], "timeout": 3}],
                "intelRdt": {
                    "closID": "c",
                    "l3CacheSchema": "L3:0=f",
                    "memBwSchema": "MB:0=1",
                    "schemata": ["x"],
                    "enableMonitoring": True,
                },
                "additionalGids": [0, 7],
            },
        },
        {"name": "gpu:1", "containerEdits": {"env": ["G=1"]}},
    ],
}
MINIMAL: dict[str, Any] = {"cdiVersion": "0.3.0", "kind": "v.com/c", "devices": [{"name": "d", "containerEdits": {"env": ["A=1"]}}]}


def changed(path: str, value: Any, base: dict[str, Any] = WHOLE) -> dict[str, Any]:
    """``base`` with another value at "a.0.b"; None takes the key away."""
    spec = copy.deepcopy(base)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    where: Any = spec
    for part in parents:
        where = where[part]
    if value is None:
        del where[last]
    else:
        where[last] = value
    return spec


def read(spec: object, name: str = "a.json") -> Any:
    return parse(Path("/etc/cdi") / name, 3, json.dumps(spec).encode())


def test_a_spec_with_everything() -> None:
    spec = read(WHOLE)
    assert (spec.path, spec.rank, spec.kind, spec.edits) == (Path("/etc/cdi/a.json"), 3, "vendor.com/class.part", Edits(env=("ALL=1",)))
    edits = WHOLE["devices"][0]["containerEdits"]
    assert spec.devices == {
        "0": Edits(
            env=("A=1", "B="),
            nodes=tuple(edits["deviceNodes"]),
            net_devices=tuple(edits["netDevices"]),
            mounts=tuple(edits["mounts"]),
            hooks=tuple(edits["hooks"]),
            rdt=edits["intelRdt"],
            gids=(0, 7),
        ),
        "gpu:1": Edits(env=("G=1",)),
    }


@pytest.mark.parametrize("version", [*VERSIONS[2:], "v0.6.0"])
def test_every_known_version(version: str) -> None:
    assert read({**MINIMAL, "cdiVersion": version}).kind == "v.com/c"


NODE = "devices.0.containerEdits.deviceNodes.0"
EDITS = "devices.0.containerEdits"
BAD = [
    ("cdiVersion", None, "cdiVersion: is missing"),
    ("cdiVersion", "2.0.0", "cdiVersion: '2.0.0' is none of"),
    ("cdiVersion", 1, "cdiVersion: '1' is none of"),
    ("cdiVersion", 0.5, "cdiVersion: must be a string"),
    ("kind", True, "kind: must be a string"),
    ("kind", None, "kind: is missing"),
    ("kind", "vendor", "kind: 'vendor' is not of the form"),
    ("kind", "vendor.com/a/b", "kind: "),
    ("kind", "1vendor/c", "kind: "),
    ("kind", "vendor/c-", "kind: "),
    ("devices", [], "devices: is empty"),
    ("devices", {}, "devices: must be a list"),
    ("devices.0.name", "", "devices[0].name: '' is no name"),
    ("devices.0.name", "a b", "devices[0].name: "),
    ("devices.1.name", "0", "devices[1].name: '0' occurs twice"),
    ("devices.1.containerEdits", {}, "devices[1].containerEdits: is empty"),
    ("devices.1.containerEdits", None, "devices[1].containerEdits: is missing"),
    ("devices.1.surprise", 1, "devices[1].surprise: is not known"),
    ("surprise", 1, "surprise: is not known"),
    ("annotations", {"a b": "c"}, "annotations: 'a b' is no name"),
    ("annotations", {"a": "x" * (256 << 10)}, "annotations: is larger"),
    ("annotations", {"a": 1}, "annotations: must map"),
    (f"{EDITS}.env.0", "novalue", "devices[0].containerEdits.env[0]: 'novalue' is not NAME=value"),
    (f"{EDITS}.env.0", "=x", "env[0]"),
    (f"{NODE}.path", None, "deviceNodes[0].path: is missing"),
    (f"{NODE}.path", "dev/x", "deviceNodes[0].path: 'dev/x' is not an absolute path"),
    (f"{NODE}.type", "x", "deviceNodes[0].type: "),
    (f"{NODE}.permissions", "rx", "deviceNodes[0].permissions: "),
    (f"{NODE}.major", "1", "deviceNodes[0].major: must be a whole number"),
    (f"{NODE}.uid", -1, "deviceNodes[0].uid: "),
    (f"{NODE}.gid", 1 << 32, "deviceNodes[0].gid: "),
    (f"{EDITS}.mounts.0.hostPath", "", "mounts[0].hostPath: is empty"),
    (f"{EDITS}.mounts.0.containerPath", "x", "mounts[0].containerPath: "),
    (f"{EDITS}.mounts.0.options", "ro", "mounts[0].options: must be a list"),
    (f"{EDITS}.hooks.0.hookName", "precreate", "hooks[0].hookName: "),
    (f"{EDITS}.hooks.0.path", "h", "hooks[0].path: "),
    (f"{EDITS}.hooks.0.timeout", 0, "hooks[0].timeout: "),
    (f"{EDITS}.hooks.0.env", ["x"], "hooks[0].env[0]"),
    (f"{EDITS}.intelRdt.closID", "..", "intelRdt.closID: "),
    (f"{EDITS}.intelRdt.enableMonitoring", 1, "intelRdt.enableMonitoring: must be true or false"),
    (f"{EDITS}.additionalGids.0", -1, "additionalGids[0]: "),
    (f"{EDITS}.netDevices", [{"hostInterfaceName": "a", "name": "n"}, {"hostInterfaceName": "b", "name": "n"}], "two have the same name"),
    (f"{EDITS}.netDevices.0.name", "", "netDevices[0].name: is empty"),
]


@pytest.mark.parametrize(("path", "value", "words"), BAD, ids=[f"{path}={str(value)[:20]}" for path, value, _ in BAD])
def test_what_is_wrong_is_said(path: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(changed(path, value))
    assert words in caught.value.message


FEATURES = [
    (f"{EDITS}.mounts", [{"hostPath": "/a", "containerPath": "/b", "type": "none"}], "0.4.0"),
    (f"{EDITS}.deviceNodes", [{"path": "/dev/a", "hostPath": "/dev/b"}], "0.5.0"),
    ("devices.0.name", "0", "0.5.0"),
    ("annotations", {"a": "b"}, "0.6.0"),
    ("devices.0.annotations", {"a": "b"}, "0.6.0"),
    ("kind", "v.com/c.d", "0.6.0"),
    (f"{EDITS}.intelRdt", {"closID": "c"}, "0.7.0"),
    (f"{EDITS}.additionalGids", [1], "0.7.0"),
    (f"{EDITS}.intelRdt", {"schemata": []}, "1.1.0"),
    (f"{EDITS}.intelRdt", {"enableMonitoring": True}, "1.1.0"),
    (f"{EDITS}.netDevices", [{"hostInterfaceName": "a", "name": "b"}], "1.1.0"),
]


@pytest.mark.parametrize(("path", "value", "version"), FEATURES)
def test_each_feature_needs_its_version(path: str, value: Any, version: str) -> None:
    spec = changed(path, value, MINIMAL)
    read({**spec, "cdiVersion": version})
    before = VERSIONS[VERSIONS.index(version) - 1]
    with pytest.raises(ConfigError, match=f"cdiVersion: what it uses needs at least {version}"):
        read({**spec, "cdiVersion": before})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": "a/b", "kind": "a/c"}', "cdiVersion: 0.3.0", "[" * 100_000])
def test_bytes_that_are_no_spec(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(Path("/etc/cdi/a.json"), 0, text.encode())


@pytest.mark.parametrize("name", ["v.com/c=d", "vendor/class=0", "a/b=x:y.z-1", "A_b/c.d=E"])
def test_qualified_names(name: str) -> None:
    assert is_qualified(name)


@pytest.mark.parametrize("name", ["", "d", "v/c", "v/c=", "/c=d", "v/=d", "v/c/x=d", "9v/c=d", "v/c=d-", "v/c=a b", "/dev/null", "v/c=a,b"])
def test_names_that_are_not(name: str) -> None:
    assert not is_qualified(name)
