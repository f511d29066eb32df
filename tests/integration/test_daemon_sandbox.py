"""What a pod is told to be and says of itself on the real daemon: sysctls, identity, labels and annotations, its addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

NODE = pb.NamespaceMode.NODE
ODD = {"plain": "a", "example.org/ü ": " ä\n\t\x01 “quoted” \\ ", "empty": "", "json": '{"a": [1, "]"]}'}


def with_sysctls(kubelet: Kubelet, sysctls: dict[str, str], options: pb.NamespaceOption | None = None) -> pb.PodSandboxConfig:
    config = kubelet.pod_config(options=options)
    assert config.linux is not None
    config.linux.sysctls = sysctls
    return config


async def test_sysctls_are_the_pods_and_not_the_hosts(kubelet: Kubelet) -> None:
    wanted = {
        "net.ipv4.ip_local_port_range": "20000 30000",
        "net/ipv4/ping_group_range": "0 7",
        "kernel.shm_rmid_forced": "1",
        "kernel.sem": "250 32001 32 129",
        "kernel.domainname": "pods.example",
        "net.ipv4.conf.eth0.arp_notify": "1",
    }
    paths = [f"/proc/sys/{key.replace('.', '/')}" for key in wanted if "eth0" not in key]
    before = [Path(path).read_text() for path in paths]
    pod = await kubelet.run(config=with_sysctls(kubelet, wanted))
    container = await kubelet.started(pod)
    seen = await kubelet.output(container, "cat " + " ".join([*paths, "/proc/sys/net/ipv4/conf/eth0/arp_notify"]))
    assert [line.split() for line in seen.splitlines()] == [value.split() for value in wanted.values()]
    assert [Path(path).read_text() for path in paths] == before


async def test_sysctls_that_are_refused_cve_2022_0811(kubelet: Kubelet) -> None:
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    cases: list[tuple[dict[str, str], pb.NamespaceOption]] = [
        ({"vm.swappiness": "1"}, namespaces()),
        ({"kernel.core_pattern": "|/bin/evil"}, namespaces()),
        ({"kernel.hostname": "other"}, namespaces()),
        ({"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/bin/evil"}, namespaces()),
        ({"net.ipv4.ip_forward=1+kernel.core_pattern": "|/bin/evil"}, namespaces()),
        ({"kernel.sem": "1\n2"}, namespaces()),
        ({"net.ipv4.no_such_key": "1"}, namespaces()),
        ({"net.core.somaxconn": "1024"}, namespaces(network=NODE)),
        ({"kernel.domainname": "x"}, namespaces(network=NODE)),
        ({"kernel.sem": "250 32001 32 129"}, pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER, ipc=NODE)),
    ]
    for sysctls, options in cases:
        with pytest.raises(CriError, match=r"config\.linux\.sysctls") as caught:
            await kubelet.run(config=with_sysctls(kubelet, sysctls, options))
        assert caught.value.code is Status.INVALID_ARGUMENT, sysctls
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern
    assert not (await kubelet.cri.runtime.list_pod_sandbox()).items


async def test_status_tells_what_was_asked_for(kubelet: Kubelet) -> None:
    config = kubelet.pod_config(labels=ODD, annotations=ODD)
    assert config.metadata is not None
    config.metadata.attempt = 7
    pod = await kubelet.run(config=config)
    status = await kubelet.pod_status(pod)
    listed = (await kubelet.cri.runtime.list_pod_sandbox()).items[0]
    for told in (status, listed):
        assert (told.metadata, told.labels, told.annotations, told.runtime_handler) == (config.metadata, ODD, ODD, kubelet.handler)
    assert status.network is not None
    assert len([status.network.ip, *status.network.additional_ips]) == 2
    info = await kubelet.pod_info(pod)
    assert info["config"]["annotations"] == ODD
    assert info["runtimeHandler"] == kubelet.handler
    addresses = [ip["address"].split("/")[0] for ip in info["network"]["data"]["result"]["ips"]]
    assert addresses == [status.network.ip, *(each.ip for each in status.network.additional_ips)], "in the plugins' order"
    await kubelet.stop_pod(pod)
    assert (await kubelet.pod_status(pod)).network == pb.PodSandboxNetworkStatus()


async def test_what_a_pod_needs_to_be_a_pod(kubelet: Kubelet) -> None:
    def broken(change: dict[str, Any]) -> pb.PodSandboxConfig:
        config = kubelet.pod_config()
        assert config.metadata is not None
        for name, value in change.items():
            setattr(config.metadata, name, value)
        return config

    for change, field in (
        ({"name": ""}, "config.metadata.name"),
        ({"uid": ""}, "config.metadata.uid"),
        ({"namespace": ""}, "config.metadata.namespace"),
        ({"namespace": "a;K8S_POD_NAME=b"}, "config.metadata.namespace"),
    ):
        with pytest.raises(CriError, match=field) as caught:
            await kubelet.run(config=broken(change))
        assert caught.value.code is Status.INVALID_ARGUMENT
    with pytest.raises(CriError, match=r"config\.metadata: is missing"):
        await kubelet.run(config=kubelet.pod_config(metadata=None))
