"""Execs of the OCI backend with real runtimes: output, exit code, limits, and that a timed-out one leaves no process behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.errors import IllegalTransition, RuntimeFailed
from bridge.host import cgroups, oom_score
from bridge.host.cgroup_kill import kill_directory
from bridge.oci.backend import OciBackend
from bridge.oci.container import OciContainer
from bridge.oci.dialect import ExecCgroup
from bridge.ports.runtime import ExecSpec
from tests.integration.oci_node import OciNode, oci_node

pytestmark = pytest.mark.root


@dataclass
class Running:
    node: OciNode
    backend: OciBackend
    container: OciContainer

    async def run(self, *args: str, **process: Any) -> tuple[int, str]:
        """Exit code and stdout of a whole exec, deleted afterwards."""
        read, write = os.pipe()
        try:
            started = await self.container.exec(self.spec(*args, stdout=write, **process))
        finally:
            os.close(write)
        with anyio.fail_after(30), open(read) as output:
            status = await started.wait()
            await started.delete()
            return status.code, output.read()

    def spec(self, *args: str, stdout: int | None = None, console: Path | None = None, **process: Any) -> ExecSpec:
        described = {"args": list(args), "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], **process}
        return ExecSpec(id=f"x{os.urandom(8).hex()}", process=described, stdout=stdout, console=console)

    def everyone(self) -> set[int]:
        directory = kill_directory(self.container.cgroup)
        assert directory is not None
        return set(cgroups.pids(directory))

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(30):
            while not condition():
                await anyio.sleep(0.02)


@pytest.fixture(params=["runc", "crun", "odd-runc"])
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    real = request.param.removeprefix("odd-")
    if shutil.which(real) is None:
        pytest.fail(f"{real} is not installed")
    async with oci_node(tmp_path, request.param) as node, node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        resources = {"memory": {"limit": 64 << 20}, "pids": {"limit": 60}}
        container = await sandbox.create_container(node.container(pod, ["/bin/sleep", "1000"], resources=resources))
        await container.start()
        yield Running(node, backend, container)
        await container.delete()
        assert node.leftovers() == []


async def test_output_and_exit_code(running: Running) -> None:
    assert await running.run("/bin/sh", "-c", "echo $X; exit 4", env=["X=hello", "PATH=/bin"]) == (4, "hello\n")
    assert await running.run("true") == (0, "")


async def test_two_at_once(running: Running) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(running.run, "/bin/sh", "-c", "sleep 0.1")


async def test_it_is_under_all_limits_of_its_container(running: Running) -> None:
    assert running.container.pid is not None
    container = cgroups.of_pid(running.container.pid)
    started = await running.container.exec(running.spec("sleep", "1000"))
    mine = cgroups.of_pid(started.pid)
    freezer = "" if cgroups.is_v2() else "freezer"
    assert mine[freezer].parent == container[freezer]
    for controller, directory in container.items():
        assert mine[controller].is_relative_to(directory), controller
    await started.delete()


async def test_it_has_the_oom_score_of_its_container_and_so_have_its_children(running: Running) -> None:
    spec = running.spec("/bin/sh", "-c", "sleep 1000 & sleep 1000", oomScoreAdj=321)
    started = await running.container.exec(spec)
    await running.until(lambda: len(running.everyone()) == 3)
    assert {pid: oom_score.of(pid) for pid in running.everyone()} == {
        pid: 0 if pid == running.container.pid else 321 for pid in running.everyone()
    }
    await started.delete()
    assert oom_score.of(started.pid) is None


DAEMONS = "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' & done; trap '' TERM; sleep 1000"


async def test_delete_kills_all_that_it_forked_and_nobody_else(running: Running) -> None:
    before = running.everyone()
    started = await running.container.exec(running.spec("/bin/sh", "-c", DAEMONS))
    await running.until(lambda: len(running.everyone()) >= len(before) + 7)
    await started.delete()
    assert running.everyone() == before
    assert running.container.pid in before
    await started.delete()


async def test_daemons_of_one_that_ended_by_itself(running: Running) -> None:
    before = running.everyone()
    code, output = await running.run("/bin/sh", "-c", "setsid sleep 1000 >/dev/null & sleep 0.1; echo done")
    assert (code, output) == (0, "done\n")
    assert running.everyone() == before


async def test_one_without_help_of_the_runtime_is_moved(running: Running) -> None:
    """A runtime without ``exec --cgroup``: the process is moved right after its start."""
    runtime = running.container._runtime
    running.container._runtime = type(runtime)(runtime.cli, runtime.context, ExecCgroup.NONE)
    before = running.everyone()
    script = "while [ ! -e /tmp/moved ]; do :; done; setsid sleep 1000 & sleep 1000"
    started = await running.container.exec(running.spec("/bin/sh", "-c", script))
    (running.node.rootfs / "tmp/moved").touch()
    await running.until(lambda: len(running.everyone()) >= len(before) + 2)
    await started.delete()
    assert running.everyone() == before


@pytest.mark.parametrize(("command", "code"), [("/nope", 127), ("nope", 127), ("/tmp", 126)])
async def test_a_command_that_is_not_there(running: Running, command: str, code: int) -> None:
    with pytest.raises(RuntimeFailed) as caught:
        await running.container.exec(running.spec(command))
    assert caught.value.start_code == code
    assert caught.value.verb == "exec"


async def test_cancelled_while_it_starts(running: Running) -> None:
    before = running.everyone()
    for delay in (0.0, 0.002, 0.01, 0.03):
        started = None
        with anyio.move_on_after(delay):
            started = await running.container.exec(running.spec("sleep", "1000"))
        if started is not None:
            await started.delete()
    assert running.everyone() == before
    assert not list(running.node.root.glob("pod-*/*/exec-*"))


async def test_kill(running: Running) -> None:
    started = await running.container.exec(running.spec("sleep", "1000"))
    await started.kill(signal.SIGINT)
    with anyio.fail_after(30):
        status = await started.wait()
    assert (status.code, status.signal) == (130, 2)
    await started.kill(signal.SIGINT)
    await started.delete()


async def test_the_console_goes_to_the_caller(running: Running) -> None:
    path = running.node.root / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        started = await running.container.exec(running.spec("tty", terminal=True, console=path))
        connection, _ = listener.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        with anyio.fail_after(30):
            assert (await started.wait()).code == 0
        assert os.read(descriptors[0], 4096).startswith(b"/dev/pts/")
        os.close(descriptors[0])
        await started.delete()


async def test_in_a_container_that_ended(running: Running) -> None:
    await running.container.kill(signal.SIGKILL)
    await running.container.wait()
    with pytest.raises((IllegalTransition, RuntimeFailed)):
        await running.container.exec(running.spec("true"))
    await running.container.release()
    with pytest.raises(IllegalTransition, match="has ended"):
        await running.container.exec(running.spec("true"))
