"""Launches, exits and logs of the monitor process, with small shell scripts as runtimes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from bridge.errors import AlreadyExists, HostError, IllegalTransition, InUse, InvalidRequest, NotFound
from bridge.host import syscalls
from bridge.monitor.client import LaunchFailed, MonitorClient, TaskInfo
from bridge.ports.runtime import ContainerIO, ExitStatus
from tests.integration.monitor_node import Node, gone, node, until

__all__ = ["node"]


async def test_output_exit_and_record(node: Node) -> None:
    events: list[tuple[str, ExitStatus]] = []
    async with node.connect(on_exit=lambda task, status: events.append((task, status))) as client:
        pid = await node.run(client, "c", "echo out; echo err >&2; printf rest; exit 7")
        status = await client.wait("c")
        assert status.code == 7
        assert status.signal is None
        assert not status.oom_killed
        assert abs(time.time_ns() - status.at_ns) < 10e9
        assert set(node.logged("c")) == {("stdout", "F", "out"), ("stderr", "F", "err"), ("stdout", "P", "rest")}
        assert await client.wait("c") == status, "again, at once"
        assert await client.tasks() == [TaskInfo("c", "container", pid, status, node.log_path("c"))]
        assert await client.tasks("c") == await client.tasks()
        assert await client.tasks("d") == []
        assert events == [("c", status)]
        await client.forget("c")
        await client.forget("c")
        assert await client.tasks() == []
        with pytest.raises(NotFound):
            await client.wait("c")


async def test_everything_is_logged_before_the_exit_is_reported(node: Node) -> None:
    async with node.connect() as client:
        for n in range(10):
            await node.run(client, f"c{n}", "i=0; while [ $i -lt 400 ]; do echo line-$i; i=$((i+1)); done")
            await client.wait(f"c{n}")
            assert node.logged(f"c{n}") == [("stdout", "F", f"line-{i}") for i in range(400)]


async def test_signals_and_many_waiters(node: Node) -> None:
    async with node.connect() as client, node.connect() as other:
        await node.run(client, "c", "exec sleep 60")
        with pytest.raises(InUse):
            await client.forget("c")
        async with anyio.create_task_group() as group:
            results: list[ExitStatus] = []

            async def wait(through: MonitorClient) -> None:
                results.append(await through.wait("c"))

            for through in (client, other, client, other):
                group.start_soon(wait, through)
            await client.tasks()
            await client.kill("c", signal.SIGTERM)
        assert [(status.code, status.signal) for status in results] == [(143, 15)] * 4
        await client.kill("c", signal.SIGKILL)
        with pytest.raises(NotFound):
            await client.kill("absent", 9)
        with pytest.raises(InvalidRequest, match="signal"):
            await client.kill("c", 99)


async def test_a_failed_launch_tells_what_the_runtime_said_and_logs_nothing(node: Node) -> None:
    async with node.connect() as client:
        with pytest.raises(LaunchFailed) as caught:
            await node.run(client, "c", "", argv=["sh", "-c", "echo no such image >&2; echo really >&2; exit 3"])
        assert caught.value.exit_code == 3
        assert caught.value.stderr_tail == ("no such image", "really")
        assert node.logged("c") == []
        assert await client.tasks() == []
        with pytest.raises(NotFound):
            await client.wait("c")
        with pytest.raises(HostError, match="/no/runtime"):
            await node.run(client, "c", "", argv=["/no/runtime"])
        await node.run(client, "c", "exit 0")
        assert (await client.wait("c")).code == 0


async def test_a_launch_that_hangs_is_killed_with_everything_it_made(node: Node) -> None:
    pids, cleaned = node.root / "pids", node.root / "cleaned"
    script = f"(setsid sleep 60 & echo $! >> {pids}; setsid sleep 60 & echo $! >> {pids}; wait) & echo $$ >> {pids}; wait"
    async with node.connect() as client:
        start = time.monotonic()
        with pytest.raises(LaunchFailed, match="timed out") as caught:
            await client.launch(
                "c",
                ["sh", "-c", script],
                cwd=node.root,
                pid_file=node.pid_file("c"),
                io=ContainerIO(),
                timeout=0.5,
                on_failure=["sh", "-c", f"echo cleaned > {cleaned}"],
            )
        assert caught.value.exit_code is None
        assert time.monotonic() - start < 30
        assert cleaned.exists()
        found = [int(line) for line in pids.read_text().split()]
        assert len(found) == 3
        await until(lambda: all(gone(pid) for pid in found))
        assert not any(Path(f"/proc/{pid}").exists() for pid in found), "reaped as well"


@pytest.mark.parametrize("content", ["", "no number", "1"])
async def test_a_runtime_that_lies_about_the_pid(node: Node, content: str) -> None:
    async with node.connect() as client:
        node.pid_file("c").write_text("4242424")
        argv = ["sh", "-c", f"printf '%s' '{content}' > {node.pid_file('c')}"] if content else ["true"]
        with pytest.raises(LaunchFailed, match="the runtime succeeded but") as caught:
            await node.run(client, "c", "", argv=argv)
        assert caught.value.exit_code == 0


async def test_a_container_that_dies_before_its_runtime_returns(node: Node) -> None:
    argv = node.detach("c", "exit 9", linger=0.3)
    async with node.connect() as client:
        await node.run(client, "c", "", argv=argv)
        assert (await client.wait("c")).code == 9


async def test_ids_are_unique_also_while_launching(node: Node) -> None:
    gate = node.root / "gate"
    os.mkfifo(gate)
    argv = ["sh", "-c", f"read x < {gate}; sleep 60 & echo $! > {node.pid_file('c')}"]
    async with node.connect() as client, anyio.create_task_group() as group:
        group.start_soon(lambda: node.run(client, "c", "", argv=argv))
        while not await client.tasks():
            await anyio.sleep(0.005)
        assert await client.tasks() == [TaskInfo("c", "container", 0)]
        for call in (node.run(client, "c", "true"), client.forget("c"), client.kill("c", 9)):
            with pytest.raises((AlreadyExists, InUse, IllegalTransition)):
                await call
        await anyio.to_thread.run_sync(gate.write_text, "\n")
        while not (tasks := await client.tasks())[0].pid:
            await anyio.sleep(0.005)
        with pytest.raises(AlreadyExists):
            await node.run(client, "c", "true")
        assert len(tasks) == 1


async def test_a_cancelled_launch_leaves_nothing(node: Node) -> None:
    pids = node.root / "pids"
    async with node.connect() as client:
        with anyio.move_on_after(0.3):
            await node.run(client, "c", "", argv=["sh", "-c", f"echo $$ > {pids}; exec sleep 60"])
        await until(lambda: gone(int(pids.read_text())))
        while await client.tasks():
            await anyio.sleep(0.005)
        await node.run(client, "c", "exit 0")


async def test_a_grandchild_holding_the_pipe_does_not_hold_the_exit(node: Node) -> None:
    async with node.connect() as client:
        gate = node.root / "gate"
        os.mkfifo(gate)
        await node.run(client, "c", f"(read x < {gate}; echo late) & printf 'half a'; exit 4")
        with anyio.fail_after(5):
            assert (await client.wait("c")).code == 4
        assert node.logged("c") == [("stdout", "P", "half a")]
        await anyio.to_thread.run_sync(gate.write_text, "\n")
        await until(lambda: len(node.logged("c")) == 2)
        assert node.logged("c")[1] == ("stdout", "F", "late")


async def test_rotation(node: Node) -> None:
    async with node.connect() as client:
        gate = node.root / "gate"
        os.mkfifo(gate)
        await node.run(client, "c", f"echo one; read x < {gate}; echo two")
        await until(lambda: node.logged("c"))
        node.log_path("c").rename(node.root / "rotated")
        await client.reopen_log("c")
        await anyio.to_thread.run_sync(gate.write_text, "\n")
        await client.wait("c")
        assert node.logged("c") == [("stdout", "F", "two")]
        assert b"stdout F one" in (node.root / "rotated").read_bytes()
        with pytest.raises(IllegalTransition):
            await client.reopen_log("c")


async def test_descriptors_return_to_their_number_after_many_launches(node: Node) -> None:
    async with node.connect() as client:
        await node.run(client, "warm", "exit 0", stdin=True)
        await client.wait("warm")
        await client.forget("warm")
        before = node.fds(client)
        for n in range(100):
            if n % 4 == 3:
                with pytest.raises(LaunchFailed):
                    await node.run(client, f"c{n}", "", argv=["false"], stdin=True)
                continue
            await node.run(client, f"c{n}", "echo x", stdin=bool(n % 2))
            await client.wait(f"c{n}")
            await client.forget(f"c{n}")
        assert node.fds(client) == before
        children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text()
        assert children == ""


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of one page, which a file fills."""
    disk = tmp_path / "disk"
    disk.mkdir()
    syscalls.mount("tmpfs", disk, "tmpfs", 0, "size=4k")
    try:
        (disk / "filling").write_bytes(bytes(4096))
        yield disk
    finally:
        syscalls.umount(disk, syscalls.MNT_DETACH)


