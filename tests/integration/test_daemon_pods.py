"""What a pod shares and what it keeps to itself, seen from inside its containers on the real daemon."""

import contextlib
import ipaddress
import json
import os
import re
import socket
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.monitor.client import MonitorClient
from tests.conftest import LeakAudit
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node, log_lines, mark, namespaces, processes

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

POD, NODE, TARGET = pb.NamespaceMode.POD, pb.NamespaceMode.NODE, pb.NamespaceMode.TARGET


async def test_containers_share_network_ipc_and_shm_but_not_pids(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    one, two = await kubelet.started(pod, name="one"), await kubelet.started(pod, name="two")
    for kind, shared in (("net", True), ("ipc", True), ("uts", True), ("pid", False), ("mnt", False)):
        link = f"readlink /proc/self/ns/{kind}"
        assert (await kubelet.output(one, link) == await kubelet.output(two, link)) is shared, kind
    await kubelet.output(one, "echo hello > /dev/shm/greeting")
    assert await kubelet.output(two, "cat /dev/shm/greeting") == "hello"
    assert (await kubelet.output(one, "ps -o args")).splitlines()[1:][0] == "sleep 1000"


async def test_hostname_hosts_and_dns(kubelet: Kubelet) -> None:
    dns = pb.DnsConfig(servers=["192.0.2.53"], searches=["a.example", "b.example"], options=["ndots:5"])
    pod = await kubelet.run(config=kubelet.pod_config(hostname="web-0", dns_config=dns))
    container = await kubelet.started(pod)
    assert await kubelet.output(container, "hostname; cat /etc/hostname") == "web-0\nweb-0"
    status = await kubelet.pod_status(pod)
    assert status.network is not None
    hosts = await kubelet.output(container, "cat /etc/hosts")
    assert f"{status.network.ip}\tweb-0" in hosts
    assert f"{status.network.additional_ips[0].ip}\tweb-0" in hosts
    resolv = await kubelet.output(container, "cat /etc/resolv.conf")
    assert resolv.splitlines() == ["search a.example b.example", "nameserver 192.0.2.53", "options ndots:5"]


async def test_both_address_families(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    network = (await kubelet.pod_status(pod)).network
    assert network is not None
    assert network.ip.startswith("10.249.")
    assert [each.ip.startswith("fd00:cb:") for each in network.additional_ips] == [True]
    container = await kubelet.started(pod)
    addresses = await kubelet.output(container, "ip -o addr show eth0")
    assert network.ip in addresses
    assert network.additional_ips[0].ip in addresses
    other = await kubelet.run()
    await kubelet.started(other, "exec httpd -f -p 8080 -h /etc", name="web")
    peer = (await kubelet.pod_status(other)).network
    assert peer is not None
    assert "root:" in await kubelet.output(container, f"until wget -q -O - http://{peer.ip}:8080/passwd; do sleep 0.05; done")


async def test_a_port_mapping_is_reachable(kubelet: Kubelet, node: DaemonNode) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mapping = pb.PortMapping(container_port=8080, host_port=port)
    pod = await kubelet.run(config=kubelet.pod_config(port_mappings=[mapping]))
    await kubelet.started(pod, "exec httpd -f -p 8080 -h /etc")
    gateway = node.subnets[0].replace("0/24", "1")
    with anyio.fail_after(30):
        while True:
            with contextlib.suppress(OSError, anyio.EndOfStream):
                async with await anyio.connect_tcp(gateway, port) as stream:
                    await stream.send(b"GET /passwd HTTP/1.0\r\n\r\n")
                    assert b"200 OK" in await stream.receive()
                    return
            await anyio.sleep(0.05)


async def test_a_pod_on_the_hosts_network(kubelet: Kubelet) -> None:
    pod = await kubelet.run(options=namespaces(network=NODE))
    status = await kubelet.pod_status(pod)
    assert status.network is not None
    assert status.network.ip == ""
    container = await kubelet.started(pod, options=namespaces(network=NODE))
    assert await kubelet.output(container, "readlink /proc/self/ns/net") == os.readlink("/proc/self/ns/net")
    assert await kubelet.output(container, "hostname") == socket.gethostname()


async def test_a_shared_pid_namespace(kubelet: Kubelet) -> None:
    pod = await kubelet.run(options=namespaces(pid=POD))
    one = await kubelet.started(pod, "(sleep 0.01 &); exec sleep 4321", name="one", options=namespaces(pid=POD))
    two = await kubelet.started(pod, name="two", options=namespaces(pid=POD))
    seen = await kubelet.output(two, "ps -o pid,args")
    assert "sleep 4321" in seen
    assert [line for line in seen.splitlines() if line.split()[:2] == ["1", "/pause"]]
    with anyio.fail_after(5):  # the pause process reaps what the first container's shell left behind
        while "sleep 0.01" in (found := await kubelet.output(two, "ps -o stat,args")) or any(x.startswith("Z") for x in found.split("\n")):
            await anyio.sleep(0.02)
    await kubelet.stop(one, 0)
    assert (await kubelet.status(one)).exit_code == 137
    assert await kubelet.output(two, "echo alive") == "alive"
    pause = (await kubelet.pod_info(pod))["pid"]
    os.kill(pause, 9)
    with anyio.fail_after(30):
        while (await kubelet.pod_status(pod)).state is not pb.PodSandboxState.SANDBOX_NOTREADY:
            await anyio.sleep(0.02)
    assert (await kubelet.exited(two)).exit_code == 137


async def test_stopping_a_member_of_a_shared_pid_namespace_ends_its_children(kubelet: Kubelet) -> None:
    pod = await kubelet.run(options=namespaces(pid=POD))
    word = mark(5432)
    container = await kubelet.started(pod, f"setsid sleep {word} & exec sleep 1000", options=namespaces(pid=POD))
    await kubelet.stop(container, 0)
    with anyio.fail_after(5):
        while processes(word):
            await anyio.sleep(0.02)


async def test_a_container_in_the_pid_namespace_of_another(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    target = await kubelet.started(pod, ["sleep", "4242"], name="target")
    options = namespaces(pid=TARGET)
    options.target_id = target
    debug = await kubelet.started(pod, name="debug", options=options)
    assert "sleep 4242" in await kubelet.output(debug, "ps -o args")
    await kubelet.stop(target, 0)
    assert (await kubelet.exited(debug)).exit_code == 137, "a PID namespace ends with its first process"


async def test_a_terminal(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, "tty; echo two; echo err >&2; exec sleep 1000", tty=True)
    lines = await kubelet.log(pod, until=lambda found: len(found) >= 3)
    assert [line.rstrip("\r") for line in lines] == ["stdout F /dev/pts/0", "stdout F two", "stdout F err"]
    assert (await kubelet.exec(container, "tty")).exit_code == 1, "an exec without a terminal"


async def test_stdin_once_closes_with_its_client(kubelet: Kubelet, node: DaemonNode) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, "cat; echo over", stdin=True, stdin_once=True)
    ours, theirs = socket.socketpair()
    async with MonitorClient.connect(node.monitor_socket) as monitor:
        async with anyio.create_task_group() as group:
            group.start_soon(_attach, monitor, container, theirs.fileno())
            ours.sendall(b"typed\n")
            await kubelet.log(pod, until=lambda lines: lines == ["stdout F typed"])
            ours.close()
    theirs.close()
    status = await kubelet.exited(container)
    assert (status.exit_code, await kubelet.log(pod)) == (0, ["stdout F typed", "stdout F over"])


async def _attach(monitor: MonitorClient, container: str, descriptor: int) -> None:
    await monitor.attach(container, stdin=descriptor, stdout=None, stderr=None)


async def test_log_rotation(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, "i=0; while :; do echo $i; i=$((i+1)); sleep 0.005; done")
    await kubelet.log(pod, until=lambda lines: len(lines) > 5)
    path = Path(kubelet.configs[pod].log_directory) / "app.log"
    path.rename(path.with_suffix(".1"))
    await kubelet.cri.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container))
    await kubelet.log(pod, until=lambda lines: len(lines) > 5)
    await kubelet.stop(container, 0)
    numbers = [int(line.split()[2]) for line in log_lines(path.with_suffix(".1")) + log_lines(path)]
    assert numbers == list(range(len(numbers))), "no line is lost or doubled"
    with pytest.raises(CriError) as caught:
        await kubelet.cri.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container))
    assert caught.value.code is Status.FAILED_PRECONDITION


