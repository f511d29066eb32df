"""Load on exec and port-forward, on every runtime: what is carried comes back whole, and nothing of it is left (the leak audit).

Each test says what it took (``-s``); ``BRIDGE_LOAD=full`` makes the sizes what the server is meant to bear.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync
from bridge_gvisor.limits import limits
from bridge_gvisor.options import GvisorOptions

from bridge._proto.runtime import v1 as pb
from tests.integration.daemon_fixtures import kubelet, warm
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node
from tests.integration.shim_host import SHIM
from tests.integration.stream_load import (
    BULK,
    CONNECTIONS,
    FULL,
    SESSIONS,
    Carried,
    cat_over_spdy,
    cat_over_websocket,
    open_connections,
    through_a_port,
)
from tests.unit.streaming.stream_client import SpdyClient, WebSocketClient, spdy_command, websocket

__all__ = ["kubelet"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(3600 if FULL else 600)]
ECHO = "exec busybox nc -ll -p 7 -e cat"
RUNSC = shutil.which(os.environ.get("RUNSC", "runsc"))
HANDLERS: dict[str, Any] = {"runc": "runc", "crun": "crun"}
if SHIM:
    HANDLERS["shim"] = ("shim", {"path": SHIM})
if RUNSC:
    HANDLERS["gvisor"] = ("gvisor", {"path": RUNSC, "network": "host"})


@pytest.fixture(params=["runc", "crun", "shim", "gvisor"], scope="module")
def handler(request: pytest.FixtureRequest) -> str:
    if request.param not in HANDLERS:
        pytest.skip(f"this machine has no binary for {request.param}")
    return str(request.param)


@pytest.fixture(scope="module")
def node(crun_hierarchy: None, handler: str) -> Iterator[DaemonNode]:
    """A server with one runtime, which has run a pod already."""
    with daemon_node(handlers={handler: HANDLERS[handler]}) as made:
        anyio.run(warm, made)
        yield made


async def unlike_an_old_runsc(handler: str) -> None:
    """Skip what a runsc of 2022 can't: its pods' servers are told EAGAIN where they wait for a client's data."""
    if handler == "gvisor":
        said = (await anyio.run_process([str(RUNSC), "--version"])).stdout.decode()
        if (why := limits(GvisorOptions(network="host"), said).get("port-forward-to-localhost")) is not None:
            pytest.skip(why)


async def exec_url(kubelet: Kubelet, container: str, *argv: str, tty: bool = False) -> str:
    request = pb.ExecRequest(container_id=container, cmd=list(argv), tty=tty, stdin=True, stdout=True, stderr=not tty)
    return (await kubelet.cri.runtime.exec(request)).url


async def forward_url(kubelet: Kubelet, pod: str) -> str:
    return (await kubelet.cri.runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod, port=[7]))).url


