"""Execs of the monitor process: the caller's descriptors, and an end with the caller."""

from __future__ import annotations

import os

import anyio
import pytest

from bridge.errors import MonitorGone, Unsupported
from tests.integration.monitor_node import Node, gone, node, until

__all__ = ["node"]


async def test_exec_uses_the_callers_descriptors(node: Node) -> None:
    async with node.connect() as client:
        before = node.fds(client)
        reader, writer = os.pipe()
        argv = node.detach("e", "echo out; echo err >&2; cat; exit 5")
        pid = await client.exec("e", argv, cwd=node.root, pid_file=node.pid_file("e"), stdin=None, stdout=writer, stderr=writer, timeout=10)
        os.close(writer)
        assert pid > 1
        with open(reader, "rb") as output:
            assert await anyio.to_thread.run_sync(output.read) == b"out\nerr\n"
        assert (await client.wait("e")).code == 5
        with pytest.raises(Unsupported):
            await client.reopen_log("e")
        await client.forget("e")
        assert node.fds(client) == before


async def test_exec_dies_with_its_connection_and_containers_do_not(node: Node) -> None:
    async with node.connect() as client:
        container = await node.run(client, "c", "exec sleep 60")
        argv = node.detach("e", "exec sleep 60")
        exec_pid = await client.exec(
            "e", argv, cwd=node.root, pid_file=node.pid_file("e"), stdin=None, stdout=None, stderr=None, timeout=10
        )
    await until(lambda: gone(exec_pid))
    async with node.connect() as client:
        while len(await client.tasks()) > 1:
            await anyio.sleep(0.005)
        assert [(task.id, task.pid, task.exit) for task in await client.tasks()] == [("c", container, None)]


async def test_an_exec_being_launched_dies_with_its_connection(node: Node) -> None:
    pids = node.root / "pids"
    argv = ["sh", "-c", f"echo $$ > {pids}; exec sleep 60"]
    async with node.connect() as client, anyio.create_task_group() as group:
        exec_ = client.exec("e", argv, cwd=node.root, pid_file=node.pid_file("e"), stdin=None, stdout=None, stderr=None, timeout=60)

        async def run() -> None:
            with pytest.raises(MonitorGone):
                await exec_

        group.start_soon(run)
        await until(lambda: pids.exists() and pids.read_text())
        client._channel.close()
    await until(lambda: gone(int(pids.read_text())))
    async with node.connect() as client:
        while await client.tasks():
            await anyio.sleep(0.005)
