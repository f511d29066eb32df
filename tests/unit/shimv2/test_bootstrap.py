"""Every form in which a shim's start said where it listens; what can't be used is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge._proto.containerd.runtime.bootstrap.v1 import BootstrapResult
from bridge.errors import BridgeError, CorruptData, InvalidRequest, NotFound, Unsupported
from bridge.shimv2.addresses import socket_name
from bridge.shimv2.bootstrap import ShimAddress, parse_start, read_address

KATA = "unix:///run/containerd/s/b6d1a9"


def modern(**fields: str | int) -> bytes:
    return bytes(BootstrapResult(**{"version": 3, "address": KATA, "protocol": "ttrpc", **fields}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "version"),
    [
        (KATA.encode(), 2),
        (KATA.encode() + b"\n", 2),
        (json.dumps({"version": 2, "address": KATA, "protocol": "ttrpc"}).encode(), 2),
        (json.dumps({"version": 3, "address": KATA, "protocol": "TTRPC"}).encode(), 3),
        (json.dumps({"address": KATA}).encode(), 2),
        (modern(), 3),
        (modern(version=2), 2),
    ],
)
def test_an_address_is_understood_in_each_form(output: bytes, version: int) -> None:
    assert parse_start(output) == ShimAddress(KATA, version)


def test_the_task_service_follows_the_version() -> None:
    assert ShimAddress(KATA, 2).task_service == "containerd.task.v2.Task"
    assert ShimAddress(KATA, 3).task_service == "containerd.task.v3.Task"


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (b"", CorruptData, "no address"),
        (b"{}", CorruptData, "no address"),
        (b"{", CorruptData, "no JSON"),
        (b'{"version": "3", "address": "a"}', CorruptData, "printed"),
        (json.dumps({"version": 4, "address": KATA}).encode(), Unsupported, "version 4"),
        (json.dumps({"version": 3, "address": KATA, "protocol": "grpc"}).encode(), Unsupported, "'grpc'"),
        (b"vsock://3:1024", Unsupported, "vsock"),
        (b"unix://", InvalidRequest, "names no socket"),
        (b"unix:///" + b"x" * 200, InvalidRequest, "longer"),
        (modern(version=0), Unsupported, "version 0"),
        (b"\x12\xff\xff", CorruptData, "BootstrapResult"),
    ],
)
def test_what_can_not_be_used_is_refused(output: bytes, error: type[BridgeError], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_start(output)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("unix:///run/s", "/run/s"),
        ("unix://@abstract", "\0abstract"),
        ("/containerd-shim/k8s.io/x/shim.sock", "\0/containerd-shim/k8s.io/x/shim.sock"),
        (Path("/run/s"), "/run/s"),
    ],
)
def test_the_name_of_a_socket(address: str | Path, name: str) -> None:
    assert socket_name(address) == name


def test_the_address_is_read_back_from_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no address of a shim"):
        read_address(tmp_path)
    (tmp_path / "address").write_text(KATA)
    assert read_address(tmp_path) == ShimAddress(KATA, 2)
    (tmp_path / "bootstrap.json").write_text("")
    assert read_address(tmp_path) == ShimAddress(KATA, 2)
    (tmp_path / "bootstrap.json").write_text(json.dumps({"version": 3, "address": KATA, "protocol": "ttrpc"}))
    assert read_address(tmp_path) == ShimAddress(KATA, 3)
