"""The ttrpc client, the verbs and the events against a real shim: containerd's for runc, of whatever version is installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from betterproto2 import Message

from bridge._proto.containerd.events import TaskExit, TaskOom
from bridge._proto.containerd.task import v2 as pb
from bridge._proto.containerd.types import Empty
from bridge._proto.containerd.v1.types import Status
from bridge._proto.io.containerd.cgroups import v1, v2
from bridge.errors import NotFound, RuntimeFailed, ShimGone
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.encoding import PROCESS, RESOURCES, decode, nanoseconds, packed_json, runc_options, type_name
from tests.integration.shim_node import SECONDS, ShimNode, shim_node, until

_SHIM = os.environ.get("BRIDGE_TEST_SHIM") or shutil.which("containerd-shim-runc-v2")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not (_SHIM and shutil.which("runc") and shutil.which("busybox")), reason="needs containerd-shim-runc-v2, runc, busybox"
    ),
]


def shim(root: Path) -> AbstractAsyncContextManager[ShimNode]:
    assert _SHIM
    return shim_node(root, _SHIM, "shim")


M = TypeVar("M", bound=Message)


class Task:
    """One container of a shim, and the calls of its task service."""

    def __init__(self, node: ShimNode, bundle: Path, client: TtrpcClient, service: str) -> None:
        self.node, self.bundle, self.client, self.service, self.id = node, bundle, client, service, bundle.name
        self.out, self.err = node.fifo(bundle / "out"), node.fifo(bundle / "err")

    async def call(self, method: str, request: Message, response_type: type[M]) -> M:
        return await self.client.call(self.service, method, request, response_type, timeout=SECONDS)

    async def create(self) -> int:
        options = runc_options(binary_name="runc", root=str(self.node.root / "runc"))
        request = pb.CreateTaskRequest(
            id=self.id, bundle=str(self.bundle), stdout=str(self.out.path), stderr=str(self.err.path), options=options
        )
        return (await self.call("Create", request, pb.CreateTaskResponse)).pid

    async def start(self, exec_id: str = "") -> int:
        return (await self.call("Start", pb.StartRequest(id=self.id, exec_id=exec_id), pb.StartResponse)).pid

    async def wait(self, exec_id: str = "") -> pb.WaitResponse:
        return await self.call("Wait", pb.WaitRequest(id=self.id, exec_id=exec_id), pb.WaitResponse)

    async def state(self, exec_id: str = "") -> pb.StateResponse:
        return await self.call("State", pb.StateRequest(id=self.id, exec_id=exec_id), pb.StateResponse)

    async def delete(self, exec_id: str = "") -> pb.DeleteResponse:
        return await self.call("Delete", pb.DeleteRequest(id=self.id, exec_id=exec_id), pb.DeleteResponse)

    async def kill(self, number: int, exec_id: str = "") -> None:
        await self.call("Kill", pb.KillRequest(id=self.id, exec_id=exec_id, signal=number), Empty)

    async def shut_down(self) -> None:
        with suppress(ShimGone):  # it may end before it has answered
            await self.call("Shutdown", pb.ShutdownRequest(id=self.id), Empty)
        with anyio.fail_after(SECONDS):
            await self.client.closed.wait()


async def test_a_container_from_create_to_shutdown(tmp_path: Path) -> None:
    async with shim(tmp_path) as node:
        bundle = node.bundle("/bin/sh", "-c", "echo out; echo err >&2; read x < /go; exit 3")
        os.mkfifo(node.rootfs / "go")
        async with node.task(bundle) as (client, service):
            task = Task(node, bundle, client, service)
            address = (await node.binary.start(bundle.name, bundle)).address
            assert node.shims() == [(await task.call("Connect", pb.ConnectRequest(id=task.id), pb.ConnectResponse)).shim_pid]
            pid = await task.create()
            assert (await task.state()).status == Status.CREATED
            assert await task.start() == pid
            await task.out.until(b"out\n")
            await task.err.until(b"err\n")
            state = await task.state()
            assert (state.status, state.pid, state.stdout, state.bundle) == (Status.RUNNING, pid, str(task.out.path), str(bundle))
            await _stats_and_update(task)
            await _execs(task)
            async with TtrpcClient.connect(address) as second:  # as after a restart of the server: a new connection, and a new Wait
                ended: list[pb.WaitResponse] = []

                async def wait(client: TtrpcClient) -> None:
                    ended.append(await client.call(service, "Wait", pb.WaitRequest(id=task.id), pb.WaitResponse, timeout=None))

                async with anyio.create_task_group() as group:
                    group.start_soon(wait, client)
                    group.start_soon(wait, second)
                    with pytest.raises(RuntimeFailed, match=r"Task/Delete .*running"):
                        await task.delete()
                    (node.rootfs / "go").write_text("x\n")
            assert [answer.exit_status for answer in ended] == [3, 3]
            assert nanoseconds(ended[0].exited_at) > 1_700_000_000_000_000_000
            assert (await task.state()).status == Status.STOPPED
            assert (await task.delete()).exit_status == 3
            with pytest.raises(NotFound, match="Task/State"):
                await task.state()
            await task.shut_down()
        await until(lambda: not node.shims())
        with pytest.raises(ShimGone):
            async with TtrpcClient.connect(address):
                pass
        exit_event = await node.event(lambda event: isinstance(event.event, TaskExit) and event.event.id == bundle.name)
        assert isinstance(exit_event.event, TaskExit)
        assert (exit_event.namespace, exit_event.topic, exit_event.event.exit_status) == ("default", "/tasks/exit", 3)


async def _stats_and_update(task: Task) -> None:
    stats = (await task.call("Stats", pb.StatsRequest(id=task.id), pb.StatsResponse)).stats
    assert stats is not None
    if type_name(stats) == "io.containerd.cgroups.v1.Metrics":
        metrics1 = decode(v1.Metrics, stats.value)
        assert metrics1.memory is not None
        assert metrics1.memory.usage is not None
        assert metrics1.memory.usage.usage > 0
    else:
        assert type_name(stats) == "io.containerd.cgroups.v2.Metrics"
        metrics2 = decode(v2.Metrics, stats.value)
        assert metrics2.memory is not None
        assert metrics2.memory.usage > 0
    update = pb.UpdateTaskRequest(id=task.id, resources=packed_json(RESOURCES, {"memory": {"limit": 64 << 20}}))
    await task.call("Update", update, Empty)
    assert len((await task.call("Pids", pb.PidsRequest(id=task.id), pb.PidsResponse)).processes) == 1


async def _execs(task: Task) -> None:
    async def add(exec_id: str, *args: str) -> None:
        process = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        out = task.node.fifo(task.bundle / f"{exec_id}-out")
        request = pb.ExecProcessRequest(
            id=task.id, exec_id=exec_id, stdout=str(out.path), stderr=os.devnull, spec=packed_json(PROCESS, process)
        )
        await task.call("Exec", request, Empty)
        await task.start(exec_id)
        await out.until(b"hello")

    await add("quick", "/bin/sh", "-c", "echo hello; exit 7")
    assert (await task.wait("quick")).exit_status == 7
    assert (await task.delete("quick")).exit_status == 7
    await add("slow", "/bin/sh", "-c", "echo hello; exec sleep 1000")
    assert (await task.state("slow")).status == Status.RUNNING
    await task.kill(signal.SIGKILL, "slow")
    assert (await task.wait("slow")).exit_status == 137
    await task.delete("slow")
    with pytest.raises(NotFound):
        await task.kill(signal.SIGTERM, "slow")


async def test_a_failed_create_has_the_runtimes_words(tmp_path: Path) -> None:
    async with shim(tmp_path) as node:
        bundle = node.bundle("/bin/no-such-program")
        async with node.task(bundle) as (client, service):
            task = Task(node, bundle, client, service)
            with pytest.raises(RuntimeFailed, match=r"handler 'shim': containerd\.task\.v\d\.Task/Create failed.*no-such-program"):
                await task.create()
            await task.shut_down()


async def test_a_killed_shim_is_told_at_once_and_its_binary_cleans_up(tmp_path: Path) -> None:
    async with shim(tmp_path) as node:
        bundle = node.bundle("/bin/sleep", "1000")
        async with node.task(bundle) as (client, service), anyio.create_task_group() as group:
            task = Task(node, bundle, client, service)
            pid = await task.create()
            await task.start()

            async def wait() -> None:
                with pytest.raises(ShimGone, match="Task/Wait"):
                    await client.call(service, "Wait", pb.WaitRequest(id=task.id), pb.WaitResponse, timeout=None)

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            (pid_of_shim,) = node.shims()
            os.kill(pid_of_shim, signal.SIGKILL)
        assert Path("/proc", str(pid)).exists()  # the container has outlived it
        status = await node.binary.delete(bundle.name, bundle)
        assert (status.code, status.signal) == (137, 9)
        await until(lambda: not Path("/proc", str(pid)).exists() or "zombie" in Path("/proc", str(pid), "status").read_text())
        assert json.loads((bundle / "config.json").read_text())["root"]["path"] == str(node.rootfs)


async def test_a_pods_member_gets_the_pods_shim_and_out_of_memory_is_an_event(tmp_path: Path) -> None:
    async with shim(tmp_path) as node:
        sandbox = node.bundle("/bin/sleep", "1000")
        grouped = {"io.kubernetes.cri.sandbox-id": sandbox.name}
        member = node.bundle("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1", annotations=grouped)
        config = json.loads((member / "config.json").read_text())
        config["linux"]["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
        (member / "config.json").write_text(json.dumps(config))
        async with node.task(sandbox) as (client, service):
            assert await node.binary.start(member.name, member) == await node.binary.start(sandbox.name, sandbox)
            pod, task = Task(node, sandbox, client, service), Task(node, member, client, service)
            await pod.create()
            await pod.start()
            await task.create()
            await task.start()
            assert (await task.wait()).exit_status == 137
            await node.event(lambda event: isinstance(event.event, TaskOom) and event.event.container_id == member.name)
            await task.delete()
            await pod.kill(signal.SIGKILL)
            assert (await pod.wait()).exit_status == 137
            await pod.delete()
            await pod.shut_down()
