"""Containers in a sandbox: the monitor holds their stdio, and a command of their runtime tells their exits."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.errors import HostError, NotFound, Unsupported
from bridge.monitor.client import LaunchFailed, MonitorClient
from bridge.monitor.starting import spawn
from bridge.ports.runtime import ContainerIO
from tests.integration.monitor_node import Node, gone, node, until

__all__ = ["node"]


class Sandboxed:
    """A sandbox (a process that sleeps) with one container: ``exit`` is what its runtime's waiting command answers, once it is there."""

    def __init__(self, node: Node, name: str = "c") -> None:
        self.node, self.name = node, name
        self.exit = node.root / f"{name}.exit"
        self.asked = node.root / f"{name}.asked"
        self.sandbox = subprocess.Popen(["sleep", "1000"], start_new_session=True)

    @property
    def pid(self) -> int:
        return self.sandbox.pid

    def waiting(self) -> list[str]:
        script = 'echo $$ >>"$1"; while [ ! -e "$2" ]; do sleep 0.02; done; . "$2"'
        return ["sh", "-c", script, self.name, str(self.asked), str(self.exit)]

    def answer(self, script: str) -> None:
        fresh = self.exit.with_suffix(".new")
        fresh.write_text(script)
        fresh.rename(self.exit)

    def ends(self, code: int) -> None:
        self.answer(f"""echo '{{"id":"x","exitStatus":{code}}}'""")

    async def launch(self, client: MonitorClient, script: str = "echo out; echo err >&2", *, before: str = "", **changes: Any) -> int:
        write = f"echo noise; printf {self.pid} >{self.node.pid_file(self.name)}; {before}"
        options: dict[str, Any] = {
            "cwd": self.node.root,
            "pid_file": self.node.pid_file(self.name),
            "io": ContainerIO(log_path=self.node.log_path(self.name)),
            "timeout": 20,
            "before": [["sh", "-c", write]],
            "exit_argv": self.waiting(),
            "env": {"PATH": os.environ["PATH"]},
        }
        argv = changes.pop("argv", ["sh", "-c", script])
        return await client.launch(self.name, argv, **{**options, **changes})

    def waiters(self) -> list[int]:
        return [int(line) for line in self.asked.read_text().split()] if self.asked.exists() else []


@pytest.fixture
async def boxed(node: Node) -> AsyncIterator[Sandboxed]:
    made = Sandboxed(node)
    yield made
    made.sandbox.kill()
    made.sandbox.wait()
    made.ends(0)


async def test_its_runtime_tells_the_exit(node: Node, boxed: Sandboxed) -> None:
    async with node.connect() as client:
        assert await boxed.launch(client) == boxed.pid
        assert [(task.id, task.pid, task.exit) for task in await client.tasks()] == [("c", boxed.pid, None)]
        with pytest.raises(Unsupported, match="its runtime has to signal it"):
            await client.kill("c", signal.SIGKILL)
        boxed.ends(7)
        status = await client.wait("c")
        assert (status.code, status.signal, status.reason) == (7, None, "")
        assert set(node.logged("c")) == {("stdout", "F", "out"), ("stderr", "F", "err")}, "what came before is not its output"
        await client.forget("c")
    assert boxed.sandbox.poll() is None


async def test_the_death_of_the_sandbox_is_its_exit(node: Node, boxed: Sandboxed) -> None:
    async with node.connect() as client:
        await boxed.launch(client)
        await until(lambda: bool(boxed.waiters()))
        boxed.sandbox.kill()
        boxed.sandbox.wait()
        status = await client.wait("c")
        assert (status.code, status.signal, status.reason) == (137, 9, "SandboxDied")
        await until(lambda: all(gone(pid) for pid in boxed.waiters()))
        await client.forget("c")


async def test_a_waiting_command_that_fails_is_run_again(node: Node, boxed: Sandboxed) -> None:
    async with node.connect() as client:
        await boxed.launch(client)
        await until(lambda: bool(boxed.waiters()))
        os.kill(boxed.waiters()[0], signal.SIGKILL)
        await until(lambda: len(boxed.waiters()) > 1)
        boxed.ends(3)
        assert (await client.wait("c")).code == 3
        await client.forget("c")


@pytest.mark.parametrize(("before", "script"), [("echo no >&2; exit 4", "true"), ("", "echo no >&2; exit 4")])
async def test_a_launch_that_fails_leaves_the_sandbox(node: Node, boxed: Sandboxed, before: str, script: str) -> None:
    async with node.connect() as client:
        mark = node.root / "cleaned"
        with pytest.raises(LaunchFailed) as failure:
            await boxed.launch(client, script, before=before, on_failure=["touch", str(mark)])
        assert failure.value.exit_code == 4
        assert failure.value.stderr_tail[-1] == "no"
        assert mark.exists()
        assert await client.tasks() == []
    assert boxed.sandbox.poll() is None
    assert boxed.waiters() == []


async def test_verbs_that_do_not_end_are_killed(node: Node, boxed: Sandboxed) -> None:
    async with node.connect() as client:
        with pytest.raises(LaunchFailed) as failure:
            await boxed.launch(client, before="exec sleep 1000", timeout=0.5)
        assert failure.value.exit_code is None
    assert boxed.sandbox.poll() is None


async def test_another_monitor_takes_over(node: Node, boxed: Sandboxed, tmp_path: Path) -> None:
    ticks = int(Path(f"/proc/{boxed.pid}/stat").read_text().rpartition(")")[2].split()[19])
    second = tmp_path / "second.sock"
    await spawn(second, log_file=tmp_path / "second.log", log_level="debug")
    async with MonitorClient.connect(second) as client:
        options: dict[str, Any] = {"exit_argv": boxed.waiting(), "cwd": node.root, "env": {"PATH": os.environ["PATH"]}}
        await client.adopt("c", boxed.pid, ticks, **options)
        boxed.ends(9)
        assert (await client.wait("c")).code == 9
        await client.forget("c")
        await client.adopt("d", boxed.pid, ticks + 1, **options)
        assert (await client.wait("d")).code in (9, 137), "another process has its pid: the sandbox is dead"
        await client.forget("d")
        await client.shutdown()


async def test_a_command_that_cannot_be_run_is_the_launchs_failure(node: Node, boxed: Sandboxed) -> None:
    async with node.connect() as client:
        with pytest.raises(HostError, match="nowhere"):
            await boxed.launch(client, exit_argv=(), argv=["/nowhere"])
        with pytest.raises(NotFound):
            await client.wait("c")


async def test_a_monitor_that_ends_takes_its_commands_along(node: Node, boxed: Sandboxed) -> None:
    async with node.connect() as client:
        await boxed.launch(client)
        await until(lambda: bool(boxed.waiters()))
        await client.shutdown(force=True)
    with anyio.fail_after(30):
        while not all(gone(pid) for pid in boxed.waiters()):
            await anyio.sleep(0.02)
