"""Results and errors of plugins in every version's shape, and everything else that a plugin may write."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.network.results import BadAnswer, describe_failure, parse_result, parse_versions, pod_ips, tail

V4, V6 = {"version": "4", "address": "10.1.0.5/16"}, {"version": "6", "address": "FD00::5/64"}
INTERFACES = [{"name": "cni0", "mac": "a"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/ns"}, {"name": "net1", "sandbox": "/ns"}]


def ips(result: Any) -> list[str]:
    return list(pod_ips(parse_result(json.dumps(result).encode(), "1.0.0"), "eth0"))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"cniVersion": "1.0.0", "interfaces": INTERFACES, "ips": [{"address": "10.1.0.5/16", "interface": 2}]}, ["10.1.0.5"]),
        ({"cniVersion": "0.4.0", "ips": [V4, V6]}, ["10.1.0.5", "fd00::5"]),
        ({"ips": [V6, V4]}, ["fd00::5", "10.1.0.5"]),
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/16"}, "ip6": {"ip": "fd00::5/64"}}, ["10.1.0.5", "fd00::5"]),
        ({"interfaces": INTERFACES, "ips": [{"address": "10.2.0.5/16", "interface": 3}, {**V4, "interface": 2}]}, ["10.1.0.5"]),
        ({"interfaces": INTERFACES, "ips": [{"address": "10.2.0.1/16", "interface": 0}]}, []),
        ({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.2.0.1/16", "interface": 0}]}, []),
        ({"ips": [{"address": "10.1.0.5/16"}, {"address": "10.1.0.5/16"}]}, ["10.1.0.5"]),
        ({"ips": None, "interfaces": None}, []),
        ({}, []),
    ],
)
def test_addresses_of_the_pod(result: Any, expected: list[str]) -> None:
    assert ips(result) == expected


@pytest.mark.parametrize(
    "result",
    [
        {"ips": [{"address": "10.1.0.300/16"}]},
        {"ips": [{}]},
        {"ips": ["10.1.0.5/16"]},
        {"ips": {"address": "10.1.0.5/16"}},
        {"ips": [{"address": "10.1.0.5/16", "interface": 0}]},
        {"interfaces": INTERFACES, "ips": [{"address": "10.1.0.5/16", "interface": -1}]},
        {"interfaces": ["eth0"], "ips": [{"address": "10.1.0.5/16", "interface": 0}]},
        {"interfaces": "eth0"},
    ],
)
def test_bad_results(result: Any) -> None:
    with pytest.raises(BadAnswer, match="its result"):
        ips(result)


@pytest.mark.parametrize("output", [b"", b"  \n", b"hello", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_garbage(output: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_result(output, "1.0.0")


def test_the_version_is_filled_in_and_checked() -> None:
    assert parse_result(b'{"x": 1}', "0.4.0") == {"x": 1, "cniVersion": "0.4.0"}
    with pytest.raises(BadAnswer, match=r"'7\.0\.0'"):
        parse_result(b'{"cniVersion": "7.0.0"}', "0.4.0")


def test_versions() -> None:
    assert parse_versions(b'{"cniVersion":"1.0.0","supportedVersions":["1.0.0","0.4.0","9.9.9"]}') == ("0.4.0", "1.0.0")
    with pytest.raises(BadAnswer, match="supportedVersions"):
        parse_versions(b"{}")


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "text"),
    [
        (b'{"code":7,"msg":"no range","details":"in net"}', b"", 1, "no range; in net (code 7)"),
        (b'{"code":11,"msg":"later"}', b"warning: slow\n", 1, "later (code 11) [stderr: warning: slow]"),
        (b'{"code":1,"msg":"the reason"}', b"the reason\n", 1, "the reason (code 1)"),
        (b'{"msg":"bare"}', b"", 3, "bare (exit code 3)"),
        (b"{}", b"", 3, "no message (exit code 3)"),
        (b"", b"panic: x\ngoroutine 1\n", 2, "exit code 2: panic: x; goroutine 1"),
        (b"oops", b"", 2, "exit code 2: oops"),
        (b"", b"", 2, "exit code 2, and it said nothing"),
        (b"", b"", -9, "killed by signal 9, and it said nothing"),
    ],
)
def test_failures_in_words(stdout: bytes, stderr: bytes, code: int, text: str) -> None:
    assert describe_failure(stdout, stderr, code) == text


def test_the_tail_is_bounded() -> None:
    assert tail(b"\n".join(b"%d" % n for n in range(100))) == "92; 93; 94; 95; 96; 97; 98; 99"
    assert len(tail(b"x" * 100_000)) == 1000
