"""The shim backend with containerd's shim for runc and the real monitor: start, exits, signals, stdio, limits, statistics."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bridge.errors import IllegalTransition, NotFound, RuntimeFailed, Unsupported
from bridge.host import cgroups
from bridge.ports.runtime import SANDBOX_PID_NAMESPACE, ContainerIO, ExitStatus, SandboxKind
from bridge.shimv2.container import ShimContainer
from tests.integration.shim_host import SHIM, ShimHost, logged, shim_host

pytestmark = [pytest.mark.root, pytest.mark.skipif(not SHIM or not shutil.which("runc"), reason="needs containerd-shim-runc-v2, runc")]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[ShimHost]:
    async with shim_host(tmp_path) as host:
        yield host


async def ended(container: ShimContainer) -> ExitStatus:
    with anyio.fail_after(30):
        return await container.wait()


async def test_containers_of_a_pod_run_in_one_shim_and_leave_nothing(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        assert (sandbox.pid, host.pids()) == (None, []), "a pod of namespaces runs nothing"
        specs = [host.container(pod, ["/bin/sh", "-c", f"echo out; echo err >&2; exit {code}"]) for code in (3, 0)]
        containers = [await sandbox.create_container(spec) for spec in specs]
        assert containers[0].pid is None
        assert await containers[0].stats() is None
        pids = [await container.start() for container in containers]
        assert [container.pid for container in containers] == pids
        assert len(host.pids(pod.id)) == len(host.pids()) == 1
        for container, code in zip(containers, (3, 0), strict=True):
            status = await ended(container)
            assert (status.code, status.oom_killed, status.reason) == (code, False, "")
            assert status.at_ns > 10**18
        assert sorted(host.log(specs[0])) == ["err", "out"]
        for container in containers:
            for _ in range(2):
                await container.release()
                await container.delete()
            with pytest.raises(NotFound):
                await backend._runtime.monitor.wait(container.id)
        assert len(host.pids()) == 1, "the pod's shim outlives its containers"
        assert host.marks() == [pod.id]
        for _ in range(2):
            await sandbox.stop()
            await sandbox.delete()
        assert host.leftovers() == []
        assert await backend._runtime.monitor.tasks() == []


async def test_signals_terminals_and_stdin(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        spec = host.container(pod, ["/bin/sh", "-c", "trap 'exit 7' TERM; echo up; while true; do sleep 0.05; done"])
        trapping = await sandbox.create_container(spec)
        await trapping.start()
        await logged(host, spec, 1)
        with pytest.raises(Unsupported):
            await trapping.resize(10, 10)
        await trapping.kill(signal.SIGTERM)
        assert (await ended(trapping)).code == 7
        await trapping.kill(signal.SIGKILL)
        await trapping.kill(signal.SIGKILL, all_processes=True)
        with pytest.raises(IllegalTransition):
            await trapping.exec(spec)  # type: ignore[arg-type]

        spec = host.container(pod, ["/bin/sh", "-c", "tty; cat"], tty=True, io=ContainerIO(terminal=True, stdin=True))
        terminal = await sandbox.create_container(spec)
        await terminal.start()
        await terminal.resize(99, 33)
        await logged(host, spec, 1)
        mine, theirs = socket.socketpair()
        async with anyio.create_task_group() as group:
            group.start_soon(_attach, terminal, theirs)
            mine.sendall(b"typed\n\x04")
            assert (await ended(terminal)).code == 0
            group.cancel_scope.cancel()
        mine.close()
        assert [line.rstrip("\r") for line in host.log(spec)] == ["/dev/pts/0", "typed", "typed"]

        spec = host.container(pod, ["/bin/cat"], io=ContainerIO(stdin=True, stdin_once=True))
        fed = await sandbox.create_container(spec)
        await fed.start()
        mine, theirs = socket.socketpair()
        async with anyio.create_task_group() as group:
            group.start_soon(_attach, fed, theirs)
            mine.sendall(b"first\nsecond\n")
            mine.shutdown(socket.SHUT_WR)
            assert (await ended(fed)).code == 0, "the end of its one client's input is the end of its own"
        mine.close()
        assert host.log(spec) == ["first", "second"]
        for container in (trapping, terminal, fed):
            await container.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def _attach(container: ShimContainer, theirs: socket.socket) -> None:
    fd = theirs.fileno()
    await container.attach(stdin=fd, stdout=fd, stderr=None, attached=theirs.close)


async def test_a_failed_start_says_why_and_leaves_nothing(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        for argv, code in ((["/bin/nope"], 127), (["/tmp"], 126)):
            container = await sandbox.create_container(host.container(pod, argv))
            with pytest.raises(RuntimeFailed, match=r"handler 'shim': Create failed .*exec: ") as caught:
                await container.start()
            assert caught.value.start_code == code
            assert container.pid is None
            assert host.marks() == [pod.id]
            await container.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_limits_statistics_and_memory_that_runs_out(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        resources = {"memory": {"limit": 64 << 20}, "cpu": {"quota": -1, "period": 100000}}
        spec = host.container(pod, ["/bin/sleep", "1000"], resources=resources)
        container = await sandbox.create_container(spec)
        await container.update({"memory": {"limit": 48 << 20}})
        await container.start()
        assert container.cgroup is not None
        assert _memory_limit(container.cgroup) == 48 << 20
        await container.update({"memory": {"limit": 32 << 20}})
        assert _memory_limit(container.cgroup) == 32 << 20
        with pytest.raises(RuntimeFailed):
            await container.update({"memory": {"limit": 1}})
        used = await container.stats()
        assert used is not None
        assert used.memory is not None
        assert used.memory.limit == 32 << 20
        assert used.memory.working_set is not None
        assert 0 < used.memory.working_set < 32 << 20
        assert used.cpu_ns
        assert used.processes == 1
        await container.delete()

        eater = await sandbox.create_container(
            host.container(pod, ["/bin/sh", "-c", "exec tail /dev/zero"], resources={"memory": {"limit": 16 << 20}})
        )
        host.rootfs.joinpath("dev").mkdir(exist_ok=True)
        await eater.start()
        status = await ended(eater)
        assert (status.code, status.oom_killed) == (137, True)
        await eater.delete()
        await sandbox.delete()
        assert host.leftovers() == []


def _memory_limit(cgroup: str) -> int:
    mount = cgroups.layout().mounts["" if cgroups.is_v2() else "memory"]
    return int((mount.directory(cgroup) / ("memory.max" if cgroups.is_v2() else "memory.limit_in_bytes")).read_text())


async def test_a_shared_pid_namespace_ends_with_its_owner(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod(shared_pid=True)
        sandbox = await backend.create_sandbox(pod)
        assert sandbox.pid is not None
        spec = host.container(pod, ["/bin/sh", "-c", "echo $$; sleep 1000"], pid=SANDBOX_PID_NAMESPACE)
        container = await sandbox.create_container(spec)
        await container.start()
        assert await logged(host, spec, 1) != ["1"], "the sandbox's process is the first"
        os.kill(sandbox.pid, signal.SIGKILL)
        assert (await ended(container)).code == 137
        with anyio.fail_after(30):
            assert (await sandbox.wait()).code == 137
        await container.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_a_sandbox_container_comes_first_and_its_shim_serves_the_pod(host: ShimHost) -> None:
    host.changes = {"kind": SandboxKind.CONTAINER}
    async with host.shims() as backend:
        pod = host.with_main(host.pod())
        sandbox = await backend.create_sandbox(pod)
        assert sandbox.pid is not None
        container = await sandbox.create_container(host.container(pod, ["/bin/sleep", "1000"]))
        await container.start()
        assert len(host.pids(pod.id)) == len(host.pids()) == 1
        os.kill(host.pids()[0], signal.SIGKILL)
        died = await ended(container)
        assert (died.code, died.reason) == (137, "ShimDied")
        with anyio.fail_after(30):
            assert (await sandbox.wait()).reason == "ShimDied"
        another = await sandbox.create_container(host.container(pod, ["/bin/true"]))
        with pytest.raises(IllegalTransition, match="died with its shim"):
            await another.start()
        for each in (container, another):
            await each.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_each_container_may_have_a_start_of_its_own(tmp_path: Path) -> None:
    async with shim_host(tmp_path, grouping="container") as host:
        async with host.shims() as backend:
            pod = host.pod()
            sandbox = await backend.create_sandbox(pod)
            containers = [await sandbox.create_container(host.container(pod, ["/bin/sleep", "1000"])) for _ in range(2)]
            for container in containers:
                await container.start()
            assert len(host.pids()) == 1, "this shim groups by the pod's annotation"
            for container in containers:
                await container.delete()
            await sandbox.delete()
            assert host.leftovers() == []
