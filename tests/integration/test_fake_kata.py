"""The stand-in for Kata's shim does what Kata's does, so that tests on it hold for the real one: each trait is tried by itself."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from betterproto2 import Message

from bridge._proto.containerd.task import v2 as pb
from bridge._proto.containerd.types import Empty
from bridge._proto.containerd.v1.types import Status
from bridge.errors import RuntimeFailed, ShimGone
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.encoding import PROCESS, packed_json
from bridge.testing.fake_kata import places
from bridge.testing.fake_kata.binary import install
from tests.integration.shim_node import SECONDS, Fifo, ShimNode, shim_node, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("runc"), reason="needs runc")]

M = TypeVar("M", bound=Message)
SANDBOX = "io.kubernetes.cri.container-type"


class Pod:
    """A node with one pod of the fake: its sandbox, its members, and their stdio."""

    def __init__(self, node: ShimNode, faults: Path) -> None:
        self.node = node
        self._faults = faults
        self.sandbox = node.bundle("/bin/sleep", "1000", annotations={SANDBOX: "sandbox"})
        self.id = self.sandbox.name
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
async def pod(root: Path) -> AsyncIterator[Pod]:
    """A pod whose shim listens; whatever a test leaves of it is cleaned up, and nothing may be left then."""
    path = install(root)
    faults = root / "faults.json"
    async with shim_node(root, str(path), "kata") as node:
        node.binary = replace(node.binary, env={places.FAULTS_ENV: str(faults)})
        made = Pod(node, faults)
        async with node.task(made.sandbox) as (client, _):
            made.client = client
            yield made
    assert not places.machine_dir(made.id).exists()
    assert not places.state_dir(made.id).exists()
    assert not Path(places.shim_socket("default", made.id).removeprefix("unix://")).exists()


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
        with suppress(ShimGone):
            await kata.call("Shutdown", pb.ShutdownRequest(id=kata.id), Empty)
        await until(lambda: not kata.node.shims())
        topics = [event.topic for event in kata.node.events]
        assert topics == [f"/tasks/{what}" for what in ("create", "start") * 2 + ("exit", "delete") * 2]
        with pytest.raises(RuntimeFailed, match="no such file"):
            await kata.node.binary.delete(kata.id, kata.sandbox)
