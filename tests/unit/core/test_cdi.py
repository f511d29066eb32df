"""CDI devices by name: priorities, conflicts, the order of edits, and what is said of names that can't be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.core import cdi
from bridge.core.cdi import CdiDevices, requested
from bridge.errors import InvalidRequest
from bridge.host.watched_files import FoundFile
from tests.unit.core.spec_cases import config


def file(path: str, *names: str, kind: str = "v.com/c", rank: int = 0, common: str = "", mark: str = "") -> FoundFile:
    devices = [{"name": name, "containerEdits": {"env": [f"{name.upper()}={mark or path}"]}} for name in names]
    spec: dict[str, Any] = {"cdiVersion": "0.5.0", "kind": kind, "devices": devices}
    if common:
        spec["containerEdits"] = {"env": [common]}
    return FoundFile(Path(path), rank, json.dumps(spec).encode())


def env(devices: CdiDevices, *names: str) -> tuple[str, ...]:
    return devices.resolve({name: f"config.CDI_devices[{index}].name" for index, name in enumerate(names)}).env


def test_a_later_directory_has_precedence() -> None:
    files = [file("/etc/cdi/a.json", "x", "y"), file("/run/cdi/z.json", "x", rank=1)]
    for order in (files, files[::-1]):
        devices = cdi.parse_all(order)
        assert env(devices, "v.com/c=x", "v.com/c=y") == ("X=/run/cdi/z.json", "Y=/etc/cdi/a.json")
        assert not devices.faults


def test_two_of_one_directory_make_the_name_unusable_unless_a_later_one_decides() -> None:
    quarrel = [file("/etc/cdi/a.json", "x", "y"), file("/etc/cdi/b.json", "x")]
    devices = cdi.parse_all(quarrel)
    with pytest.raises(InvalidRequest, match=r"'v.com/c=x' \(/etc/cdi/a.json and /etc/cdi/b.json both give it\)"):
        env(devices, "v.com/c=x")
    assert env(devices, "v.com/c=y") == ("Y=/etc/cdi/a.json",), "the others of the file stay"
    assert devices.faults == {Path("/etc/cdi/b.json"): "v.com/c=x is given by /etc/cdi/a.json too, so nobody gets it"}
    decided = cdi.parse_all([*quarrel, file("/run/cdi/c.json", "x", rank=1)])
    assert env(decided, "v.com/c=x") == ("X=/run/cdi/c.json",)


def test_a_specs_own_edits_come_once_before_its_first_device() -> None:
    devices = cdi.parse_all([file("/a.json", "x", "y", common="ALL=a"), file("/b.json", "z", kind="v.com/d", common="ALL=b")])
    found = env(devices, "v.com/d=z", "v.com/c=y", "v.com/c=x")
    assert found == ("ALL=b", "Z=/b.json", "ALL=a", "Y=/a.json", "X=/a.json")


def test_every_name_that_cannot_be_had_is_named_with_field_and_reason() -> None:
    devices = cdi.parse_all(
        [file("/a.json", "x", "y"), FoundFile(Path("/bad.json"), 0, b"{}"), FoundFile(Path("/dir"), 1, fault="Permission denied")]
    )
    wanted = {
        "v.com/c=x": "config.CDI_devices[0].name",
        "v.com/c=q": "config.CDI_devices[1].name",
        "w/e=1": "config.annotations[cdi.k8s.io/k]",
    }
    wanted["no name"] = "config.annotations[cdi.k8s.io/k]"
    with pytest.raises(InvalidRequest) as caught:
        devices.resolve(wanted)
    assert caught.value.field == "config.CDI_devices[1].name, config.annotations[cdi.k8s.io/k]"
    assert caught.value.message.endswith(
        "unresolvable CDI devices: 'v.com/c=q' (of kind v.com/c there are: x, y), 'w/e=1' (no spec has kind w/e), "
        "'no name' (it is not of the form vendor/class=device); "
        "/bad.json is not used: cdiVersion: is missing; /dir is not used: Permission denied"
    )


def test_fields_come_first_then_annotations_by_key_and_each_name_once() -> None:
    annotations = {"cdi.k8s.io/z": "v/c=3,v/c=1", "cdi.k8s.io/a": "v/c=2", "other": "v/c=9"}
    wanted = requested(config(cdi_devices=("v/c=1", "v/c=4"), annotations=annotations))
    assert list(wanted.items()) == [
        ("v/c=1", "config.CDI_devices[0].name"),
        ("v/c=4", "config.CDI_devices[1].name"),
        ("v/c=2", "config.annotations[cdi.k8s.io/a]"),
        ("v/c=3", "config.annotations[cdi.k8s.io/z]"),
    ]


def test_nothing_is_requested_by_default() -> None:
    assert requested(config(annotations={"cdi": "v/c=1"})) == {}


@pytest.mark.parametrize("value", ["", "v/c=1,,v/c=2", " v/c=1"])
def test_an_annotation_with_something_else_is_refused(value: str) -> None:
    wanted = requested(config(annotations={"cdi.k8s.io/a": value}))
    with pytest.raises(InvalidRequest, match=r"config.annotations\[cdi.k8s.io/a\].*not of the form"):
        cdi.parse_all([file("/a.json", "1", "2", kind="v/c")]).resolve(wanted)
