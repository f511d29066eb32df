"""Held tasks of the monitor process: another runs the container and copies its output into the monitor's fifos."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import anyio
import pytest

from bridge.errors import IllegalTransition, InUse, InvalidRequest, MonitorGone, NotFound, Unsupported
from bridge.monitor.starting import spawn
from bridge.ports.runtime import ContainerIO, ExitStatus
from tests.integration.monitor_node import Node, node, until

__all__ = ["node"]


class Shim:
    """Who runs the container: holds its fifos as containerd's shim does, outputs in both directions."""

    def __init__(self, directory: Path) -> None:
        self.outputs = {name: os.open(directory / name, os.O_RDWR) for name in ("stdout", "stderr") if (directory / name).exists()}

    def say(self, text: bytes, name: str = "stdout") -> None:
        os.write(self.outputs[name], text)

    def close(self) -> None:
        while self.outputs:
            os.close(self.outputs.popitem()[1])


def io(node: Node, name: str, *, stdin: bool = False) -> ContainerIO:
    return ContainerIO(log_path=node.log_path(name), stdin=stdin, stdin_once=stdin)


async def test_output_is_logged_to_its_end_and_the_exit_is_what_was_told(node: Node) -> None:
    exits: list[tuple[str, ExitStatus]] = []
    told = ExitStatus(code=137, oom_killed=True, at_ns=5, reason="ShimDied")
    async with node.connect(on_exit=lambda name, status: exits.append((name, status))) as client, anyio.create_task_group() as group:
        before = node.fds(client)
        await client.hold("c", node.root / "io", io(node, "c"))
        await client.hold("c", node.root / "io", io(node, "c"))
        shim = Shim(node.root / "io")
        shim.say(b"out\npart")
        shim.say(b"err\n", "stderr")
        await until(lambda: len(node.logged("c")) == 2)
        with pytest.raises(InUse):
            await client.forget("c")
        assert [(task.id, task.kind, task.exit) for task in await client.tasks()] == [("c", "held", None)]

        async def end() -> None:
            await client.ended("c", told, drain=20)
            order.append("ended")

        order: list[str] = []
        group.start_soon(end)
        await client.tasks()  # a later request is answered: the other one waits for the output
        shim.say(b" of the last\n")
        shim.close()
        assert await client.wait("c") == told
        await until(lambda: order == ["ended"])
        await client.ended("c", ExitStatus(0), drain=20)
        assert await client.wait("c") == told, "the first word counts"
        assert exits == [("c", told)]
        assert sorted(node.logged("c")) == [("stderr", "F", "err"), ("stdout", "F", "out"), ("stdout", "F", "part of the last")]
        with pytest.raises(IllegalTransition):
            await client.reopen_log("c")
        await client.forget("c")
        assert node.fds(client) == before
        with pytest.raises(NotFound):
            await client.ended("c", told, drain=1)


async def test_output_that_does_not_end_holds_the_exit_for_a_bounded_time(node: Node) -> None:
    async with node.connect() as client:
        await client.hold("c", node.root / "io", io(node, "c"))
        shim = Shim(node.root / "io")
        shim.say(b"no newline")
        with anyio.fail_after(30):
            await client.ended("c", ExitStatus(3), drain=0.1)
        assert node.logged("c") == [("stdout", "P", "no newline")]
        shim.close()
        await client.forget("c")


async def test_attach_reads_feeds_and_its_leaving_closes_stdin_once(node: Node) -> None:
    async with node.connect() as client, anyio.create_task_group() as group:
        await client.hold("c", node.root / "io", io(node, "c", stdin=True))
        shim = Shim(node.root / "io")
        stdin = os.open(node.root / "io" / "stdin", os.O_RDONLY)
        output, far_output = os.pipe()
        far_input, typed = os.pipe()
        closed: list[str] = []

        async def watch() -> None:
            await client.stdin_closed("c")
            closed.append("now")

        async def attach() -> None:
            await client.attach("c", stdin=far_input, stdout=far_output, stderr=None)

        group.start_soon(watch)
        group.start_soon(attach)
        os.write(typed, b"question")
        assert await anyio.to_thread.run_sync(os.read, stdin, 99) == b"question"
        shim.say(b"answer")
        assert await anyio.to_thread.run_sync(os.read, output, 99) == b"answer"
        assert closed == []
        os.close(typed)
        assert await anyio.to_thread.run_sync(os.read, stdin, 99) == b"", "its end is the container's"
        await until(lambda: closed == ["now"])
        await client.stdin_closed("c")
        shim.close()
        await client.ended("c", ExitStatus(0), drain=20)
        for end in (stdin, output, far_output, far_input):
            os.close(end)
        await client.forget("c")