async def use_ranges(kubelet: Kubelet, template: Path) -> None:
    """The kubelet tells the node's pod ranges, of which the template makes the network, until an add-on takes over."""
    node, runtime = kubelet.node, kubelet.cri.runtime

    def told(ranges: str) -> pb.UpdateRuntimeConfigRequest:
        return pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=ranges)))

    with pytest.raises(CriError, match=re.escape("runtime_config.network_config.pod_cidr: '10.1.0.0'")) as caught:
        await runtime.update_runtime_config(told("10.1.0.0"))
    assert caught.value.code is Status.INVALID_ARGUMENT
    with pytest.raises(CriError, match=str(template)) as caught:
        await runtime.update_runtime_config(told(node.subnets[0]))
    assert caught.value.code is Status.FAILED_PRECONDITION
    node.write_cni()
    written = node.root / "cni" / "10-test.conflist"
    conf = json.loads(written.read_text())
    written.unlink()
    ipam = conf["plugins"][0]["ipam"]
    ipam["ranges"], ipam["routes"] = "RANGES", "ROUTES"
    ranges = '[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]'
    text = json.dumps(conf).replace('"RANGES"', ranges)
    template.write_text(text.replace('"ROUTES"', '[{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]'))
    await runtime.update_runtime_config(told(",".join(node.subnets)))
    assert all(c.status for c in (await runtime.status()).status.conditions), "ready when the call returns"  # type: ignore[union-attr]
    network = (await kubelet.pod_status(await kubelet.run())).network
    assert network is not None
    assert [ipaddress.ip_address(one).version for one in (network.ip, *(each.ip for each in network.additional_ips))] == [4, 6]
    await kubelet.clean()
    (node.root / "cni" / "10-cri-bridge.conflist").unlink()


