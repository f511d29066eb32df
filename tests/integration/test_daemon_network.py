"""Names and ports of pods on the real daemon: what containers read in /etc, and host ports as the host itself reaches them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.host import namespaces as host_namespaces
from tests.integration.daemon_fixtures import handler, kubelet, node, own_node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node", "own_node"]
pytestmark = pytest.mark.root

NODE = pb.NamespaceMode.NODE
ECHO_PORT, WEB_PORT = 5353, 8080
READ_ONLY = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(namespace_options=namespaces(), readonly_rootfs=True))


# ---- names


async def test_the_pods_files_are_shared_in_the_pod_and_with_nobody_else(kubelet: Kubelet) -> None:
    pod = await kubelet.run(config=kubelet.pod_config(hostname="web-0.shop.svc"))
    one, two = await kubelet.started(pod, name="one"), await kubelet.started(pod, name="two", linux=READ_ONLY)
    names = "/etc/hosts /etc/hostname /etc/resolv.conf"
    modes = await kubelet.output(one, f"stat -c '%a %u %g' {names}")
    assert modes.splitlines() == ["644 0 0"] * 3
    address = (await kubelet.pod_status(pod)).network.ip  # type: ignore[union-attr]
    assert f"{address}\tweb-0.shop.svc\tweb-0" in await kubelet.output(one, "cat /etc/hosts")
    assert await kubelet.output(one, "hostname; echo $HOSTNAME") == "web-0.shop.svc\nweb-0.shop.svc"
    assert await kubelet.output(one, "cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text().strip()
    for name in names.split():
        await kubelet.output(one, f"echo '192.0.2.99 added' >> {name}")
        assert "added" in await kubelet.output(two, f"cat {name}")
        assert (await kubelet.exec(two, f"echo x >> {name}")).exit_code != 0, "read-only with a read-only root"
        assert (await kubelet.exec(one, f"rm {name}")).exit_code != 0
    other = await kubelet.started(await kubelet.run())
    assert "added" not in await kubelet.output(other, f"cat {names}")
    assert "added" not in Path("/etc/resolv.conf").read_text()


async def test_a_kubelets_own_hosts_file_wins(kubelet: Kubelet, tmp_path: Path) -> None:
    own = tmp_path / "etc-hosts"
    own.write_text("192.0.2.7 from-the-kubelet\n")
    pod = await kubelet.run()
    container = await kubelet.started(pod, mounts=[pb.Mount(container_path="/etc/hosts", host_path=str(own))])
    assert await kubelet.output(container, "cat /etc/hosts") == "192.0.2.7 from-the-kubelet"


async def test_names_in_the_hosts_network(kubelet: Kubelet) -> None:
    options, host = namespaces(network=NODE), socket.gethostname()
    dns = pb.DnsConfig(servers=["192.0.2.53"])
    pod = await kubelet.run(config=kubelet.pod_config(hostname="not-used", dns_config=dns, options=options))
    container = await kubelet.started(pod, options=options)
    assert await kubelet.output(container, "hostname; cat /etc/hostname; echo $HOSTNAME") == f"{host}\n{host}\n{host}"
    assert await kubelet.output(container, "cat /etc/hosts") == Path("/etc/hosts").read_text().strip()
    assert await kubelet.output(container, "cat /etc/resolv.conf") == "nameserver 192.0.2.53"
    await kubelet.output(container, "echo '192.0.2.99 added' >> /etc/hosts")
    assert "added" not in Path("/etc/hosts").read_text()


async def test_a_pod_without_a_hostname_has_the_hosts(kubelet: Kubelet) -> None:
    host = socket.gethostname()
    container = await kubelet.started(await kubelet.run(config=kubelet.pod_config(hostname="")))
    assert await kubelet.output(container, "hostname; cat /etc/hostname; echo $HOSTNAME") == f"{host}\n{host}\n{host}"
    assert f"\t{host}" in await kubelet.output(container, "cat /etc/hosts")


async def test_bad_names_are_refused(kubelet: Kubelet) -> None:
    for changes, field in (
        ({"hostname": "x" * 65}, "config.hostname"),
        ({"dns_config": pb.DnsConfig(servers=["192.0.2.1", "192.0.2.2\noptions x"])}, r"config.dns_config.servers\[1\]"),
        ({"dns_config": pb.DnsConfig(searches=["a b"])}, r"config.dns_config.searches\[0\]"),
        ({"dns_config": pb.DnsConfig(options=[""])}, r"config.dns_config.options\[0\]"),
    ):
        with pytest.raises(CriError, match=field) as caught:
            await kubelet.run(config=kubelet.pod_config(**changes))
        assert caught.value.code is Status.INVALID_ARGUMENT
    pod = await kubelet.run(config=kubelet.pod_config(hostname="x" * 64))
    assert await kubelet.output(await kubelet.started(pod), "hostname") == "x" * 64


# ---- host ports


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(holder.getsockname()[1]) for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def node_address(family: socket.AddressFamily, somewhere: str) -> str:
    """The address that this host has towards others; "" when it has none of the family."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((somewhere, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def fetch(address: str, port: int) -> bytes:
    """The first bytes of a page; raises OSError when nobody answers."""
    with socket.create_connection((address, port), timeout=5) as client:
        client.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
        return client.recv(100)


async def reached(address: str, port: int) -> bool:
    """Whether the web server answers there, tried until it has begun to listen."""
    with anyio.move_on_after(10):
        while True:
            try:
                return b"200 OK" in await run_sync(fetch, address, port)
            except OSError:
                await anyio.sleep(0.05)
    return False


