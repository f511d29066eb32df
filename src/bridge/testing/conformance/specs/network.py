"""A pod's network."""

from __future__ import annotations

import re
import urllib.request
from contextlib import suppress

import anyio
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.remote import forward
from bridge.testing.conformance.stage import Stage

_PORT = 8080


def _page(name: str, word: str, address: str = "0.0.0.0") -> str:  # noqa: S104 - inside a pod
    return f"mkdir /www; echo {word} > /www/{name}; exec httpd -f -p {address}:{_PORT} -h /www"


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http of our own making
        return bytes(answer.read())


async def _fetched(stage: Stage, url: str) -> bytes:
    """The page at ``url``, asked for until somebody answers."""

    async def look() -> bytes:
        try:
            return await run_sync(_fetch, url)
        except OSError:
            return b""

    return await stage.until(look, f"nobody answers at {url}")


def _ask(address: str) -> str:
    return f"printf 'GET /word HTTP/1.0\\r\\n\\r\\n' | nc {address} {_PORT}"


async def _asked(stage: Stage, container: str, address: str) -> None:
    """Ask the server at ``address`` from the container until it answers."""

    async def look() -> bool:
        return (await stage.exec(container, _ask(address))).stdout.endswith(b"served\n")

    await stage.until(look, f"nobody answers at {address}:{_PORT} in the pod")


@spec("CRI PodSandboxStatus.network; the Kubernetes network model", network=True, quick=True)
async def pod_address(stage: Stage) -> None:
    """The pod's address is its interface's, and the node and other pods reach it there"""
    pod, neighbour = await stage.pod(), await stage.pod()
    container = await stage.started(pod, _page("word", "served"))
    other = await stage.started(neighbour)
    network = (await stage.pod_status(pod)).network
    assert network is not None
    assert network.ip
    assert f"inet {network.ip}" in re.sub(r"inet addr:", "inet ", await stage.output(container, "ip addr 2>/dev/null || ifconfig"))
    assert await _fetched(stage, f"http://{network.ip}:{_PORT}/word") == b"served\n"
    await _asked(stage, other, network.ip)


@spec("CRI: containers of a pod share its network", network=True, quick=True)
async def shared_loopback(stage: Stage) -> None:
    """Containers of one pod reach each other on localhost, and other pods do not"""
    pod, neighbour = await stage.pod(), await stage.pod()
    await stage.started(pod, _page("word", "served", "127.0.0.1"), name="server")
    asker = await stage.started(pod, name="asker")
    other = await stage.started(neighbour)
    await _asked(stage, asker, "127.0.0.1")
    assert b"served" not in (await stage.exec(other, _ask("127.0.0.1"))).stdout


@spec("CRI DNSConfig", network=True)
async def name_servers(stage: Stage) -> None:
    """The request's name servers, search domains and options are in /etc/resolv.conf"""
    dns = pb.DnsConfig(servers=["192.0.2.53"], searches=["one.example", "two.example"], options=["ndots:5"])
    container = await stage.started(await stage.pod(config=stage.pod_config(dns_config=dns)))
    lines = (await stage.output(container, "cat /etc/resolv.conf")).split("\n")
    assert {"nameserver 192.0.2.53", "search one.example two.example", "options ndots:5"} <= set(lines), lines


# Each connection gets its lines back.
_ECHO = f"mkfifo /tmp/f; while :; do nc -l -p {_PORT} < /tmp/f | while read x; do echo got $x; done > /tmp/f; done"


async def _echoed(stage: Stage, pod: str, word: bytes) -> bool:
    """Whether the pod's echo answers through the server."""
    url = (await stage.cri.runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod, port=[_PORT]))).url
    with suppress(AssertionError):
        async with forward(url, patience=min(5.0, stage.patience)) as connection:
            await connection.send(word + b"\n")
            await connection.until(b"got " + word)
            return True
    return False


@spec("CRI PortForward; kubelet's portforward protocol", needs=[Ability.PORT_FORWARD], network=True, quick=True)
async def port_forward(stage: Stage) -> None:
    """A port of the pod is reached through the server, both ways, again and again"""
    pod = await stage.pod()
    await stage.started(pod, _ECHO, name="server")
    for number in range(3):
        word = b"word%d" % number
        await stage.until(lambda word=word: _echoed(stage, pod, word), "nobody answers at the forwarded port")  # type: ignore[misc]


@spec("CRI PortForward: to the pod's localhost", needs=[Ability.PORT_FORWARD], network=True)
async def port_forward_to_localhost(stage: Stage) -> None:
    """A port on which the pod listens for itself alone is reached, by a client that is in no hurry"""
    pod = await stage.pod()
    await stage.started(pod, _page("word", "served", "127.0.0.1"), name="server")
    await _asked(stage, await stage.started(pod, name="asker"), "127.0.0.1")
    url = (await stage.cri.runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod, port=[_PORT]))).url
    async with forward(url, patience=stage.patience) as connection:
        await anyio.sleep(0.5)  # the server in the pod waits for the request by now
        await connection.send(b"GET /word HTTP/1.0\r\n\r\n")
        await connection.until(b"served\n")


@spec("CRI PortForward to a port on which nobody listens", needs=[Ability.PORT_FORWARD], network=True)
async def port_forward_to_nobody(stage: Stage) -> None:
    """A port on which nobody listens is told as such"""
    pod = await stage.pod()
    await stage.started(pod)
    url = (await stage.cri.runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod, port=[9]))).url
    async with forward(url, patience=stage.patience) as connection:
        assert "9" in await connection.refused()