async def test_without_a_network_configuration_and_with_a_disabled_handler(leak_audit: LeakAudit, tmp_path: Path) -> None:
    missing, template = tmp_path / "youki", tmp_path / "cni.template"
    network = [f"conf_template = {json.dumps(str(template))}"]
    with daemon_node(cni=False, handlers={"runc": "runc", "youki": str(missing)}, network=network) as node:
        async with connect(node.socket) as cri:
            kubelet = Kubelet(node, cri, "runc")
            conditions = {c.type: c for c in (await cri.runtime.status()).status.conditions}  # type: ignore[union-attr]
            assert conditions["RuntimeReady"].status
            assert not conditions["NetworkReady"].status
            assert str(node.root / "cni") in conditions["NetworkReady"].message
            with pytest.raises(CriError, match=str(node.root / "cni")) as caught:
                await kubelet.run()
            assert caught.value.code is Status.UNAVAILABLE
            await kubelet.started(await kubelet.run(options=namespaces(network=NODE)), options=namespaces(network=NODE))
            await kubelet.clean()
            await use_ranges(kubelet, template)
            node.write_cni()
            with anyio.fail_after(30):
                while not all(c.status for c in (await cri.runtime.status()).status.conditions):  # type: ignore[union-attr]
                    await anyio.sleep(0.02)
            await kubelet.run()
            kubelet.handler = "youki"
            with pytest.raises(CriError, match=f"handler 'youki' is disabled: .*{missing}.*enabled handlers: crun, runc"):
                await kubelet.run()
            told = {each.name: each for each in (await cri.admin.handlers()).handlers}
            assert (told["youki"].enabled, str(missing) in told["youki"].reason) == (False, True)
            names = {each.name for each in (await cri.runtime.status()).runtime_handlers}
            assert names == {"", "runc", "crun"}
            await kubelet.clean()