def refused(address: str, port: int) -> bool:
    try:
        fetch(address, port)
    except OSError:
        return True
    return False


def ask(address: str, port: int) -> bytes:
    """A datagram's answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"ping", (address, port))
        return client.recv(100)


@contextmanager
def echo(server: socket.socket, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sends ``count`` datagrams back to where they came from."""
    code = "import socket,sys; s=socket.socket(fileno=int(sys.argv[1]))\nfor _ in range(int(sys.argv[2])): s.sendto(*s.recvfrom(100))"
    argv = ["python3", "-c", code, str(server.fileno()), str(count)]
    child = subprocess.Popen(argv, pass_fds=[server.fileno()])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def rules() -> str:
    """Every packet filter rule of both families."""
    return "".join(
        subprocess.run([name], check=True, capture_output=True, text=True).stdout for name in ("iptables-save", "ip6tables-save")
    )


async def test_host_ports_from_the_host_itself(kubelet: Kubelet, node: DaemonNode) -> None:
    tcp, local, sixth, udp, sctp = free_ports(5)
    gateways = [subnet.replace("0/24", "1").replace("/64", "1") for subnet in node.subnets]
    own = [node_address(socket.AF_INET, "192.0.2.1"), node_address(socket.AF_INET6, "2001:db8::1")]
    ports = [
        pb.PortMapping(container_port=WEB_PORT, host_port=tcp),
        pb.PortMapping(container_port=WEB_PORT, host_port=local, host_ip="127.0.0.1"),
        pb.PortMapping(container_port=WEB_PORT, host_port=sixth, host_ip=gateways[1]),
        pb.PortMapping(protocol=pb.Protocol.UDP, container_port=ECHO_PORT, host_port=udp),
        pb.PortMapping(protocol=pb.Protocol.SCTP, container_port=9, host_port=sctp),
        pb.PortMapping(container_port=9999),
    ]
    pod = await kubelet.run(config=kubelet.pod_config(port_mappings=ports))
    await kubelet.started(pod, f"exec httpd -f -p {WEB_PORT} -h /etc")
    for address in ("127.0.0.1", *gateways, *filter(None, own)):
        assert await reached(address, tcp), address
    assert await reached("127.0.0.1", local)
    assert refused(gateways[0], local)
    assert await reached(gateways[1], sixth)
    assert refused("127.0.0.1", sixth)
    await _ask_everywhere(await kubelet.pod_info(pod), udp, ["127.0.0.1", *gateways])
    assert f"-p sctp -m sctp --dport {sctp}" in rules()
    neighbour = await kubelet.started(await kubelet.run())
    assert "root:" in await kubelet.output(neighbour, f"wget -q -O - http://{gateways[0]}:{tcp}/passwd")
    again = kubelet.pod_config(port_mappings=[pb.PortMapping(container_port=80, host_port=tcp, host_ip="127.0.0.1")])
    with pytest.raises(CriError, match=rf"config.port_mappings\[0\].host_port: tcp port {tcp} .*{pod[:13]}") as caught:
        await kubelet.run(config=again)
    assert caught.value.code is Status.ALREADY_EXISTS
    await kubelet.stop_pod(pod)
    assert all(refused(address, tcp) for address in ("127.0.0.1", *gateways))
    assert pod not in rules()
    await kubelet.run(config=again)


async def _ask_everywhere(info: dict[str, object], port: int, addresses: list[str]) -> None:
    """An echo in the pod answers on every one of the host's addresses."""
    netns = Path(info["namespaces"]["net"])  # type: ignore[index]
    server = await host_namespaces.run_in_network(netns, lambda: _datagrams(ECHO_PORT))
    with server, echo(server, len(addresses)):
        for address in addresses:
            assert await run_sync(ask, address, port) == b"ping", address


def _datagrams(port: int) -> socket.socket:
    """A socket for datagrams of both families."""
    opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.bind(("::", port))
    return opened


async def test_host_ports_in_the_hosts_network_are_declarations(kubelet: Kubelet) -> None:
    port, options = free_ports(1)[0], namespaces(network=NODE)
    mapping = [pb.PortMapping(container_port=port, host_port=port)]
    pod = await kubelet.run(config=kubelet.pod_config(port_mappings=mapping, options=options))
    await kubelet.started(pod, f"exec httpd -f -p 127.0.0.1:{port} -h /etc", options=options)
    assert await reached("127.0.0.1", port)
    assert f"dport {port}" not in rules()


async def test_host_ports_outlive_the_server(own_node: DaemonNode) -> None:
    node, port = own_node, free_ports(1)[0]
    mapping = [pb.PortMapping(container_port=WEB_PORT, host_port=port)]
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "runc")
        config = kubelet.pod_config(port_mappings=mapping)
        pod = await kubelet.run(config=config)
        await kubelet.started(pod, f"exec httpd -f -p {WEB_PORT} -h /etc")
    node.kill()
    assert await reached("127.0.0.1", port), "nobody serves it but the kernel"
    await node.restart()
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "runc")
        assert await kubelet.run(config=config) == pod, "the retry of the request is the pod that has it"
        other = kubelet.pod_config(port_mappings=mapping)
        with pytest.raises(CriError, match=f"tcp port {port} .*{pod[:13]}"):
            await kubelet.run(config=other)
        await kubelet.remove_pod(pod)
        assert refused("127.0.0.1", port)
        await kubelet.run(config=other)
        await kubelet.clean()
    assert f"dport {port}" not in rules()