@pytest.mark.root
async def test_a_full_log_disk_does_not_stop_the_container(node: Node, full_disk: Path) -> None:
    async with node.connect() as client:
        io = ContainerIO(log_path=full_disk / "log")
        await client.launch("c", node.detach("c", "echo x; exit 3"), cwd=node.root, pid_file=node.pid_file("c"), io=io, timeout=10)
        assert (await client.wait("c")).code == 3
        assert (await client.tasks())[0].lost_bytes > 0
        await client.forget("c")
    log = node.log.read_text()
    assert log.count("No space left") == 1
    node.log.write_text(log.replace("level=error", "level=expected"))


_HELPED_RUNTIME = """
unless (fork) {
    my $pid = fork;
    exec("sh", "-c", "exit 7") unless $pid;
    open(my $file, ">", "$ARGV[0].new") or die;
    print $file $pid;
    close $file;
    rename("$ARGV[0].new", $ARGV[0]);
    select(undef, undef, undef, 0.3);
    exit;
}
select(undef, undef, undef, 0.01) until -e $ARGV[0];
"""


async def test_a_container_whose_parent_outlives_the_runtime(node: Node) -> None:
    """crun forks a helper that makes the container; the runtime may end first, and the container's exit is ours all the same."""
    async with node.connect() as client:
        await node.run(client, "c", "", argv=["perl", "-e", _HELPED_RUNTIME, str(node.pid_file("c"))])
        status = await client.wait("c")
    assert (status.code, status.reason) == (7, "")