async def test_a_rotated_log_goes_on_in_a_new_file(node: Node) -> None:
    async with node.connect() as client:
        await client.hold("c", node.root / "io", io(node, "c"))
        shim = Shim(node.root / "io")
        shim.say(b"old\n")
        await until(lambda: len(node.logged("c")) == 1)
        node.log_path("c").rename(node.root / "rotated")
        await client.reopen_log("c")
        shim.say(b"new\n")
        await until(lambda: node.log_path("c").exists() and [text for _, _, text in node.logged("c")] == ["new"])
        shim.close()
        await client.ended("c", ExitStatus(0), drain=20)


async def test_a_server_that_comes_back_finds_its_tasks(node: Node) -> None:
    async with node.connect() as client:
        await client.hold("c", node.root / "io", io(node, "c"))
    shim = Shim(node.root / "io")
    shim.say(b"alone\n")
    await until(lambda: len(node.logged("c")) == 1)
    async with node.connect() as client:
        await client.hold("c", node.root / "io", io(node, "c"))
        shim.close()
        await client.ended("c", ExitStatus(4), drain=20)
    async with node.connect() as client:
        assert (await client.wait("c")).code == 4


async def test_a_monitor_that_was_killed_has_a_successor_who_misses_nothing(node: Node) -> None:
    async with node.connect() as client:
        await client.hold("c", node.root / "io", io(node, "c"))
        shim = Shim(node.root / "io")
        shim.say(b"before\n")
        await until(lambda: len(node.logged("c")) == 1)
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(MonitorGone):
            await client.wait("c")
    shim.say(b"meanwhile\n")
    await spawn(node.socket, log_file=node.log, log_level="debug")
    async with node.connect() as client:
        await client.hold("c", node.root / "io", io(node, "c"))
        shim.say(b"after\n")
        shim.close()
        await client.ended("c", ExitStatus(0), drain=20)
        assert [text for _, _, text in node.logged("c")] == ["before", "meanwhile", "after"]
        pid = client.pid
        await client.forget("c")
        await client.shutdown()
    await until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())
    await spawn(node.socket, log_file=node.log, log_level="debug")


async def test_a_spool_keeps_a_log_read_until_it_is_forgotten(node: Node) -> None:
    async with node.connect() as client:
        before = node.fds(client)
        for _ in range(2):
            await client.spool("shim", node.root / "log", node.root / "kept")
        assert [task.kind for task in await client.tasks()] == ["spool"]
        subprocess.run(["sh", "-c", f"head -c 1000000 /dev/zero > {node.root / 'log'}"], check=True, timeout=30)
        subprocess.run(["sh", "-c", f"echo last words > {node.root / 'log'}"], check=True, timeout=30)
        await until(lambda: (node.root / "kept").read_bytes().endswith(b"last words\n"))
        await client.forget("shim")
        assert node.fds(client) == before


async def test_wrong_requests_name_their_field(node: Node) -> None:
    async with node.connect() as client:
        await client.hold("c", node.root / "io", io(node, "c"))
        with pytest.raises(InvalidRequest, match="drain"):
            await client.ended("c", ExitStatus(0), drain=0)
        with pytest.raises(InvalidRequest, match="exit"):
            await client.call("ended", {"task": "c", "drain": 1})
        with pytest.raises(InvalidRequest, match="directory"):
            await client.hold("d", Path("relative"), ContainerIO())
        await client.spool("s", node.root / "log", node.root / "kept")
        with pytest.raises(InvalidRequest, match="not held"):
            await client.ended("s", ExitStatus(0), drain=1)
        await client.forget("s")
        await client.ended("c", ExitStatus(0), drain=1)


async def test_a_monitor_of_an_older_release_is_not_asked(node: Node) -> None:
    async with node.connect() as client:
        client.abilities = frozenset()
        with pytest.raises(Unsupported, match="older release"):
            await client.hold("c", node.root / "io", ContainerIO())
        with pytest.raises(Unsupported, match="older release"):
            await client.spool("c", node.root / "log", node.root / "kept")
