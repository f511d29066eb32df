"""The real CNI plugins (bridge, host-local, portmap) on real namespaces: traffic flows, and after DEL nothing is left."""

from __future__ import annotations

import functools
import json
import os
import shlex
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import NetworkFailed
from bridge.host import namespaces
from bridge.network.cni import Cni, CniSettings
from bridge.ports.network import Attachment, PodNetwork, PodNetworkRequest, PortMapping

BIN_DIR = Path("/usr/lib/cni")
pytestmark = pytest.mark.root


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def rules(*marks: str) -> list[tuple[str, str]]:
    """Packet filter rules that hold one of ``marks``, each with the command that lists its family."""
    found = []
    for command in ("iptables", "ip6tables"):
        found += [(command, line) for line in output(f"{command}-save").splitlines() if any(mark in line for mark in marks)]
    return found


def sweep(bridge: str) -> None:
    """Remove the bridge, and the rules that its plugin forgets when the pod's interface is gone before DEL."""
    chains = set()
    for command, line in rules(f"{bridge}-"):
        subprocess.run([command, "-t", "nat", *shlex.split(line.replace("-A ", "-D ", 1))], check=False)
        chains.add((command, shlex.split(line)[1]))
    for command, chain in chains:
        if chain.startswith("CNI-") and chain.removeprefix("CNI-").isalnum():
            subprocess.run([command, "-t", "nat", "-X", chain], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["ip", "link", "delete", bridge], check=False, stderr=subprocess.DEVNULL)


NewSite = Callable[..., AbstractAsyncContextManager["Site"]]


@dataclass
class Site:
    """One test's own network: bridge name, address ranges and lease directory."""

    root: Path
    cni: Cni
    bridge: str
    octet: int

    async def namespace(self, name: str) -> Path:
        pins = await namespaces.create(self.root / name, net=True, ipc=False, uts=False, hostname="", sysctls={})
        return pins["net"]

    def plan(self, name: str, netns: Path, ports: tuple[PortMapping, ...] = (), **more: Any) -> Attachment:
        facts = {"sandbox_id": self.ident(name), "name": name, "namespace": "test", "uid": name, "netns": netns, "port_mappings": ports}
        return self.cni.plan(PodNetworkRequest(**{**facts, **more}))

    def ident(self, name: str) -> str:
        return f"{self.bridge}-{name}"

    async def pod(self, name: str, ports: tuple[PortMapping, ...] = ()) -> tuple[Path, PodNetwork]:
        netns = await self.namespace(name)
        return netns, await self.cni.add(self.plan(name, netns, ports))

    def leases(self) -> list[str]:
        """The addresses taken: files of that name, beside the plugin's own ``last_reserved_ip.*`` and ``lock``."""
        names = (path.name for path in (self.root / "leases" / self.bridge).glob("*"))
        return sorted(name for name in names if name.startswith(("10.", "fd")))

    def rules(self) -> list[tuple[str, str]]:
        """Packet filter rules that name one of our pods or its addresses."""
        return rules(f"{self.bridge}-", f"10.{self.octet}.", f"fd00:{self.octet}:")

    def ports(self) -> list[str]:
        """The pods' ends of the bridge."""
        return [entry["ifname"] for entry in json.loads(output("ip", "-j", "link", "show", "master", self.bridge) or "[]")]


@pytest.fixture
def octet() -> int:
    return 100 + os.getpid() % 100


@pytest.fixture
def clean_host(octet: int) -> Iterator[str]:
    bridge = f"cbt{octet}"
    sweep(bridge)
    yield bridge
    sweep(bridge)


@asynccontextmanager
async def open_site(tmp_path: Path, clean_host: str, octet: int, *more: Mapping[str, Any]) -> AsyncIterator[Site]:
    ranges = [[{"subnet": f"10.{octet}.0.0/24"}], [{"subnet": f"fd00:{octet}::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    bridge = {"type": "bridge", "bridge": clean_host, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    conf_dir = tmp_path / "conf"
    conf_dir.mkdir()
    (conf_dir / "10-test.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": clean_host, "plugins": [bridge, portmap, *more]}))
    async with Supervisor() as supervisor, Cni.open(CniSettings(conf_dir=conf_dir, bin_dirs=(BIN_DIR,)), supervisor) as cni:
        assert cni.status().ready, cni.status().message
        site = Site(tmp_path, cni, clean_host, octet)
        yield site
        for directory in tmp_path.iterdir():
            await namespaces.remove(directory)
        with anyio.fail_after(30):
            while site.ports():
                await anyio.sleep(0.02)  # the kernel frees a network namespace in a work queue; nothing tells when


@pytest.fixture
def new_site(tmp_path: Path, clean_host: str, octet: int) -> NewSite:
    return functools.partial(open_site, tmp_path, clean_host, octet)


async def listener(netns: Path, address: str, port: int) -> socket.socket:
    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        opened = socket.create_server((address, port), family=family)
        opened.settimeout(5)
        return opened

    return await namespaces.run_in_network(netns, listen)


async def talk(server: socket.socket, netns: Path | None, address: tuple[str, int]) -> tuple[bytes, str]:
    """Connect from ``netns`` (None: the host), send four bytes, and return them as received with the peer's address."""

    def connect() -> None:
        with socket.create_connection(address, timeout=5) as client:
            client.sendall(b"ping")

    received: list[tuple[bytes, str]] = []

    def accept() -> None:
        connection, peer = server.accept()
        with connection:
            received.append((connection.recv(4), peer[0]))

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, accept)
        if netns is None:
            await anyio.to_thread.run_sync(connect)
        else:
            await namespaces.run_in_network(netns, connect)
    return received[0]


