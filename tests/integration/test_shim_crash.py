"""Server, monitor or shim is lost while containers run and write: adopted, logs whole, exits right, nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bridge.errors import NotFound
from bridge.ports.runtime import ContainerSpec, ExecSpec, ExitStatus
from bridge.shimv2.container import ShimContainer
from tests.integration.monitor_node import gone
from tests.integration.shim_host import SHIM, ShimHost, logged, shim_host

pytestmark = [pytest.mark.root, pytest.mark.skipif(not SHIM or not shutil.which("runc"), reason="needs containerd-shim-runc-v2, runc")]
COUNTS = "i=0; while [ ! -e /flags/{0} ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo last; exit {1}"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[ShimHost]:
    async with shim_host(tmp_path) as host:
        (host.rootfs / "flags").mkdir()
        yield host


async def ended(container: ShimContainer) -> ExitStatus:
    with anyio.fail_after(30):
        return await container.wait()


def whole(host: ShimHost, spec: ContainerSpec) -> bool:
    *counted, last = host.log(spec)
    return last == "last" and counted == [str(number + 1) for number in range(len(counted))]


async def test_a_server_that_comes_back_knows_what_happened(host: ShimHost) -> None:
    pod = host.pod()
    specs = {name: host.container(pod, ["/bin/sh", "-c", COUNTS.format(name, 5)]) for name in ("during", "after")}
    idle, idle_exec = host.container(pod, ["/bin/sleep", "1000"]), ExecSpec("e" * 32, {"args": ["/bin/sleep", "1001"], "cwd": "/"})
    async with host.shims() as backend:
        sandbox = await backend.create_sandbox(pod)
        containers = {name: await sandbox.create_container(spec) for name, spec in (*specs.items(), ("idle", idle))}
        for container in containers.values():
            await container.start()
        orphan = await containers["idle"].exec(idle_exec)
        made = await sandbox.create_container(host.container(pod, ["/bin/true"]))
        records = {name: container.record for name, container in containers.items()}
        for spec in specs.values():
            await logged(host, spec, 3)
    (host.rootfs / "flags" / "during").touch()
    await anyio.sleep(0.3)
    async with host.shims() as backend:
        assert await backend.remove_strangers(lambda _: True) == []
        sandbox = await backend.load_sandbox(pod, sandbox.record)
        loaded = {name: await sandbox.load_container(spec, records[name]) for name, spec in (*specs.items(), ("idle", idle))}
        assert (await ended(loaded["during"])).code == 5, "it ended while nobody was there"
        (host.rootfs / "flags" / "after").touch()
        assert (await ended(loaded["after"])).code == 5
        assert all(whole(host, spec) for spec in specs.values())
        assert gone(orphan.pid), "its caller is gone"
        assert loaded["idle"].pid == containers["idle"].pid
        again = await sandbox.load_container(host_spec(made), {})
        assert again.pid is None
        with pytest.raises(NotFound):
            await sandbox.load_container(host.container(pod, ["/bin/true"]), {})
        late = await sandbox.create_container(host.container(pod, ["/bin/true"]))
        await late.start()
        assert (await ended(late)).code == 0
        assert len(host.pids()) == 1
        for container in (*loaded.values(), again, late):
            await container.delete()
        await sandbox.delete()
        assert host.leftovers() == []


def host_spec(container: ShimContainer) -> ContainerSpec:
    return container._spec


async def test_an_exit_that_was_told_but_not_recorded_is_known_to_the_monitor(host: ShimHost) -> None:
    pod = host.pod()
    spec = host.container(pod, ["/bin/sh", "-c", "exit 9"])
    async with host.shims() as backend:
        sandbox = await backend.create_sandbox(pod)
        container = await sandbox.create_container(spec)
        await container.start()
        await ended(container)
        await container.release()
    async with host.shims() as backend:
        sandbox = await backend.load_sandbox(pod, sandbox.record)
        container = await sandbox.load_container(spec, container.record)
        assert (await ended(container)).code == 9
        await container.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_a_monitors_successor_misses_nothing(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        spec = host.container(pod, ["/bin/sh", "-c", COUNTS.format("flag", 6)])
        container = await sandbox.create_container(spec)
        await container.start()
        async with anyio.create_task_group() as group:
            group.start_soon(container.wait)  # as core does
            async with contextlib.AsyncExitStack() as connections:
                for count in (10, 20, 30):
                    await logged(host, spec, count)
                    await host.replace_monitor()
                    await connections.enter_async_context(host.reconnected())
                await logged(host, spec, 40)
                (host.rootfs / "flags" / "flag").touch()
                assert (await ended(container)).code == 6
                await container.delete()
                await sandbox.delete()
        assert whole(host, spec), host.log(spec)[-3:]
        assert host.leftovers() == []


async def test_a_dead_shims_containers_end_and_the_pod_gets_another(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        spec = host.container(pod, ["/bin/sh", "-c", COUNTS.format("never", 0)])
        container = await sandbox.create_container(spec)
        pid = await container.start()
        (shim,) = host.pids()
        await logged(host, spec, 10)
        os.kill(shim, signal.SIGKILL)
        died = await ended(container)
        assert (died.code, died.reason) == (137, "ShimDied")
        assert gone(pid)
        assert host.log(spec) == [str(number + 1) for number in range(len(host.log(spec)))]
        await container.release()
        another = await sandbox.create_container(host.container(pod, ["/bin/sh", "-c", "exit 4"]))
        await another.start()
        assert host.pids() not in ([], [shim])
        assert (await ended(another)).code == 4
        for each in (container, another):
            await each.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_a_shim_that_died_while_nobody_was_there(host: ShimHost) -> None:
    pod = host.pod()
    specs = [host.container(pod, ["/bin/sleep", "1000"]) for _ in range(2)]
    async with host.shims() as backend:
        sandbox = await backend.create_sandbox(pod)
        containers = [await sandbox.create_container(spec) for spec in specs]
        for container in containers:
            await container.start()
    os.kill(host.pids()[0], signal.SIGKILL)
    async with host.shims() as backend:
        sandbox = await backend.load_sandbox(pod, sandbox.record)
        loaded = [await sandbox.load_container(spec, each.record) for spec, each in zip(specs, containers, strict=True)]
        assert (await ended(loaded[0])).reason == "ShimDied"
        for each in loaded:  # the second one was not waited for
            await each.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_strangers_are_found_and_ended(host: ShimHost) -> None:
    pods = [host.pod(), host.pod(shared_pid=True)]
    async with host.shims() as backend:
        for pod in pods:
            sandbox = await backend.create_sandbox(pod)
            container = await sandbox.create_container(host.container(pod, ["/bin/sleep", "1000"]))
            await container.start()
        kept = host.pod()
        sandbox = await backend.create_sandbox(kept)
        known = await sandbox.create_container(host.container(kept, ["/bin/sleep", "1000"]))
        await known.start()
    os.kill(host.pids(pods[0].id)[0], signal.SIGKILL)
    async with host.shims() as backend:
        removed = await backend.remove_strangers(lambda ident: ident in (kept.id, known.id))
        assert len(removed) == 4
        assert {pod.id for pod in pods} < set(removed)
        assert host.marks() == sorted([kept.id, known.id])
        assert {task.id for task in await backend._runtime.monitor.tasks()} == {known.id, f"shim-{kept.id}"}
        assert len(await backend.remove_strangers(lambda _: False)) == 2
        assert host.leftovers() == []
        assert await backend._runtime.monitor.tasks() == []


async def test_a_start_that_is_cancelled_anywhere_leaves_nothing(host: ShimHost) -> None:
    async with host.shims() as backend:
        pod = host.pod()
        sandbox = await backend.create_sandbox(pod)
        cancelled = 0
        for step in range(12):
            container = await sandbox.create_container(host.container(pod, ["/bin/sleep", "1000"]))
            with anyio.move_on_after(0.01 * step) as scope:
                await container.start()
            cancelled += scope.cancelled_caught
            assert (container.pid is None) is scope.cancelled_caught
            await container.delete()
            assert set(host.marks()) <= {pod.id}
            await sandbox.stop() if step % 2 else None
        assert cancelled > 0
        await sandbox.delete()
        assert host.leftovers() == []
        assert await backend._runtime.monitor.tasks() == []
