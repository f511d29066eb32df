"""The OCI backend with real runtimes and the real monitor: start, exit, signals, OOM, terminal, shared PIDs, restart."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bridge.errors import IllegalTransition, NotFound, RuntimeFailed
from bridge.host import cgroups
from bridge.host.cgroup_kill import kill_directory
from bridge.oci.container import OciContainer
from bridge.ports.runtime import SANDBOX_PID_NAMESPACE, ContainerIO, ExitStatus
from tests.integration.oci_node import OciNode, oci_node

pytestmark = pytest.mark.root


@pytest.fixture(params=["runc", "crun", "odd-crun"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OciNode]:
    real = request.param.removeprefix("odd-")
    if shutil.which(real) is None:
        pytest.fail(f"{real} is not installed")
    async with oci_node(tmp_path, request.param) as node:
        yield node


async def ended(container: OciContainer) -> ExitStatus:
    with anyio.fail_after(30):
        return await container.wait()


async def test_a_container_runs_logs_and_exits_and_leaves_nothing(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        assert sandbox.pid is None
        spec = node.container(pod, ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
        container = await sandbox.create_container(spec)
        assert container.pid is None
        pid = await container.start()
        status = await ended(container)
        assert (status.code, status.signal, status.oom_killed) == (3, None, False)
        assert container.pid == pid
        assert sorted(node.log(spec)) == ["err", "out"]
        assert node.leftovers() != []
        await container.release()
        await container.release()
        assert node.leftovers() == []
        await container.delete()
        await container.delete()
        with pytest.raises(NotFound):
            await backend._runtime.monitor.wait(spec.id)
        await sandbox.delete()


async def test_signals_reach_it_and_an_ended_one_is_success(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        spec = node.container(pod, ["/bin/sh", "-c", "trap 'exit 7' TERM; echo up; while true; do sleep 0.05; done"])
        container = await sandbox.create_container(spec)
        await container.start()
        with anyio.fail_after(30):
            while not (spec.bundle / "log").exists() or not node.log(spec):
                await anyio.sleep(0.02)
        await container.kill(signal.SIGTERM)
        assert (await ended(container)).code == 7
        await container.kill(signal.SIGKILL)
        await container.kill(signal.SIGKILL, all_processes=True)
        await container.delete()
        assert node.leftovers() == []


async def test_sigkill(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        container = await sandbox.create_container(node.container(pod, ["/bin/sleep", "1000"]))
        await container.start()
        await container.release()  # it runs: must change nothing
        await container.kill(signal.SIGKILL)
        status = await ended(container)
        assert (status.code, status.signal) == (137, 9)
        await container.delete()


async def test_out_of_memory_is_told(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        eat = ["/bin/sh", "-c", "x=a; while true; do x=$x$x; done"]
        spec = node.container(pod, eat, resources={"memory": {"limit": 16 << 20, "swap": 16 << 20}})
        container = await sandbox.create_container(spec)
        await container.start()
        status = await ended(container)
        assert (status.code, status.oom_killed) == (137, True)
        await container.delete()


@pytest.mark.parametrize(("command", "code", "says"), [("/nope", 127, "/nope"), ("nope", 127, "nope"), ("/tmp", 126, "")])
async def test_a_command_that_is_not_there(node: OciNode, command: str, code: int, says: str) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        container = await sandbox.create_container(node.container(pod, [command]))
        with pytest.raises(RuntimeFailed) as caught:
            await container.start()
        failure = caught.value
        assert failure.start_code == code, failure.message
        assert (failure.handler, failure.verb) == (node.runtime, "create" if node.odd else "run")
        assert says in failure.message
        assert container.pid is None
        await container.release()
        await container.delete()
        assert node.leftovers() == []


async def test_a_spec_that_the_runtime_refuses(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        spec = node.container(pod, ["/bin/true"])
        spec.oci["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]})
        container = await sandbox.create_container(spec)
        with pytest.raises(RuntimeFailed, match="no/such/source") as caught:
            await container.start()
        assert caught.value.start_code == 128
        await container.delete()
        assert node.leftovers() == []


async def test_terminal(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        spec = node.container(pod, ["/bin/tty"], tty=True)
        container = await sandbox.create_container(spec)
        await container.start()
        assert (await ended(container)).code == 0
        assert node.log(spec)[0].startswith("/dev/pts/")
        await container.delete()


async def test_shared_pid_namespace(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod(shared_pid=True)
        sandbox = await backend.create_sandbox(pod)
        assert sandbox.pid is not None
        inside = os.readlink(f"/proc/{sandbox.pid}/ns/pid")
        members = []
        for _ in range(2):
            daemon = ["/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"]
            members.append(await sandbox.create_container(node.container(pod, daemon, pid=SANDBOX_PID_NAMESPACE)))
            assert os.readlink(f"/proc/{await members[-1].start()}/ns/pid") == inside
        directory = kill_directory(members[0].cgroup)
        assert directory is not None
        with anyio.fail_after(30):
            while len(cgroups.pids(directory)) < 2:
                await anyio.sleep(0.02)
        await members[0].kill(signal.SIGKILL)
        assert (await ended(members[0])).code == 137
        await members[0].release()  # its daemon is not pid 1's business: it must be killed by us
        assert cgroups.pids(directory) == []
        await sandbox.stop()
        assert (await ended(members[1])).code == 137
        await members[1].delete()
        await sandbox.delete()
        assert node.leftovers() == []


async def test_a_member_of_a_pod_without_a_process_is_refused(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        with pytest.raises(IllegalTransition, match="no process whose PID namespace"):
            await sandbox.create_container(node.container(pod, ["/bin/true"], pid=SANDBOX_PID_NAMESPACE))


async def test_a_pause_process_that_can_not_start_leaves_nothing(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod(shared_pid=True)
        assert pod.oci is not None
        pod.oci["process"]["args"] = ["/nope"]
        with pytest.raises(RuntimeFailed):
            await backend.create_sandbox(pod)
        assert node.leftovers() == []


async def test_another_server_finds_what_runs_what_ended_and_what_never_started(node: OciNode) -> None:
    pod = node.pod(shared_pid=True)
    runs, ends, waits = (node.container(pod, ["/bin/sh", "-c", script]) for script in ("sleep 1000", "sleep 0.3; exit 5", "true"))
    async with node.backend() as backend:
        sandbox = await backend.create_sandbox(pod)
        handles = {spec.id: await sandbox.create_container(spec) for spec in (runs, ends, waits)}
        pid = await handles[runs.id].start()
        await handles[ends.id].start()
        records = {ident: dict(handle.record) for ident, handle in handles.items()}
        record = dict(sandbox.record)
    async with node.backend() as backend:
        again = await backend.load_sandbox(pod, record)
        assert again.pid == sandbox.pid
        loaded = {spec.id: await again.load_container(spec, records[spec.id]) for spec in (runs, ends, waits)}
        assert loaded[runs.id].pid == pid
        assert (await ended(loaded[ends.id])).code == 5
        assert loaded[waits.id].pid is None
        await loaded[waits.id].start()
        assert (await ended(loaded[waits.id])).code == 0
        with pytest.raises(NotFound):
            await again.load_container(node.container(pod, ["/bin/true"]), {})
        for handle in loaded.values():
            await handle.delete()
        await again.delete()
        assert node.leftovers() == []


async def test_a_container_that_the_monitor_forgot_is_lost_but_never_hangs(node: OciNode) -> None:
    pod = node.pod()
    spec = node.container(pod, ["/bin/true"])
    async with node.backend() as backend:
        sandbox = await backend.create_sandbox(pod)
        container = await sandbox.create_container(spec)
        await container.start()
        await ended(container)
        await backend._runtime.monitor.forget(spec.id)
        again = await sandbox.load_container(spec, container.record)
        status = await ended(again)
        assert (status.code, status.reason) == (255, "MonitorLost")
        await again.delete()
        assert node.leftovers() == []


async def test_stdin_and_log_rotation(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        spec = node.container(pod, ["/bin/sh", "-c", "echo one; until [ -e /proc/self/root/tmp/go ]; do sleep 0.02; done; echo two"])
        container = await sandbox.create_container(spec)
        await container.start()
        with anyio.fail_after(30):
            while not (spec.bundle / "log").exists() or not node.log(spec):
                await anyio.sleep(0.02)
        (spec.bundle / "log").rename(spec.bundle / "log.1")
        await container.reopen_log()
        (node.rootfs / "tmp/go").touch()
        await ended(container)
        assert node.log(spec) == ["two"]
        assert (spec.bundle / "log.1").read_text().endswith(" one\n")
        await container.delete()


async def test_without_a_log_path_output_is_dropped(node: OciNode) -> None:
    async with node.backend() as backend:
        pod = node.pod()
        sandbox = await backend.create_sandbox(pod)
        container = await sandbox.create_container(node.container(pod, ["/bin/echo", "x"], io=ContainerIO()))
        await container.start()
        assert (await ended(container)).code == 0
        await container.delete()
