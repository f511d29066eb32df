"""A monitor goes on as another program: the same process, with all that it held."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import HostError, InUse
from bridge.monitor import starting
from bridge.monitor.client import MonitorClient
from bridge.monitor.link import LinkSettings, MonitorLink
from tests.integration.monitor_node import Node, node, until

__all__ = ["node"]

COUNTS = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.001; done"


def numbers(node: Node, name: str) -> list[int]:
    return [int(text) for _, tag, text in node.logged(name) if tag == "F"]


async def renewed(node: Node, before: MonitorClient) -> None:
    await starting.renew(before, node.socket, log_level="debug")
    with anyio.fail_after(30):
        await before.closed.wait()


async def test_nothing_is_lost_and_every_exit_is_exact(node: Node) -> None:
    async with node.connect() as before:
        pid, began = before.pid, before.start_ns
        await node.run(before, "writer", COUNTS)
        await node.run(before, "early", "exit 3")
        await before.wait("early")
        go = node.root / "go"
        await node.run(before, "later", f"printf half; until [ -e {go} ]; do sleep 0.01; done; echo ' whole'; exit 5")
        await node.run(before, "reader", "while read line; do echo got $line; done; exit 6", stdin=True)
        await until(lambda: len(numbers(node, "writer")) > 50)
        await renewed(node, before)
    async with node.connect() as after:
        assert (after.pid, after.start_ns) == (pid, began), "it is the same process"
        assert {task.id: task.exit and task.exit.code for task in await after.tasks()} == {
            "writer": None,
            "early": 3,
            "later": None,
            "reader": None,
        }
        fds = node.fds(after)
        go.touch()
        assert (await after.wait("later")).code == 5, "it is still its parent"
        assert node.logged("later") == [("stdout", "F", "half whole")], "what was read and not written yet came along"
        await after.close_stdin("reader")
        assert (await after.wait("reader")).code == 6
        so_far = len(numbers(node, "writer"))
        await until(lambda: len(numbers(node, "writer")) > so_far + 50)
        await after.kill("writer", signal.SIGTERM)
        assert (await after.wait("writer")).code == 143
        got = numbers(node, "writer")
        assert got == list(range(len(got))), "not a line is missing"
        for task in await after.tasks():
            await after.forget(task.id)
        assert node.fds(after) < fds
        await node.run(after, "new", "exit 7")
        assert (await after.wait("new")).code == 7


async def test_it_waits_until_nobody_would_notice(node: Node) -> None:
    async with node.connect() as client:
        argv = node.detach("e", "exec sleep 60")
        await client.exec("e", argv, cwd=node.root, pid_file=node.pid_file("e"), stdin=None, stdout=None, stderr=None, timeout=20)
        with pytest.raises(InUse, match="busy with e"):
            await starting.renew(client, node.socket)
        await client.kill("e", signal.SIGKILL)
        await client.wait("e")
        await client.forget("e")
        await renewed(node, client)


async def test_a_program_that_can_not_run_changes_nothing(node: Node, tmp_path: Path) -> None:
    async with node.connect() as client:
        fds = node.fds(client)
        with pytest.raises(HostError, match="can't execute /nowhere"):
            await client.renew(["/nowhere"], {})
        await node.run(client, "c", "exit 2")
        assert (await client.wait("c")).code == 2
        await client.forget("c")
        assert node.fds(client) == fds


async def test_a_server_renews_a_monitor_of_another_release(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.monitor.link.program", lambda: "another")
    settings = LinkSettings(node.socket, node.log, "debug", ask_every=0.05)
    async with Supervisor() as supervisor, MonitorLink.open(settings, supervisor) as link:
        before = link.client()
        await node.run(before, "c", "exec sleep 60", stdin=True)
        held = len(os.listdir("/proc/self/fd"))
        with anyio.fail_after(30):
            await before.closed.wait()
        monkeypatch.setattr("bridge.monitor.link.program", lambda: before.program)
        await until(lambda: not link.fault and link.client() is not before, 20)
        assert link.client().pid == before.pid
        assert not any(link.losses.values()), "wanted"
        await until(lambda: len(os.listdir("/proc/self/fd")) == held)
        link.client()._channel.close()
        await until(lambda: link.losses["disconnected"] == 1, 20)