async def test_two_pods_talk_on_both_families_and_leave_nothing(new_site: NewSite) -> None:
    async with new_site() as site:
        before = site.rules()
        first_ns, first = await site.pod("first")
        second_ns, second = await site.pod("second")
        assert [":" in ip for ip in first.ips] == [False, True]
        assert len(site.leases()) == 4
        for ip, peer in zip(first.ips, second.ips, strict=True):
            with await listener(first_ns, ip, 7777) as server:
                assert await talk(server, second_ns, (ip, 7777)) == (b"ping", peer)
                assert (await talk(server, None, (ip, 7777)))[0] == b"ping"
        await site.cni.check(first.attachment)
        for network in (first, second):
            await site.cni.delete(network.attachment)
            await site.cni.delete(network.attachment)
        assert (site.leases(), site.ports(), site.rules()) == ([], [], before)
        left = await namespaces.run_in_network(first_ns, functools.partial(output, "ip", "-o", "link"))
        assert "eth0" not in left
        assert "lo: <LOOPBACK,UP" in left


async def test_a_host_port_reaches_the_pod_and_is_gone_after_del(new_site: NewSite) -> None:
    async with new_site() as site:
        netns, network = await site.pod("web", (PortMapping(80, 18080),))
        gateway = f"10.{site.octet}.0.1"
        with await listener(netns, network.ips[0], 80) as server:
            assert (await talk(server, None, (gateway, 18080)))[0] == b"ping"
            await site.cni.delete(network.attachment)
        assert site.rules() == []
        with pytest.raises(OSError, match=r"refused|timed out"):
            await anyio.to_thread.run_sync(functools.partial(socket.create_connection, (gateway, 18080), timeout=2))


async def test_bandwidth_annotations_shape_the_pods_traffic(new_site: NewSite) -> None:
    async with new_site({"type": "bandwidth", "capabilities": {"bandwidth": True}}) as site:
        annotations = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "2M"}
        attachment = site.plan("slow", await site.namespace("slow"), annotations=annotations)
        network = await site.cni.add(attachment)
        [veth] = site.ports()
        assert "tbf" in output("tc", "qdisc", "show", "dev", veth)
        assert "rate 10Mbit" in output("tc", "qdisc", "show", "dev", veth)
        assert "rate 2Mbit" in output("tc", "qdisc", "show")
        await site.cni.delete(network.attachment)
        assert "rate 2Mbit" not in output("tc", "qdisc", "show")


async def test_check_notices_a_missing_interface(new_site: NewSite) -> None:
    async with new_site() as site:
        netns, network = await site.pod("broken")
        await namespaces.run_in_network(netns, functools.partial(output, "ip", "link", "delete", "eth0"))
        with pytest.raises(NetworkFailed, match=r"'bridge': CHECK failed: .*eth0"):
            await site.cni.check(network.attachment)
        await site.cni.delete(network.attachment)
        assert site.leases() == []


async def test_a_failed_add_is_undone_by_del(new_site: NewSite) -> None:
    async with new_site() as site:
        netns = await site.namespace("bad")
        attachment = site.plan("bad", netns, (PortMapping(80, 18081, "tcp", "not-an-address"),))
        with pytest.raises(NetworkFailed, match="'portmap': ADD failed"):
            await site.cni.add(attachment)
        assert len(site.leases()) == 2
        await site.cni.delete(attachment)
        assert (site.leases(), site.rules()) == ([], [])


async def test_del_after_the_namespace_has_gone_frees_the_address(new_site: NewSite) -> None:
    async with new_site() as site:
        _, network = await site.pod("gone")
        await namespaces.remove(site.root / "gone")
        await site.cni.delete(network.attachment)
        assert site.leases() == []


async def test_an_exhausted_range_is_told_in_the_plugins_words(new_site: NewSite) -> None:
    async with new_site() as site:
        conf = site.root / "conf" / "10-test.conflist"
        raw = json.loads(conf.read_text())
        raw["plugins"][0]["ipam"]["ranges"] = [[{"subnet": f"10.{site.octet}.0.0/30"}]]
        attachment = site.plan("first", await site.namespace("first"))
        conf_data = {**attachment.data, "conf": raw}
        await site.cni.add(Attachment(attachment.network, conf_data))
        second = site.plan("second", await site.namespace("second"))
        with pytest.raises(NetworkFailed, match=r"'bridge': ADD failed: .*no IP addresses available"):
            await site.cni.add(Attachment(second.network, {**second.data, "conf": raw}))
        for one in (attachment, second):
            await site.cni.delete(Attachment(one.network, {**one.data, "conf": raw}))
        assert (site.leases(), site.rules()) == ([], [])
