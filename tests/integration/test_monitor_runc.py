"""The monitor with the real runc: bundles of a static busybox, terminals, OOM, execs, failures in runc's own words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.errors import Unsupported
from bridge.host.console import ConsoleListener
from bridge.monitor.client import LaunchFailed, MonitorClient
from bridge.ports.runtime import ContainerIO
from tests.integration.monitor_node import Node, node, until

__all__ = ["node"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (shutil.which("runc") and shutil.which("busybox")), reason="needs runc and a static busybox"),
]


class Runc:
    """Bundles and runc command lines below a node's directory."""

    def __init__(self, node: Node, client: MonitorClient) -> None:
        self.node = node
        self.client = client
        self.prefix = f"mon-{uuid.uuid4().hex[:8]}"
        self.rootfs = node.root / "rootfs"
        (self.rootfs / "bin").mkdir(parents=True)
        (self.rootfs / "proc").mkdir()
        (self.rootfs / "dev").mkdir()
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, self.rootfs / "bin/busybox")
        for name in ("sh", "cat", "echo", "sleep", "dd", "stty", "tail", "true"):
            (self.rootfs / "bin" / name).symlink_to("busybox")

    def argv(self, *verb: str) -> list[str]:
        return ["runc", "--root", str(self.node.root / "runc"), "--log", str(self.node.root / "runc.log"), *verb]

    def id(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def bundle(self, name: str, args: Sequence[str], *, terminal: bool = False, memory: int | None = None) -> Path:
        bundle = self.node.root / "bundles" / name
        bundle.mkdir(parents=True)
        resources: dict[str, Any] = {"memory": {"limit": memory, "swap": memory}} if memory else {}
        spec = {
            "ociVersion": "1.0.2",
            "process": {"terminal": terminal, "user": {"uid": 0, "gid": 0}, "args": list(args), "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": str(self.rootfs), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": f"/{self.prefix}/{name}",
                "resources": resources,
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            },
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    async def run(self, name: str, script: str, *, terminal: bool = False, memory: int | None = None, **io: Any) -> int:
        """Launch ``sh -c script`` by one ``runc run --detach``."""
        bundle = self.bundle(name, ["sh", "-c", script], terminal=terminal, memory=memory)
        console = self.node.root / "tty" if terminal else None
        verb = ["run", "--detach", "--bundle", str(bundle), "--pid-file", str(self.node.pid_file(name))]
        verb += ["--console-socket", str(console)] if console else []
        return await self.client.launch(
            name,
            self.argv(*verb, self.id(name)),
            cwd=bundle,
            pid_file=self.node.pid_file(name),
            io=ContainerIO(terminal=terminal, log_path=self.node.log_path(name), **io),
            console_socket=console,
            timeout=30,
            on_failure=self.argv("delete", "--force", self.id(name)),
        )

    async def delete(self, name: str) -> None:
        await anyio.run_process(self.argv("delete", "--force", self.id(name)), check=False)
        with contextlib.suppress(LookupError):
            await self.client.forget(name)

    def clean(self) -> None:
        state = self.node.root / "runc"
        for each in state.iterdir() if state.exists() else ():
            subprocess.run(self.argv("delete", "--force", each.name), check=False, capture_output=True)
        for directory in Path("/sys/fs/cgroup").glob(f"*/{self.prefix}"):
            directory.rmdir()
        with contextlib.suppress(FileNotFoundError):
            Path(f"/sys/fs/cgroup/{self.prefix}").rmdir()


@pytest.fixture
async def runc(node: Node) -> AsyncIterator[Runc]:
    async with node.connect() as client:
        runc = Runc(node, client)
        try:
            yield runc
        finally:
            for task in await client.tasks():
                await client.kill(task.id, signal.SIGKILL)
                await client.wait(task.id)
                await runc.delete(task.id)
            runc.clean()


async def test_run_log_exit(runc: Runc) -> None:
    pid = await runc.run("c", "echo hello; echo err >&2; exit 3")
    status = await runc.client.wait("c")
    assert (status.code, status.signal, status.oom_killed) == (3, None, False)
    assert set(runc.node.logged("c")) == {("stdout", "F", "hello"), ("stderr", "F", "err")}
    assert pid > 1


async def test_exits_in_a_row_are_all_right(runc: Runc) -> None:
    """A container as short as ``exit`` often dies before runc has returned."""
    for code in range(10):
        await runc.run(f"c{code}", f"exit {code}")
        assert (await runc.client.wait(f"c{code}")).code == code
        await runc.delete(f"c{code}")


async def test_kill_of_pid_1(runc: Runc) -> None:
    await runc.run("c", "trap 'exit 44' TERM; echo ready; while :; do sleep 0.05; done")
    await until(lambda: runc.node.logged("c"))
    await runc.client.kill("c", signal.SIGTERM)
    assert (await runc.client.wait("c")).code == 44
    await runc.run("d", "exec sleep 60")
    await runc.client.kill("d", signal.SIGKILL)
    status = await runc.client.wait("d")
    assert (status.code, status.signal, status.oom_killed) == (137, 9, False)


async def test_out_of_memory_is_told(runc: Runc) -> None:
    await runc.run("c", "sleep 0.2; tail /dev/zero; exit 1", memory=8 << 20)
    status = await runc.client.wait("c")
    assert status.oom_killed
    assert status.code in (1, 137)


async def test_a_terminal(runc: Runc) -> None:
    async with anyio.create_task_group() as group:
        await runc.run("c", "read go; stty size; read line; echo got $line; exit 5", terminal=True, stdin=True)
        assert not (runc.node.root / "tty").exists()
        await runc.client.resize("c", 123, 45)
        mine, theirs = socket.socketpair()

        async def attach() -> None:
            await runc.client.attach("c", stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=None)

        group.start_soon(attach)
        mine.sendall(b"\nhello\n")
        assert (await runc.client.wait("c")).code == 5
        theirs.close()
        with mine.makefile("rb") as output:
            seen = await anyio.to_thread.run_sync(output.read)
        mine.close()
    assert b"45 123\r\n" in seen
    assert seen.endswith(b"got hello\r\n")
    # Path.read_text would turn the carriage returns into newlines.
    logged = runc.node.log_path("c").read_bytes()
    assert b" stdout F got hello\r\n" in logged


async def test_terminal_output_is_whole_when_the_exit_is_reported(runc: Runc) -> None:
    for n in range(5):
        await runc.run(f"c{n}", "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done", terminal=True)
        assert (await runc.client.wait(f"c{n}")).code == 0
        logged = runc.node.log_path(f"c{n}").read_bytes()
        assert logged.count(b"\n") == 300
        assert logged.endswith(b"line 299\r\n")
        await runc.delete(f"c{n}")


async def test_resize_needs_a_terminal(runc: Runc) -> None:
    await runc.run("c", "exec sleep 60")
    with pytest.raises(Unsupported, match="no terminal"):
        await runc.client.resize("c", 1, 1)


async def test_a_missing_program_is_told_in_runcs_words(runc: Runc) -> None:
    bundle = runc.bundle("c", ["/no/such/program"])
    before = runc.node.fds(runc.client)
    with pytest.raises(LaunchFailed) as caught:
        await runc.client.launch(
            "c",
            runc.argv("run", "--detach", "--bundle", str(bundle), "--pid-file", str(runc.node.pid_file("c")), runc.id("c")),
            cwd=bundle,
            pid_file=runc.node.pid_file("c"),
            io=ContainerIO(log_path=runc.node.log_path("c")),
            timeout=30,
        )
    assert caught.value.exit_code == 1
    assert "no such file or directory" in " ".join(caught.value.stderr_tail)
    assert runc.node.logged("c") == []
    assert runc.node.fds(runc.client) == before


async def test_exec_in_a_container(runc: Runc) -> None:
    await runc.run("c", "exec sleep 60")
    process = runc.node.root / "process.json"
    process.write_text(
        json.dumps({"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", "echo hi; exit 6"], "env": ["PATH=/bin"], "cwd": "/"})
    )
    reader, writer = os.pipe()
    argv = runc.argv("exec", "--detach", "--pid-file", str(runc.node.pid_file("e")), "--process", str(process), runc.id("c"))
    await runc.client.exec(
        "e", argv, cwd=runc.node.root, pid_file=runc.node.pid_file("e"), stdin=None, stdout=writer, stderr=writer, timeout=30
    )
    os.close(writer)
    assert (await runc.client.wait("e")).code == 6
    with open(reader, "rb") as output:
        assert output.read() == b"hi\n"
    with pytest.raises(LaunchFailed):
        await runc.client.exec(
            "f", runc.argv("exec", "--detach", runc.id("c"), "/none"), cwd=runc.node.root, pid_file=runc.node.pid_file("f"),
            stdin=None, stdout=None, stderr=None, timeout=30,
        )  # fmt: skip


async def test_descriptors_after_many_containers(runc: Runc) -> None:
    await runc.run("warm", "exit 0")
    await runc.client.wait("warm")
    await runc.delete("warm")
    before = runc.node.fds(runc.client)
    for n in range(20):
        await runc.run(f"c{n}", "echo x", terminal=n % 2 == 0, stdin=n % 4 < 2)
        await runc.client.wait(f"c{n}")
        await runc.delete(f"c{n}")
    assert runc.node.fds(runc.client) == before


async def test_a_console_path_beyond_the_socket_limit_is_named() -> None:
    with pytest.raises(Exception, match="console_socket: longer than"):
        ConsoleListener(Path("/tmp") / ("x" * 120))
