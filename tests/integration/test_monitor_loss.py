"""A monitor is killed while its containers write and read: its successor goes on with their pipes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from bridge.aio import Supervisor
from bridge.errors import MonitorGone
from bridge.monitor.client import MonitorClient
from bridge.monitor.link import LinkSettings, MonitorLink
from bridge.ports.runtime import ContainerIO
from tests.integration.monitor_node import Node, node, until

__all__ = ["node"]

COUNTS = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.001; done"
CONSOLE = """
import array, os, socket, sys
sys.argv.pop(0)
master, slave = os.openpty()
pid = os.fork()
if not pid:
    os.setsid()
    os.close(master)
    import fcntl, termios
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in range(3):
        os.dup2(slave, fd)
    os.execvp("sh", ["sh", "-c", sys.argv[0]])
with socket.socket(socket.AF_UNIX) as console:
    console.connect(sys.argv[2])
    socket.send_fds(console, [b"/dev/pts"], [master])
open(sys.argv[1], "w").write(str(pid))
"""


@asynccontextmanager
async def linked(node: Node, **patience: float) -> AsyncIterator[MonitorLink]:
    """A server's link to the node's monitor."""
    settings = LinkSettings(node.socket, node.log, "debug", **patience)  # type: ignore[arg-type]
    async with Supervisor() as supervisor, MonitorLink.open(settings, supervisor) as link:
        yield link


async def lose(link: MonitorLink) -> MonitorClient:
    """SIGKILL the monitor; its successor's client."""
    before = link.client()
    os.kill(before.pid, signal.SIGKILL)
    return await succeeded(link, before)


async def succeeded(link: MonitorLink, before: MonitorClient) -> MonitorClient:
    """The client of the monitor after ``before``."""
    with anyio.fail_after(30):
        await before.closed.wait()
        while True:
            try:
                return link.client()
            except MonitorGone:
                await anyio.sleep(0.01)


def numbers(node: Node, name: str) -> list[int]:
    return [int(text) for _, tag, text in node.logged(name) if tag == "F" and text.isdigit()]


async def test_a_writer_goes_on_and_its_log_with_it(node: Node) -> None:
    async with linked(node) as link:
        pid = await node.run(link.client(), "c", COUNTS)
        for _ in range(3):
            so_far = len(numbers(node, "c"))
            await until(lambda: len(numbers(node, "c")) > so_far + 100)  # noqa: B023
            client = await lose(link)
            assert [(task.id, task.pid, task.exit) for task in await client.tasks()] == [("c", pid, None)]
        await until(lambda: link.losses == {"died": 3, "hung": 0, "disconnected": 0})
        so_far = len(numbers(node, "c"))
        await until(lambda: len(numbers(node, "c")) > so_far + 100)
        await link.client().kill("c", signal.SIGKILL)
        await link.client().wait("c")
        got = numbers(node, "c")
        # A read that was not written yet may be lost with each monitor; here every read is a line or two.
        assert len(set(range(got[-1])) - set(got)) <= 3 * 20
        assert got == sorted(set(got)), "nothing twice, nothing out of order"


async def test_output_that_waits_in_the_pipe_is_not_lost(node: Node) -> None:
    async with linked(node) as link:
        script = f"echo before; until [ -e {node.root}/go ]; do sleep 0.01; done; seq 1000; echo >&2 error; exit 5"
        await node.run(link.client(), "c", script)
        before = link.client()
        await until(lambda: ("stdout", "F", "before") in node.logged("c"))
        os.kill(before.pid, signal.SIGSTOP)
        (node.root / "go").touch()
        await anyio.sleep(0.3)  # it writes and ends while nobody reads
        os.kill(before.pid, signal.SIGKILL)
        client = await succeeded(link, before)
        assert (await client.wait("c")).code in (5, 255), "255 where the kernel can't tell (before Linux 6.15)"
        await until(lambda: numbers(node, "c") == list(range(1, 1001)))
        assert ("stderr", "F", "error") in node.logged("c")


async def test_a_monitor_that_hangs_is_a_dead_one(node: Node) -> None:
    async with linked(node, ask_every=0.05, answer_timeout=1.0) as link:
        await node.run(link.client(), "c", f"until [ -e {node.root}/go ]; do sleep 0.01; done; echo last; exit 5")
        before = link.client()
        os.kill(before.pid, signal.SIGSTOP)
        client = await succeeded(link, before)
        assert client.pid != before.pid
        await until(lambda: link.losses == {"died": 0, "hung": 1, "disconnected": 0})
        (node.root / "go").touch()
        assert (await client.wait("c")).code in (5, 255)
        assert ("stdout", "F", "last") in node.logged("c")


async def test_stdin_and_attach_go_on_and_its_end_is_seen(node: Node) -> None:
    async with linked(node) as link, anyio.create_task_group() as group:
        script = "while read line; do echo got $line; done; echo end; exit 8"
        await node.run(link.client(), "c", script, stdin=True, stdin_once=True)
        client = await lose(link)
        mine, theirs = socket.socketpair()
        group.start_soon(lambda: client.attach("c", stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=None))
        mine.sendall(b"one\n")
        await until(lambda: ("stdout", "F", "got one") in node.logged("c"))
        mine.shutdown(socket.SHUT_WR)
        with anyio.fail_after(30):
            assert (await client.wait("c")).code in (8, 255)
        theirs.close()
        with mine, mine.makefile("rb") as output:
            assert await anyio.to_thread.run_sync(output.read) == b"got one\nend\n"


async def test_stdin_that_was_closed_stays_closed(node: Node) -> None:
    """What the server keeps for the next monitor must not keep the container's input open."""
    async with linked(node) as link:
        await node.run(link.client(), "c", "cat; exit 4", stdin=True)
        await link.client().close_stdin("c")
        with anyio.fail_after(30):
            assert (await link.client().wait("c")).code == 4


async def test_a_terminal_goes_on(node: Node) -> None:
    async with linked(node) as link, anyio.create_task_group() as group:
        console = node.root / "console"
        script = "trap 'echo hung up; exit 9' HUP; while read line; do echo got $line $(stty size); done"
        argv = [sys.executable, "-c", CONSOLE, script, str(node.pid_file("c")), str(console)]
        io = ContainerIO(terminal=True, stdin=True, log_path=node.log_path("c"))
        given: dict[str, Any] = {"cwd": node.root, "pid_file": node.pid_file("c"), "io": io, "console_socket": console, "timeout": 20}
        await link.client().launch("c", argv, **given)
        client = await lose(link)
        await client.resize("c", 100, 40)
        mine, theirs = socket.socketpair()
        group.start_soon(lambda: client.attach("c", stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=None))
        mine.sendall(b"one\n")
        await until(lambda: any("got one 40 100" in text for _, _, text in node.logged("c")))
        await client.kill("c", signal.SIGKILL)
        await client.wait("c")
        assert not any("hung up" in text for _, _, text in node.logged("c"))
        mine.close()
        theirs.close()


async def test_nothing_is_kept_of_what_ended(node: Node) -> None:
    async with linked(node) as link:
        await node.run(link.client(), "first", "exit 1", stdin=True)
        await link.client().wait("first")
        before = len(os.listdir("/proc/self/fd"))
        for number in range(3):
            await node.run(link.client(), f"c{number}", f"until [ -e {node.root}/go ]; do sleep 0.01; done", stdin=True)
        assert len(os.listdir("/proc/self/fd")) == before + 9
        (node.root / "go").touch()
        for number in range(3):
            await link.client().wait(f"c{number}")
        assert len(os.listdir("/proc/self/fd")) == before
