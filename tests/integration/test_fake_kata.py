"""The stand-in for Kata's shim does what Kata's does, so that tests on it hold for the real one: each trait is tried by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import pytest
from betterproto2 import Message

from bridge._proto.containerd import events
from bridge._proto.containerd.task import v2 as pb
from bridge._proto.containerd.types import Empty
from bridge._proto.containerd.v1.types import Status
from bridge._proto.io.containerd.cgroups import v1, v2
from bridge.errors import InvalidRequest, NotFound, RuntimeFailed, ShimGone, TimedOut, Unsupported
from bridge.host import syscalls
from bridge.host.mounts import bind, unmount
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.encoding import PROCESS, RESOURCES, decode, packed_json, runtime_options, type_name
from bridge.shimv2.events import ShimEvent, serve_events
from bridge.testing.fake_kata import places
from bridge.testing.fake_kata.binary import install
from bridge.testing.fake_kata.machine import forget, kill_hypervisor
from tests.integration.shim_node import SECONDS, Fifo, ShimNode, processes, shim_node, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("runc"), reason="needs runc")]

M = TypeVar("M", bound=Message)
_PRIVATE, _SHARED = 1 << 18, 1 << 20
SANDBOX = "io.kubernetes.cri.container-type"


class Pod:
    """A node with one pod of the fake: its sandbox, its members, and their stdio."""

    def __init__(self, node: ShimNode, faults: Path) -> None:
        self.node = node
        self._faults = faults
        self.sandbox = node.bundle("/bin/sleep", "1000", annotations={SANDBOX: "sandbox"})
        self.id = self.sandbox.name
        self.socket = Path(places.shim_socket("default", self.id).removeprefix("unix://"))
        self.client: TtrpcClient | None = None
        self.fifos: dict[str, Fifo] = {}

    def fault(self, **faults: Any) -> None:
        self._faults.write_text(json.dumps(faults))

    def member(self, *args: str) -> Path:
        annotations = {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": self.id}
        return self.node.bundle(*args, annotations=annotations)

    async def call(self, method: str, request: Message, response_type: type[M], *, timeout: float = SECONDS) -> M:
        assert self.client is not None
        return await self.client.call("containerd.task.v2.Task", method, request, response_type, timeout=timeout)

    async def create(self, bundle: Path, *, stdio: Sequence[str] = ("stdout", "stderr"), **fields: Any) -> int:
        paths: dict[str, Any] = {name: str(self._fifo(bundle, name).path) for name in stdio}
        request = pb.CreateTaskRequest(id=bundle.name, bundle=str(bundle), **paths, **fields)
        return (await self.call("Create", request, pb.CreateTaskResponse)).pid

    def _fifo(self, bundle: Path, name: str) -> Fifo:
        made = self.fifos[f"{bundle.name}/{name}"] = self.node.fifo(bundle / name)
        return made

    def out(self, bundle: Path, name: str = "stdout") -> Fifo:
        return self.fifos[f"{bundle.name}/{name}"]

    async def start(self, bundle: Path, exec_id: str = "") -> int:
        return (await self.call("Start", pb.StartRequest(id=bundle.name, exec_id=exec_id), pb.StartResponse)).pid

    async def wait(self, bundle: Path, exec_id: str = "") -> int:
        return (await self.call("Wait", pb.WaitRequest(id=bundle.name, exec_id=exec_id), pb.WaitResponse)).exit_status

    async def state(self, bundle: Path, exec_id: str = "") -> pb.StateResponse:
        return await self.call("State", pb.StateRequest(id=bundle.name, exec_id=exec_id), pb.StateResponse)

    async def kill(self, bundle: Path, number: int, exec_id: str = "") -> None:
        await self.call("Kill", pb.KillRequest(id=bundle.name, exec_id=exec_id, signal=number), Empty)

    async def delete(self, bundle: Path, exec_id: str = "") -> int:
        return (await self.call("Delete", pb.DeleteRequest(id=bundle.name, exec_id=exec_id), pb.DeleteResponse)).exit_status

    async def exec(self, bundle: Path, exec_id: str, *args: str, stdio: Sequence[str] = ("stdout",), terminal: bool = False) -> None:
        process = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        paths: dict[str, Any] = {name: str(self._fifo(bundle, f"{exec_id}-{name}").path) for name in stdio}
        request = pb.ExecProcessRequest(id=bundle.name, exec_id=exec_id, terminal=terminal, spec=packed_json(PROCESS, process), **paths)
        await self.call("Exec", request, Empty)

    async def boot(self) -> int:
        pid = await self.create(self.sandbox, stdio=())
        await self.start(self.sandbox)
        return pid

    async def run(self, *args: str, **fields: Any) -> Path:
        bundle = self.member(*args)
        await self.node.binary.start(bundle.name, bundle)
        await self.create(bundle, **fields)
        await self.start(bundle)
        return bundle


@asynccontextmanager
async def pod(root: Path, *, events: Path | None = None) -> AsyncIterator[Pod]:
    """A pod whose shim listens; whatever a test leaves of it is cleaned up, and nothing may be left then."""
    root.mkdir(exist_ok=True)
    path = install(root)
    faults = root / "faults.json"
    async with shim_node(root, str(path), "kata") as node:
        node.binary = replace(node.binary, events=events or node.binary.events, env={places.FAULTS_ENV: str(faults)})
        made = Pod(node, faults)
        async with node.task(made.sandbox) as (client, _):
            made.client = client
            try:
                yield made
            finally:
                made.client = None
    kill_hypervisor(made.id)  # a machine that never came up is known to no verb
    forget(made.id)
    assert not places.machine_dir(made.id).exists()
    assert not places.state_dir(made.id).exists()


async def test_a_pod_from_boot_to_shutdown(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        machine = await kata.boot()
        assert Path(f"/proc/{machine}/cmdline").read_bytes().split(b"\0")[0] == places.HYPERVISOR.encode()
        member = kata.member("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
        address = await kata.node.binary.start(member.name, member)
        assert address == await kata.node.binary.start(member.name, member)
        assert (member / "address").read_text() == (kata.sandbox / "address").read_text() == address.address
        assert len(kata.node.shims()) == 1
        assert await kata.create(member) == machine
        assert await kata.start(member) == machine
        assert await kata.wait(member) == 3
        assert (kata.out(member).data, kata.out(member, "stderr").data) == (b"out\n", b"err\n")
        state = await kata.state(member)
        assert (state.status, state.pid, state.exit_status) == (Status.STOPPED, machine, 3)
        assert (state.stdout, state.stderr) == (str(member / "stdout"), str(member / "stderr"))
        await kata.call("Shutdown", pb.ShutdownRequest(id=kata.id), Empty)  # ignored
        assert await kata.delete(member) == 3
        await kata.kill(kata.sandbox, signal.SIGKILL)
        assert await kata.wait(kata.sandbox) == 137
        await kata.call("Shutdown", pb.ShutdownRequest(id=kata.id), Empty)  # ignored: the sandbox is kept
        assert await kata.delete(kata.sandbox) == 137
        await kata.node.event(lambda event: isinstance(event.event, events.TaskDelete) and event.event.container_id == kata.id)
        with suppress(ShimGone):
            await kata.call("Shutdown", pb.ShutdownRequest(id=kata.id), Empty)
        await until(lambda: not kata.node.shims())
        await until(lambda: not kata.socket.exists())
        topics = [event.topic for event in kata.node.events]
        assert topics == [f"/tasks/{what}" for what in ("create", "start") * 2 + ("exit", "delete") * 2]
        with pytest.raises(RuntimeFailed, match="no such file"):
            await kata.node.binary.delete(kata.id, kata.sandbox)


async def test_its_wait_is_for_output_first_and_its_input_needs_two_ends(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        await kata.boot()
        member = await kata.run("/bin/sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done")
        await kata.out(member).until(b"up")
        await kata.exec(member, "cat", "/bin/cat", stdio=("stdin", "stdout"))
        await kata.start(member, "cat")
        stdin = kata.out(member, "cat-stdin")
        stdin.write(b"hello")
        await kata.out(member, "cat-stdout").until(b"hello")
        with pytest.raises(TimedOut):  # the fifo has a writer still, and the lock is held meanwhile
            await kata.call("CloseIO", pb.CloseIoRequest(id=member.name, exec_id="cat", stdin=True), Empty, timeout=0.3)
        with pytest.raises(TimedOut):
            await kata.call("State", pb.StateRequest(id=member.name), pb.StateResponse, timeout=0.3)
        stdin.close()
        assert await kata.wait(member, "cat") == 0
        await kata.exec(member, "holds", "/bin/sh", "-c", "sleep 1000 & exit 4")
        await kata.start(member, "holds")
        with pytest.raises(TimedOut):
            await kata.call("Wait", pb.WaitRequest(id=member.name, exec_id="holds"), pb.WaitResponse, timeout=0.5)
        assert (await kata.state(member, "holds")).status == Status.RUNNING
        await kata.kill(member, signal.SIGTERM)
        assert (await kata.wait(member), await kata.wait(member, "holds")) == (9, 4)
        assert (await kata.delete(member, "cat"), await kata.delete(member, "holds"), await kata.delete(member)) == (0, 4, 9)


async def test_output_that_nobody_takes_holds_up_the_exit(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        await kata.boot()
        member = kata.member("/bin/sh", "-c", "head -c 1000000 /dev/zero; exit 5")
        await kata.create(member)
        kata.out(member).pause()
        await kata.start(member)
        with pytest.raises(TimedOut):
            await kata.call("Wait", pb.WaitRequest(id=member.name), pb.WaitResponse, timeout=0.5)
        kata.out(member).resume()
        assert await kata.wait(member) == 5
        assert len(kata.out(member).data) == 1_000_000


async def test_terminals_are_the_shims_and_have_a_size(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        await kata.boot()
        member = await kata.run("/bin/sh", "-c", "tty; read x; stty size; exit 6", stdio=("stdin", "stdout"), terminal=True)
        await kata.out(member).until(b"/dev/pts/0")
        await kata.call("ResizePty", pb.ResizePtyRequest(id=member.name, width=101, height=42), Empty)
        kata.out(member, "stdin").write(b"\n")
        assert await kata.wait(member) == 6
        assert b"42 101" in kata.out(member).data


async def test_a_member_without_a_handler_is_killed_by_a_sigterm_and_all_of_it_is_signalled(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        await kata.boot()
        member = await kata.run("/bin/sleep", "1000")
        await kata.kill(member, signal.SIGTERM)
        assert await kata.wait(member) == 137
        for number in (signal.SIGTERM, signal.SIGKILL):
            await kata.kill(member, number)  # to what has ended: success
        with pytest.raises(RuntimeFailed, match="impossible to signal"):
            await kata.kill(member, signal.SIGHUP)
        running = await kata.run("/bin/sleep", "1000")
        assert await kata.delete(running) == 0  # it is ended by its removal
        with pytest.raises(NotFound, match="container does not exist"):
            await kata.state(running)
        with pytest.raises(NotFound, match="exec does not exist"):
            await kata.state(member, "none")


async def test_what_is_used_and_limited_is_the_guests_and_lack_of_memory_is_told(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        machine = await kata.boot()
        os.mkfifo(kata.node.rootfs / "go")
        member = await kata.run("/bin/sh", "-c", "echo up; read x < /go; exec dd if=/dev/zero of=/dev/null bs=64M count=1")
        await kata.out(member).until(b"up")
        pids = await kata.call("Pids", pb.PidsRequest(id=member.name), pb.PidsResponse)
        assert [process.pid for process in pids.processes] == [machine]
        stats = (await kata.call("Stats", pb.StatsRequest(id=member.name), pb.StatsResponse)).stats
        assert stats is not None
        wanted: type[v1.Metrics | v2.Metrics] = v2.Metrics if type_name(stats).endswith("v2.Metrics") else v1.Metrics
        metrics = decode(wanted, stats.value)
        assert metrics.memory is not None
        assert metrics.cpu is not None
        limits = packed_json(RESOURCES, {"memory": {"limit": 16 << 20, "swap": 16 << 20}, "cpu": {"cpus": "0-999"}})
        await kata.call("Update", pb.UpdateTaskRequest(id=member.name, resources=limits), Empty)
        await anyio.to_thread.run_sync((kata.node.rootfs / "go").write_text, "\n")
        assert await kata.wait(member) == 137
        oom = await kata.node.event(lambda event: isinstance(event.event, events.TaskOom))
        assert (oom.topic, oom.event) == ("/tasks/oom", events.TaskOom(container_id=member.name))
        with pytest.raises(Unsupported, match="Checkpoint"):
            await kata.call("Checkpoint", pb.CheckpointTaskRequest(id=member.name), Empty)


async def test_a_machine_that_dies_takes_all_with_it(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        machine = await kata.boot()
        member = await kata.run("/bin/sleep", "1000")
        await kata.exec(member, "more", "/bin/sleep", "1000")
        await kata.start(member, "more")
        os.kill(machine, signal.SIGKILL)
        assert [await kata.wait(member), await kata.wait(member, "more"), await kata.wait(kata.sandbox)] == [255, 255, 255]
        assert (await kata.state(member)).status == Status.STOPPED
        with pytest.raises(RuntimeFailed, match="Dead agent"):
            await kata.call("Stats", pb.StatsRequest(id=member.name), pb.StatsResponse)
        assert not any("1000" in argv and "/bin/sleep" in argv for _, argv in processes() if str(kata.node.rootfs) in argv)
        await kata.delete(member)
        await kata.delete(kata.sandbox)
        with suppress(ShimGone):
            await kata.call("Shutdown", pb.ShutdownRequest(id=kata.id), Empty)
        await until(lambda: not kata.node.shims())


async def test_a_killed_shims_machine_goes_on_until_its_last_container_is_deleted(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        machine = await kata.boot()
        member = await kata.run("/bin/sleep", "1000")
        (shim,) = kata.node.shims()
        os.kill(shim, signal.SIGKILL)
        await until(lambda: not kata.node.shims())
        assert Path(f"/proc/{machine}").exists()
        other = kata.member("/bin/true")
        address = await kata.node.binary.start(other.name, other)  # it says so, dead or alive
        with pytest.raises(ShimGone):
            async with TtrpcClient.connect(address.address):
                pass
        assert (await kata.node.binary.delete(member.name, member)).code == 137
        assert Path(f"/proc/{machine}").exists()
        assert (await kata.node.binary.delete(kata.id, kata.sandbox)).signal == signal.SIGKILL
        await until(lambda: not Path(f"/proc/{machine}/exe").exists())
        with pytest.raises(RuntimeFailed, match="no such file"):
            await kata.node.binary.delete(kata.id, kata.sandbox)


async def test_a_boot_that_hangs_holds_the_lock_and_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        kata.fault(boot="dies")
        with pytest.raises(RuntimeFailed, match="failed to launch"):
            await kata.create(kata.sandbox, stdio=())
        assert not places.machine_dir(kata.id).exists()
        kata.fault(boot="hangs")
        request = pb.CreateTaskRequest(id=kata.id, bundle=str(kata.sandbox))
        with pytest.raises(TimedOut):
            await kata.call("Create", request, pb.CreateTaskResponse, timeout=0.5)
        with pytest.raises(TimedOut):
            await kata.call("Connect", pb.ConnectRequest(id=kata.id), pb.ConnectResponse, timeout=0.3)
        assert places.hypervisor_file(kata.id).exists()


async def test_what_it_refuses(tmp_path: Path) -> None:
    async with pod(tmp_path) as kata:
        member = kata.member("/bin/true")
        with pytest.raises(RuntimeFailed, match="the sandbox hasn't been created"):
            await kata.create(member, stdio=())
        with pytest.raises(InvalidRequest, match="cannot find config file"):
            await kata.create(kata.sandbox, stdio=(), options=runtime_options(config_path="/nowhere/configuration.toml"))
        await kata.boot()
        with pytest.raises(RuntimeFailed, match="cannot create another sandbox"):
            await kata.create(kata.sandbox, stdio=())
        spec = json.loads((member / "config.json").read_text())
        empty = kata.node.root / "empty"
        empty.mkdir()
        (member / "config.json").write_text(json.dumps({**spec, "root": {"path": str(empty)}}))
        with pytest.raises(RuntimeFailed, match="is empty in the guest"):
            await kata.create(member, stdio=())
        kata.fault(start="dies")
        last = kata.member("/bin/true")
        await kata.create(last, stdio=())
        with pytest.raises(RuntimeFailed, match="Dead agent"):
            await kata.start(last)
        assert await kata.wait(last) == 255
        nameless = replace(kata.node.binary, publisher=cast("Path", ""))
        with pytest.raises(RuntimeFailed, match="publish binary cannot be empty"):
            await nameless.start(kata.id, kata.sandbox)


async def test_a_mount_made_later_reaches_the_guest_only_where_it_is_shared(tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.mkdir()
    await bind(late, late)
    try:
        for shared in (False, True):
            syscalls.mount("", late, flags=_SHARED if shared else _PRIVATE)
            async with pod(tmp_path / f"{shared}") as kata:
                await kata.boot()
                member = kata.member("/bin/ps")
                spec = json.loads((member / "config.json").read_text())
                spec["linux"]["namespaces"] = [*spec["linux"]["namespaces"][:1], {"type": "pid", "path": "/proc/1/ns/pid"}]
                root = late / f"{shared}"
                root.mkdir()
                (member / "config.json").write_text(json.dumps({**spec, "root": {"path": str(root)}}))
                await bind(kata.node.rootfs, root)
                try:
                    if not shared:
                        with pytest.raises(RuntimeFailed, match="is empty in the guest"):
                            await kata.create(member)
                        continue
                    await kata.create(member)
                    await kata.start(member)
                    assert await kata.wait(member) == 0
                    assert b"sleep 1000" in kata.out(member).data  # with one PID namespace a member sees the sandbox's process
                    await kata.delete(member)
                finally:
                    await unmount(root)
    finally:
        await unmount(late)


async def test_events_that_nobody_takes_are_brought_again(tmp_path: Path) -> None:
    late, seen = tmp_path / "late.sock", Seen()
    async with pod(tmp_path, events=late) as kata:
        await kata.boot()
        await kata.node.logs[kata.id].until(b"post event:")  # the first attempt has failed
        async with serve_events(late, seen.take):
            await until(lambda: {"/tasks/create", "/tasks/start"} <= set(seen.topics))


class Seen:
    """Topics of the events that came."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    def take(self, event: ShimEvent) -> None:
        self.topics.append(event.topic)
