"""Any, timestamps and OCI objects as shims write them."""

from __future__ import annotations

import json

import pytest

from bridge._proto.containerd.runc.v1 import Options as RuncOptions
from bridge._proto.containerd.types import Any, Timestamp
from bridge._proto.runtimeoptions.v1 import Options
from bridge.shimv2.encoding import (
    FEATURES,
    PROCESS,
    decode,
    nanoseconds,
    packed,
    packed_json,
    runc_options,
    runtime_options,
    timestamp,
    type_name,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 0),
        (Timestamp(), 0),
        (Timestamp(seconds=1, nanos=5), 1_000_000_005),
        (Timestamp(seconds=-62135596800), 0),
        (Timestamp(nanos=-1), 0),
        (Timestamp(seconds=(1 << 63) - 1), 0),
    ],
)
def test_a_time_is_nanoseconds_or_none(given: Timestamp | None, expected: int) -> None:
    assert nanoseconds(given) == expected


def test_a_time_keeps_its_nanoseconds() -> None:
    assert nanoseconds(timestamp(1_795_343_006_111_791_926)) == 1_795_343_006_111_791_926
    assert nanoseconds(timestamp()) > 1_700_000_000_000_000_000


def test_options_are_named_as_containerds_shims_know_them() -> None:
    kata = runtime_options(config_path="/etc/kata.toml")
    assert kata.type_url == "runtimeoptions.v1.Options"
    assert decode(Options, kata.value) == Options(config_path="/etc/kata.toml")
    runc = runc_options(binary_name="crun", root="/run/crun", systemd_cgroup=True)
    assert runc.type_url == "containerd.runc.v1.Options"
    assert decode(RuncOptions, runc.value) == RuncOptions(binary_name="crun", root="/run/crun", systemd_cgroup=True)


def test_an_oci_object_is_json() -> None:
    process = packed_json(PROCESS, {"args": ["sh"], "cwd": "/é"})
    assert process.type_url == "types.containerd.io/opencontainers/runtime-spec/1/Process"
    assert json.loads(process.value) == {"args": ["sh"], "cwd": "/é"}


@pytest.mark.parametrize(
    ("url", "name"),
    [("containerd.events.TaskExit", "containerd.events.TaskExit"), ("type.googleapis.com/a.B", "a.B"), (FEATURES, FEATURES), ("", "")],
)
def test_a_type_is_known_with_and_without_a_host(url: str, name: str) -> None:
    assert type_name(Any(type_url=url)) == name
    assert packed(name, Timestamp()).type_url == name
