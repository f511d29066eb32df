"""Attaching to containers of the monitor process."""

from __future__ import annotations

import os
import socket

import anyio
import pytest

from bridge.errors import IllegalTransition, InvalidRequest
from tests.integration.monitor_node import Node, node, until

__all__ = ["node"]


async def test_attach_sees_output_and_feeds_stdin(node: Node) -> None:
    async with node.connect() as client, anyio.create_task_group() as group:
        await node.run(client, "c", "while read line; do echo got $line; echo E$line >&2; done; exit 8", stdin=True, stdin_once=True)
        mine, theirs = socket.socketpair()
        errors, errors_end = os.pipe()

        async def attach() -> None:
            await client.attach("c", stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=errors_end)

        group.start_soon(attach)
        mine.sendall(b"one\ntwo\n")
        mine.shutdown(socket.SHUT_WR)
        assert (await client.wait("c")).code == 8, "stdin_once: the end of the client's input ends the container's"
        theirs.close()
        os.close(errors_end)
        with mine.makefile("rb") as output, open(errors, "rb") as error_output:
            assert await anyio.to_thread.run_sync(output.read) == b"got one\ngot two\n"
            assert await anyio.to_thread.run_sync(error_output.read) == b"Eone\nEtwo\n"
        mine.close()
        assert ("stdout", "F", "got one") in node.logged("c")
        reader, writer = os.pipe()
        with pytest.raises(IllegalTransition, match="output has ended"):
            await client.attach("c", stdin=None, stdout=writer, stderr=None)
        os.close(reader)
        os.close(writer)


async def test_without_stdin_once_many_clients_feed_one_after_another(node: Node) -> None:
    async with node.connect() as client:
        before = node.fds(client)
        await node.run(client, "c", "while read line; do echo got $line; done; exit 8", stdin=True)
        for text in ("one", "two"):
            reader, writer = os.pipe()
            os.write(writer, f"{text}\n".encode())
            os.close(writer)
            await client.attach("c", stdin=reader, stdout=None, stderr=None)
            os.close(reader)
        await until(lambda: len(node.logged("c")) == 2)
        await client.close_stdin("c")
        assert (await client.wait("c")).code == 8
        assert [text for _, _, text in node.logged("c")] == ["got one", "got two"]
        await client.forget("c")
        assert node.fds(client) == before


async def test_a_cancelled_attach_detaches(node: Node) -> None:
    async with node.connect() as client:
        await node.run(client, "c", "exec sleep 60", stdin=True)
        before = node.fds(client)
        reader, writer = os.pipe()
        with anyio.move_on_after(0.1):
            await client.attach("c", stdin=None, stdout=writer, stderr=None)
        os.close(writer)
        with open(reader, "rb") as output:
            assert await anyio.to_thread.run_sync(output.read) == b"", "the monitor has closed its copy"
        assert node.fds(client) == before
        assert (await client.tasks())[0].exit is None


async def test_cve_2025_64329_attaches_that_are_left_hold_nothing(node: Node) -> None:
    """containerd kept something of every attach that was cut off, until it had no memory left."""
    async with node.connect() as client:
        await node.run(client, "c", "exec sleep 60", stdin=True)
        before = node.fds(client)
        for _ in range(20):
            mine, theirs = socket.socketpair()
            with anyio.move_on_after(0.01):
                await client.attach("c", stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=None)
            theirs.close()
            mine.close()
        await until(lambda: node.fds(client) == before)
        assert [task.id for task in await client.tasks()] == ["c"]


async def test_attach_refuses_files(node: Node) -> None:
    async with node.connect() as client:
        await node.run(client, "c", "exec sleep 60")
        with open(node.root / "f", "wb") as file, pytest.raises(InvalidRequest, match="stdout: must be a pipe"):
            await client.attach("c", stdin=None, stdout=file.fileno(), stderr=None)


async def test_a_client_that_reads_late_gets_a_burst_whole(node: Node) -> None:
    async with node.connect() as client, anyio.create_task_group() as group:
        gate = node.root / "gate"
        os.mkfifo(gate)
        await node.run(client, "c", f"read x < {gate}; head -c 5000000 /dev/zero; exit 2")
        reader, writer = os.pipe()

        async def attach() -> None:
            await client.attach("c", stdin=None, stdout=writer, stderr=None)

        group.start_soon(attach)
        await client.tasks()
        await anyio.to_thread.run_sync(gate.write_text, "\n")
        await anyio.sleep(0.2)
        os.close(writer)
        with open(reader, "rb") as output:
            assert len(await anyio.to_thread.run_sync(output.read)) == 5_000_000
        assert (await client.wait("c")).code == 2