async def test_many_terminals_at_once(kubelet: Kubelet, node: DaemonNode) -> None:
    """Half over either transport. All are there at the same time; then half end, and half lose their clients."""
    container = await kubelet.started(await kubelet.run())
    assert node.process is not None
    inside = len((await kubelet.output(container, "ls -d /proc/[0-9]*")).split())
    ready = 0
    everybody = anyio.Event()
    codes: list[int] = []

    async def meet() -> None:
        nonlocal ready
        ready += 1
        if ready == SESSIONS:
            everybody.set()
        await everybody.wait()

    async def over_spdy(number: int) -> None:
        url = await exec_url(kubelet, container, "sh", tty=True)
        async with spdy_command(url, "error", "stdin", "stdout", "resize") as (spdy, stream):
            spdy.machine.send(stream["resize"], b'{"Width":80,"Height":24}')
            await talk(spdy, stream, number)
            await meet()
            if number % 4 == 0:
                spdy.machine.send(stream["stdin"], b"exit 3\n")
                await spdy.flush()
                await spdy.take_until_end(stream["error"])
                codes.append(exit_code(spdy.data(stream["error"])))

    async def over_websocket(number: int) -> None:
        async with websocket(await exec_url(kubelet, container, "sh", tty=True), "v5.channel.k8s.io") as client:
            await client.send(b"\x04" + b'{"Width":80,"Height":24}')
            await talk_over_websocket(client, number)
            await meet()
            if number % 4 == 1:
                await client.send(b"\x00exit 3\n")
                await client.take_all()
                codes.append(exit_code(b"".join(said[1:] for said in client.messages if isinstance(said, bytes) and said[:1] == b"\x03")))

    with anyio.fail_after(300):
        async with anyio.create_task_group() as group:
            for number in range(SESSIONS):
                group.start_soon((over_spdy, over_websocket)[number % 2], number)
    assert codes == [3] * (SESSIONS // 2)
    with anyio.fail_after(30):
        while len((await kubelet.output(container, "ls -d /proc/[0-9]*")).split()) > inside:
            await anyio.sleep(0.05)


async def talk(spdy: SpdyClient, stream: dict[str, int], number: int) -> None:
    spdy.machine.send(stream["stdin"], b"echo $((1000 + %d)).\n" % number)
    await spdy.flush()
    while b"%d." % (1000 + number) not in spdy.data(stream["stdout"]):
        assert await spdy.take(), "the server hung up"


async def talk_over_websocket(client: WebSocketClient, number: int) -> None:
    await client.send(b"\x00echo $((1000 + %d)).\n" % number)
    while b"%d." % (1000 + number) not in b"".join(said[1:] for said in client.messages if isinstance(said, bytes)):
        assert await client.take(), "the server hung up"


async def test_the_size_of_a_terminal_and_its_change(kubelet: Kubelet) -> None:
    """As crictl and kubectl tell it over either transport: at the start, and when the window changes."""
    container = await kubelet.started(await kubelet.run())
    sizes = (('{"Width":132,"Height":43}', b"43 132"), ('{"Width":77,"Height":11}', b"11 77"))
    with anyio.fail_after(120):
        async with spdy_command(await exec_url(kubelet, container, "sh", tty=True), "error", "stdin", "stdout", "resize") as (spdy, stream):
            for told, seen in sizes:
                spdy.machine.send(stream["resize"], told.encode())
                while seen not in spdy.data(stream["stdout"]):
                    spdy.machine.send(stream["stdin"], b"busybox stty size\n")
                    await spdy.flush()
                    await spdy.take()
        async with websocket(await exec_url(kubelet, container, "sh", tty=True), "v5.channel.k8s.io") as client:
            for told, seen in sizes:
                await client.send(b"\x04" + told.encode())
                while seen not in b"".join(said[1:] for said in client.messages if isinstance(said, bytes)):
                    await client.send(b"\x00busybox stty size\n")
                    await client.take()


def exit_code(status: bytes) -> int:
    found = re.search(rb'"reason":"ExitCode","message":"(\d+)"', status)
    assert found is not None, status
    return int(found[1])


@pytest.mark.parametrize("cat", [cat_over_spdy, cat_over_websocket])
async def test_much_data_through_a_command(kubelet: Kubelet, cat: Callable[[str, int], Carried]) -> None:
    container = await kubelet.started(await kubelet.run())
    carried = await timed(cat, await exec_url(kubelet, container, "cat"), BULK)
    assert (carried.size, carried.received) == (BULK, carried.sent)


async def timed(work: Callable[..., Carried], *args: object) -> Carried:
    began = time.monotonic()
    carried = await run_sync(lambda: work(*args))
    print(f"{work.__name__}: {carried.size / (time.monotonic() - began) / 1e6:.0f} MB/s")
    return carried


async def test_port_forwards(kubelet: Kubelet, handler: str) -> None:
    """Much through one connection, many at once, and many that their client leaves without a word."""
    await unlike_an_old_runsc(handler)
    pod = await kubelet.run()
    container = await kubelet.started(pod, ECHO)
    await kubelet.output(container, "until busybox nc -w 5 127.0.0.1 7 < /dev/null; do busybox usleep 10000; done")
    carried = await timed(through_a_port, await forward_url(kubelet, pod), 7, BULK)
    assert (carried.size, carried.received) == (BULK, carried.sent)
    began = time.monotonic()
    url = await forward_url(kubelet, pod)
    assert await run_sync(talk_twice, url) == CONNECTIONS
    print(f"{CONNECTIONS} connections at once: {time.monotonic() - began:.1f} s")
    url = await forward_url(kubelet, pod)
    await run_sync(leave_many, url)
    await only(kubelet, container, "nc")


async def only(kubelet: Kubelet, container: str, name: str) -> None:
    """Wait until the container's living processes are those of this name again; its dead are for their parent to bury."""
    ours = " ".join(f"-e ' {word} '" for word in (name, "ps", "sh", "grep", "COMMAND"))
    deadline = time.monotonic() + 30
    while others := await kubelet.output(container, f"ps -o pid,comm,args | grep -v {ours} | grep -v '\\[.*\\]' || true"):
        assert time.monotonic() < deadline, others
        await anyio.sleep(0.05)


def talk_twice(url: str) -> int:
    with open_connections(url, 7, CONNECTIONS) as again:
        return again()


def leave_many(url: str) -> None:
    with open_connections(url, 7, 50):
        pass
