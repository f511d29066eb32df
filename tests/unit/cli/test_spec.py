"""crictl's files as messages, and how changes of a spec are shown."""

from __future__ import annotations

from typing import Any

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.cli.crictl_json import message
from bridge.cli.spec import differences
from bridge.errors import InvalidRequest

POD = {
    "metadata": {"name": "web", "namespace": "default", "uid": "u", "attempt": 1},
    "log_directory": "/logs",
    "port_mappings": [{"protocol": 0, "container_port": 80}, {"protocol": "UDP", "container_port": 53}],
    "linux": {"security_context": {"namespace_options": {"network": 2, "pid": 1}}, "sysctls": {"kernel.shm_rmid_forced": "1"}},
    "dns_config": None,
}


def test_a_pod() -> None:
    made = message(pb.PodSandboxConfig, POD, "pod.json")
    assert made.metadata == pb.PodSandboxMetadata(name="web", namespace="default", uid="u", attempt=1)
    assert [mapping.protocol for mapping in made.port_mappings] == [pb.Protocol.TCP, pb.Protocol.UDP]
    assert made.linux is not None
    assert made.linux.security_context is not None
    assert made.linux.security_context.namespace_options is not None
    assert made.linux.security_context.namespace_options.network is pb.NamespaceMode.NODE
    assert made.linux.sysctls == {"kernel.shm_rmid_forced": "1"}
    assert pb.PodSandboxConfig.parse(bytes(made)) == made


def test_bytes_are_text() -> None:
    made = message(pb.ContainerConfig, {"envs": [{"key": "A", "value": "ü"}]}, "ctr.json")
    assert made.envs == [pb.KeyValue(key="A", value="ü".encode())]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], r"pod\.json: must be an object, not a list"),
        ({"metadta": {}}, r"pod\.json\.metadta: no such field; did you mean 'metadata'"),
        ({"metadata": {"name": 5}}, r"pod\.json\.metadata\.name: must be text, not 5"),
        ({"metadata": {"attempt": "1"}}, r"pod\.json\.metadata\.attempt: must be a whole number, not '1'"),
        ({"metadata": {"attempt": True}}, "must be a whole number, not True"),
        ({"metadata": "x"}, r"pod\.json\.metadata: must be an object, not 'x'"),
        ({"labels": ["x"]}, r"pod\.json\.labels: must be an object, not a list"),
        ({"labels": {"x": {}}}, r"pod\.json\.labels\.x: must be text, not an object"),
        ({"port_mappings": {}}, r"pod\.json\.port_mappings: must be a list, not an object"),
        ({"port_mappings": [{"protocol": "SMTP"}]}, r"port_mappings\[0\]\.protocol: 'SMTP' is not one of TCP \(0\), UDP \(1\)"),
        ({"linux": {"security_context": {"privileged": 1}}}, r"privileged: must be true or false, not 1"),
        ({"nonsense_in_any_tongue": 1}, "there are: annotations, "),
    ],
)
def test_what_is_wrong_is_named_by_its_place(given: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        message(pb.PodSandboxConfig, given, "pod.json")


def test_differences() -> None:
    specs = [("the request", {"a": 1}), ("plugin idle", {"a": 1}), ("plugin x", {"a": 2, "b": 1})]
    idle, changed = differences(specs)
    assert idle == ("plugin idle", [])
    assert changed[0] == "plugin x"
    assert [line for line in changed[1] if line[0] in "+-"][2:] == ['-  "a": 1', '+  "a": 2,', '+  "b": 1']
